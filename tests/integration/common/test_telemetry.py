"""What streams, saves and retries count, for metrics."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from pymongo.errors import AutoReconnect

from tensordb_data import TensorDB
from tensordb_data.common.telemetry.measures import collect
from tensordb_data.mongo import retry


def counted() -> dict[tuple[str, ...], float]:
    return {(value.name, *(text for _, text in value.labels)): value.number for value in collect()}


def test_a_stream_counts_what_it_delivers_and_keeps_it(db: TensorDB) -> None:
    with db.data.writer("digits") as writer:
        writer.add_many(image=np.zeros((40, 100), np.uint8), label=np.arange(40))
    before = counted()
    stream = db.data.find({"dataset": "digits"}).stream(batch_size=8, passes=1, shuffle=True, seed=1)
    assert len(list(stream)) == 5
    told = stream.stats()

    def check() -> None:
        now = {key: number - before.get(key, 0.0) for key, number in counted().items()}
        assert now[("tensordb.stream.samples",)] == 40 and now[("tensordb.stream.batches",)] == 5
        assert now[("tensordb.stream.bytes",)] == told["bytes"]
        hits, misses = (now[("tensordb.stream.blobs", each)] for each in ("hit", "miss"))
        assert (hits, misses) == (told["cache"]["hits"], told["cache"]["misses"]) and hits + misses == 40
        for part, seconds in told["seconds"].items():
            assert now[("tensordb.stream.loop", part)] == pytest.approx(seconds)
        assert now[("tensordb.stream.stage", "fetch", "work")] == pytest.approx(told["stages"]["fetch"]["work"])

    check()
    del stream
    gc.collect()
    check()


def test_saves_and_retries_are_counted(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    before = counted()
    db.params.save({"w": np.random.default_rng(1).random(1000)}, run="r")
    monkeypatch.setattr("tensordb_data.params.save._document", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        db.params.save({"w": np.ones(10)}, run="r")
    calls = iter((AutoReconnect("away"), None))

    def call() -> None:
        if (error := next(calls)) is not None:
            raise error

    monkeypatch.setattr(retry, "_WAIT", (0.001, 0.001))
    retry.retry_while_unavailable(call)
    now = {key: number - before.get(key, 0.0) for key, number in counted().items()}
    assert now[("tensordb.saves", "durable")] == now[("tensordb.saves", "failed")] == now[("tensordb.retries",)] == 1
    assert now[("tensordb.save.bytes",)] == 8000 and 0 < now[("tensordb.save.stored",)] <= 10_000

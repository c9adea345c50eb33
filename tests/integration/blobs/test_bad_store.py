"""An object store is busy, slow, cuts its answers short or loses them, while samples and parameters go in and out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tensordb_data import TensorDB
from tests.faults.bad_store import FAULTS, BadStore, bad_store
from tests.s3_server import S3Server

COUNT = 200


@pytest.fixture
def store(s3: str, s3_service: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[BadStore]:
    with bad_store(s3_service.endpoint) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_or_read_wrongly(mongo_uri: str, s3: str, store: BadStore, tmp_path: Path, fault: str) -> None:
    numbers = np.arange(COUNT)
    x = np.repeat(numbers[:, None], 2000, 1).astype("f4")
    with TensorDB(mongo_uri, blobs=s3, cache=tmp_path / "cache") as db:
        store.fault = fault
        with db.data.writer("d", flush_every=None) as writer:
            for part in np.split(numbers, 4):
                writer.add_many(x=x[part], n=part)
                writer.flush()
        id = db.params.save({"w": x[:50]}, run="r", step=1)
        for shuffle in (False, True):
            seen: Counter[int] = Counter()
            stream = db.data.find({"dataset": "d"}).stream(batch_size=20, fields=["x", "n"], passes=1, shuffle=shuffle)
            for batch in stream:
                assert (batch["x"] == batch["n"][:, None]).all()
                seen.update(batch["n"].tolist())
            assert seen == Counter(range(COUNT))
        assert (db.params.find({"_id": id}).one().load()["w"] == x[:50]).all()
        assert store.spoilt >= 10

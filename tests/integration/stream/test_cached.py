"""Streams over blobs that are far away, with a cache on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensordb_data import TensorDB
from tensordb_data.blobs.reader.remote import GAP
from tests import warm
from tests.delayed_store import DelayedStore

SAMPLES, BYTES = 600, 20_000

TRAINER = """
import json, sys
from tensordb_data import TensorDB
from tests.integration.stream.test_cached import far, passed
with TensorDB(sys.argv[1], cache=sys.argv[2]) as db:
    store = far(db, 0.005)
    stream = db.data.find({"dataset": "noise"}).stream(batch_size=16, shuffle=True, seed=int(sys.argv[3]), passes=1)
    print("ready", flush=True)
    sys.stdin.readline()
    passed(stream)
    print(json.dumps(store.nbytes), flush=True)
"""


def far(db: TensorDB, seconds: float) -> DelayedStore:
    """Put the blobs of a warehouse at a distance."""
    store = DelayedStore(db.warehouse.blobs.store(), seconds)
    db.warehouse.blobs.replace_store(0, store)
    return store


def passed(stream: Any) -> list[int]:
    """The labels of a pass, of which every sample is right."""
    labels: list[int] = []
    for batch in stream:
        labels += batch["label"].tolist()
        assert (batch["data"][:, :2].copy().view("<u2")[:, 0] == batch["label"]).all()
        assert (batch["data"][:, 2:] == (batch["label"] % 251)[:, None]).all()
    assert sorted(labels) == list(range(SAMPLES))
    return labels


@pytest.fixture(params=["s3", "gridfs"])
def db(request: pytest.FixtureRequest, mongo_uri: str, s3: str, tmp_path: Path) -> Iterator[TensorDB]:
    blobs = s3 if request.param == "s3" else "gridfs://"
    with TensorDB(mongo_uri, blobs=blobs, cache=tmp_path / "cache") as db:
        with db.data.writer("noise") as writer:
            for start in range(0, SAMPLES, 200):  # three segments
                labels = np.arange(start, start + 200)
                data = np.repeat((labels % 251).astype(np.uint8)[:, None], BYTES, axis=1)
                data[:, :2] = labels.astype("<u2").view(np.uint8).reshape(-1, 2)
                writer.add_many(data=data, label=labels)
                writer.flush()
        yield db


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_second_pass_and_the_next_run_ask_for_nothing(
    db: TensorDB, mongo_uri: str, tmp_path: Path, shuffle: bool
) -> None:
    store = far(db, 0.002)
    options = {"batch_size": 16, "shuffle": shuffle, "passes": 1}
    stream = db.data.find({"dataset": "noise"}).stream(**options)
    first = passed(stream)
    assert store.nbytes <= 1.05 * SAMPLES * BYTES
    asked = store.requests
    second = passed(stream)
    assert store.requests == asked
    assert (first == second) is not shuffle
    with TensorDB(mongo_uri, cache=tmp_path / "cache") as again:
        store = far(again, 0)
        passed(again.data.find({"dataset": "noise"}).stream(**options))
        assert store.requests == 0


def test_without_the_cache_every_pass_is_right(db: TensorDB, mongo_uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with TensorDB(mongo_uri, cache=tmp_path / "file") as other:
        store = far(other, 0.002)
        stream = other.data.find({"dataset": "noise"}).stream(batch_size=16, shuffle=True, passes=2)
        assert sum(len(batch["label"]) for batch in stream) == 2 * SAMPLES
        # Both passes may be under way at once, and then share what they fetch. Before each blob, a gap may be read in
        # vain: the busier the machine is, the more blobs wait for a request, and are joined in it.
        assert SAMPLES * BYTES <= store.nbytes <= 2 * SAMPLES * (BYTES + GAP)


def test_the_cache_folder_goes_under_a_running_stream(db: TensorDB, tmp_path: Path) -> None:
    stream = db.data.find({"dataset": "noise"}).stream(batch_size=16, shuffle=True)
    batches = iter(stream)
    labels: list[int] = []
    for number in range(150):
        if number % 30 == 5:
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        batch = next(batches)
        labels += batch["label"].tolist()
        assert (batch["data"][:, 2:] == (batch["label"] % 251)[:, None]).all()
    stream.close()
    assert sorted(labels[:SAMPLES]) == list(range(SAMPLES))


def test_a_cap_below_what_is_streamed(db: TensorDB, mongo_uri: str, tmp_path: Path) -> None:
    with TensorDB(mongo_uri, cache=tmp_path / "small", cache_bytes="9MB") as other:
        far(other, 0.002)
        stream = other.data.find({"dataset": "noise"}).stream(batch_size=16, shuffle=True, passes=1)
        for _ in range(3):
            passed(stream)
        used = sum(512 * path.stat().st_blocks for path in (tmp_path / "small").glob("segments/*.seg"))
        assert 0 < used <= 9_000_000


def test_a_shuffled_pass_over_more_than_the_cache_fetches_all_once_and_by_blocks(
    mongo_uri: str, s3: str, tmp_path: Path
) -> None:
    with TensorDB(mongo_uri, blobs=s3, cache=tmp_path / "cache", cache_bytes="3MB") as db:
        with db.data.writer("noise") as writer:
            for start in range(0, SAMPLES, 20):  # thirty segments, four times what the cache holds
                labels = np.arange(start, start + 20)
                data = np.repeat((labels % 251).astype(np.uint8)[:, None], BYTES, axis=1)
                data[:, :2] = labels.astype("<u2").view(np.uint8).reshape(-1, 2)
                writer.add_many(data=data, label=labels)
                writer.flush()
        store = far(db, 0)
        stream = db.data.find({"dataset": "noise"}).stream(batch_size=16, shuffle=True, passes=1)
        orders, fetched = [], []
        for _ in range(3):
            before = store.requests, store.nbytes
            orders.append(passed(stream))
            fetched.append((store.requests - before[0], store.nbytes - before[1]))
        assert orders[0] != orders[1] != orders[2]
        assert all(nbytes <= 1.1 * SAMPLES * BYTES for _, nbytes in fetched), fetched
        assert all(requests <= SAMPLES // 2 for requests, _ in fetched), fetched
        used = sum(512 * path.stat().st_blocks for path in (tmp_path / "cache").glob("segments/*.seg"))
        assert 0 < used <= 3_000_000


def test_two_trainers_on_one_cache(db: TensorDB, mongo_uri: str, tmp_path: Path) -> None:
    trainers = []
    for seed in (3, 3):
        command = [sys.executable, "-c", TRAINER, mongo_uri, str(tmp_path / "shared"), str(seed)]
        process = warm.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ})
        trainers.append(process)
    for process in trainers:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in trainers:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    fetched = [json.loads(process.communicate(timeout=100)[0].splitlines()[-1]) for process in trainers]
    assert [process.returncode for process in trainers] == [0, 0]
    assert sum(fetched) <= 1.3 * SAMPLES * BYTES


def test_breaking_off_leaves_nothing_running(db: TensorDB) -> None:
    store = far(db, 0.05)
    stream = db.data.find({"dataset": "noise"}).stream(batch_size=16, shuffle=True)
    next(iter(stream))
    stream.close()
    assert store.nbytes <= 2 * SAMPLES * BYTES

"""One cache, several processes: they share what they fetch, and whoever is killed takes nothing with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data.blobs.reader import remote
from tensordb_data.blobs.reader.disk_cache import SegmentCache
from tensordb_data.blobs.reader.reader import BlobReader
from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.blobs.stores.local import FileStore
from tests.delayed_store import DelayedStore
from tests.shelf import Shelf

SEGMENTS, BLOBS, BYTES = 4, 60, 20_000

# Reads everything in an order of its own, on the word of its parent, and says what it has fetched.
READER = """
import json, sys
from pathlib import Path
import numpy as np
from tests.integration.blobs.test_cache_processes import opened, plan_of
folder, seed, seconds, dense = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "dense"
reader, store = opened(folder, seconds)
plan, rows = plan_of(folder)
print("ready", flush=True)
sys.stdin.readline()
order = np.random.default_rng(seed).permutation(len(rows))
for start in range(0, len(order), 8):
    part = order[start : start + 8]
    refs = plan.take(part)
    if not dense:
        refs = type(refs)(refs.segments, refs.segment, refs.offset, refs.length)
    assert (reader.gather(refs) == rows[part]).all()
    print("batch", flush=True)
reader.close()
print(json.dumps(store.nbytes), flush=True)
"""


def opened(folder: Path, seconds: float) -> tuple[BlobReader, DelayedStore]:
    """A reader of the store in a folder, far away, with a cache beside it."""
    docs = {ObjectId(d["_id"]): d | {"_id": ObjectId(d["_id"])} for d in json.loads((folder / "docs").read_text())}
    store = DelayedStore(FileStore(folder / "store"), seconds)
    cache = SegmentCache(folder / "segments", 1 << 30)
    return BlobReader(lambda ids: [docs[id] for id in ids], lambda root: store, cache=cache), store


def plan_of(folder: Path) -> tuple[BlobRefs, np.ndarray[Any, np.dtype[np.uint8]]]:
    """All references, and what they must lead to."""
    refs = [{"k": ObjectId(k), "o": o, "n": n} for k, o, n in json.loads((folder / "refs").read_text())]
    rows = np.random.default_rng(5).integers(0, 256, (SEGMENTS * BLOBS, BYTES), np.uint8)
    return BlobRefs.from_docs(refs), rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shelf = Shelf(FileStore(tmp_path / "store"))
    rows = np.random.default_rng(5).integers(0, 256, (SEGMENTS * BLOBS, BYTES), np.uint8)
    refs = [doc for part in np.array_split(rows, SEGMENTS) for doc in shelf.put([row.tobytes() for row in part])]
    (tmp_path / "refs").write_text(json.dumps([[str(doc["k"]), doc["o"], doc["n"]] for doc in refs]))
    docs = [{**doc, "_id": str(doc["_id"]), "sum": None} for doc in shelf.segments.values()]  # JSON has no bytes
    (tmp_path / "docs").write_text(json.dumps(docs))
    return tmp_path


def start(folder: Path, seed: int, seconds: float, dense: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", READER, str(folder), str(seed), str(seconds), dense]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def check(folder: Path, seed: int = 0) -> int:
    """A fresh reader gets every sample right. Returns the bytes that it fetched."""
    reader, store = opened(folder, 0)
    plan, rows = plan_of(folder)
    order = np.random.default_rng(seed).permutation(len(rows))
    for part in np.array_split(order, 12):
        found = reader.gather(plan.take(part))
        assert found is not None and (found == rows[part]).all()
    reader.close()
    return store.nbytes


@pytest.mark.parametrize("dense", ["dense", "sparse"])
def test_two_trainers_fetch_everything_once(folder: Path, dense: str) -> None:
    # In the same order, so that each wants what the other is fetching.
    processes = [start(folder, 7, 0.01, dense) for _ in range(2)]
    for process in processes:
        go(process)
    fetched = [json.loads(process.communicate(timeout=60)[0].splitlines()[-1]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(fetched) <= 1.25 * SEGMENTS * BLOBS * BYTES
    assert check(folder) == 0


@pytest.mark.parametrize("dense", ["dense", "sparse"])
def test_kill_in_the_middle_of_a_fill(folder: Path, dense: str) -> None:
    for attempt in range(5):
        process = start(folder, attempt, 0.002, dense)
        go(process)
        assert process.stdout is not None
        for _ in range(attempt * 3):
            process.stdout.readline()
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    fetched = check(folder)
    assert fetched <= 1.01 * SEGMENTS * BLOBS * BYTES
    assert check(folder, seed=1) == 0
    assert {path.suffix for path in (folder / "segments").iterdir()} <= {".seg", ".tmp"}


def test_a_process_that_was_stopped_holds_nobody_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PATIENCE", 0.2)
    process = start(folder, 0, 2.0, "dense")
    go(process)
    segments = folder / "segments"
    while not list(segments.glob("*.seg")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    check(folder)
    os.kill(process.pid, signal.SIGCONT)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    assert check(folder) == 0


def test_a_child_forked_during_a_fill_keeps_no_claim(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, _ = opened(folder, 0.3)
    plan, rows = plan_of(folder)
    refs = plan.take(np.arange(0, len(rows), 7))
    reader.prefetch(refs)
    assert refs.ahead is not None
    begun = refs.ahead.result()
    while not list((folder / "segments").glob("*.seg")):
        time.sleep(0.01)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        told = 1
        try:
            # A reader of its own, as every TensorDB makes one after a fork, on the cache that the parent is filling.
            told = 0 if check(folder) >= 0 else 1
            os.read(reading, 1)  # and it lives longer than the parent's claims
        finally:
            os._exit(told)
    os.close(reading)
    assert begun is not None
    found = reader.gather(refs)
    assert found is not None and (found == rows[::7]).all()
    monkeypatch.setattr(remote, "_PATIENCE", float("inf"))  # it would wait for ever for what the child has claimed
    check(folder, seed=3)
    os.close(writing)
    assert os.waitpid(pid, 0)[1] == 0
    reader.close()

"""Streams through faults: killed cursors, other processes, damaged and missing segments."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import mongomock
import numpy as np
import pytest

from tensordb_data import TensorDB
from tensordb_data.errors import SampleError
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.passes.planner import Planner
from tensordb_data.stream.plan.index_reader import IndexReader
from tests import warm

N = 3000


@pytest.fixture
def numbered(db: TensorDB) -> TensorDB:
    with db.data.writer("numbers") as writer:
        writer.add_many(x=np.arange(N, dtype=np.uint32).reshape(N, 1), label=np.arange(N))
    return db


def open_stream(db: TensorDB, **options: Any) -> Stream:
    return db.data.find({"dataset": "numbers"}).stream(batch_size=100, **options)


@pytest.mark.parametrize("sort", [None, [("label", -1)]])
def test_a_killed_cursor_is_opened_again_behind_the_last_sample(numbered: TensorDB, sort: Any) -> None:
    stream = numbered.data.find({"dataset": "numbers"}, sort=sort).stream(batch_size=100)
    planner = Planner(numbered.warehouse, stream.spec)
    versions = planner.versions()
    reader = IndexReader(planner.bound_query, planner.layout(versions), versions, 100)
    labels = []
    for page, (docs, _) in enumerate(reader):
        labels += [doc["label"] for doc in docs]
        if page % 5 == 0:
            cursor = reader._cursor
            assert cursor is not None
            numbered.database.command("killCursors", "data", cursors=[cursor.cursor_id])
    assert labels == (list(range(N)) if sort is None else list(range(N))[::-1])


def test_a_stream_travels_to_another_process(numbered: TensorDB) -> None:
    stream = open_stream(numbered, shuffle=True).pin()
    expected = [
        next(batches)["label"].tolist() for batches in [iter(open_stream(numbered, shuffle=True))] for _ in "12"
    ]
    copy: Stream = ForkingPickler.loads(ForkingPickler.dumps(stream))
    assert len(ForkingPickler.dumps(stream)) < 4000
    batches = iter(copy)
    assert [next(batches)["label"].tolist() for _ in "12"] == expected
    copy.close()
    copy.warehouse.close()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(first_labels, (stream,)) == expected[0]


def first_labels(stream: Stream) -> list[int]:
    labels: list[int] = next(iter(stream))["label"].tolist()
    stream.close()
    return labels


def segment_files(folder: Path) -> list[Path]:
    return [path for path in (folder / "blobs").rglob("*") if path.is_file()]


def test_a_damaged_blob_names_the_sample_and_spares_the_batches_before(warehouse_dir: Path) -> None:
    with TensorDB(warehouse_dir) as db:
        with db.data.writer("numbers") as writer:
            writer.add_many(x=np.arange(N * 64, dtype=np.uint8).reshape(N, 64), label=np.arange(N))
        (path,) = segment_files(warehouse_dir)
        data = bytearray(path.read_bytes())
        doc = db.database["data"].find_one({"label": 250})
        assert doc is not None
        data[doc["_tdb"]["b"]["x"]["o"] + 5] ^= 1
        path.write_bytes(data)
        for shuffle in (False, True):
            labels: list[int] = []
            with pytest.raises(SampleError, match=f"sample {doc['_id']}, field 'x'.*checksum"):
                for batch in open_stream(db, shuffle=shuffle):
                    labels += batch["label"].tolist()
            assert 250 not in labels and (shuffle or labels == list(range(200)))


def test_a_missing_segment_is_one_clear_error(warehouse_dir: Path) -> None:
    with TensorDB(warehouse_dir) as db:
        with db.data.writer("numbers") as writer:
            writer.add_many(x=np.zeros((N, 4), np.uint8), label=np.arange(N))
        (path,) = segment_files(warehouse_dir)
        path.unlink()
        with pytest.raises(SampleError, match=r"field 'x'.*found none"):
            next(iter(open_stream(db)))


def test_streams_work_on_mongomock() -> None:
    db = TensorDB(client=mongomock.MongoClient(), blobs="memory://")
    with db.data.writer("numbers") as writer:
        writer.add_many(x=np.arange(10), label=np.arange(10))
    for shuffle in (False, True):
        batches = db.data.find({"dataset": "numbers"}).stream(batch_size=4, passes=1, shuffle=shuffle)
        assert sorted(value for batch in batches for value in batch["x"].tolist()) == list(range(10))
    db.close()


class Stuck:
    """A store of which one segment can be read, and the others not until it is let go."""

    def __init__(self, store: Any) -> None:
        self.store, self.asked, self.go = store, threading.Event(), threading.Event()
        self.first: str | None = None
        self.gave_up = False

    def wait(self) -> None:
        self.asked.set()
        if not self.go.wait(60):
            self.gave_up = True
            raise TimeoutError

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def local_path(self, key: str) -> None:
        return None

    def get_ranges(self, key: str, *ranges: Any) -> Any:
        self.first = self.first or key
        if key != self.first:
            self.wait()
        return self.store.get_ranges(key, *ranges)


def pipelines() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("tensordb-stream")]


@pytest.mark.parametrize("how", ["close", "break"])
@pytest.mark.parametrize(("what", "batches"), [("store", 4), ("cursor", 1)])
def test_a_stream_is_left_at_once_whatever_it_waits_for(
    db: TensorDB, monkeypatch: pytest.MonkeyPatch, how: str, what: str, batches: int
) -> None:
    for first in range(0, N, 500):  # a segment each
        with db.data.writer("numbers") as writer:
            numbers = np.arange(first, first + 500)
            writer.add_many(x=numbers.astype(np.uint32).reshape(-1, 1), label=numbers)
    stuck = Stuck(db.warehouse.blobs.store())
    if what == "store":
        db.warehouse.blobs.replace_store(0, stuck)
    else:
        take = IndexReader._take

        def slow(self: IndexReader, count: int) -> list[dict[str, Any]]:
            if self._read >= 100 and count > 1:  # all but the first page, and a look whether there is another
                stuck.wait()
            return take(self, count)

        monkeypatch.setattr(IndexReader, "_take", slow)
    stream = open_stream(db, transform=lambda sample: sample)  # a task is a batch
    for number, batch in enumerate(stream):
        assert batch["label"].tolist() == list(range(100 * number, 100 * number + 100)) == batch["x"][:, 0].tolist()
        if number + 1 < batches:
            continue
        assert stuck.asked.wait(60)
        if how == "close":
            stream.close()
        break
    assert not stuck.gave_up, "nobody waited until it did"
    assert what == "store" or pipelines(), "the thread that reads the index is still there"
    monkeypatch.undo()
    stuck.go.set()
    for thread in pipelines():
        thread.join(60)
    assert not pipelines()
    assert len(next(iter(stream))["label"]) == 100
    stream.close()


OPEN_AT_THE_END = """
import sys, threading
from tensordb_data import TensorDB, mix

db = TensorDB(sys.argv[1], blobs=sys.argv[2])
found, daemon = db.data.find({"dataset": "numbers"}), sys.argv[3] == "daemon"
shuffled = [found.stream(batch_size=1, shuffle=True, seed=seed) for seed in range(3)]
streams = [shuffled[0], found.stream(batch_size=1), mix([(shuffled[1], 1), (shuffled[2], 1)])]
if daemon:  # another thread would wait for ever
    streams.append(found.stream(batch_size=1, follow=True))
running = threading.Barrier(len(streams) + 1)

def iterate(stream):
    for number, batch in enumerate(stream):
        if number == 10:
            running.wait()
    print("must not end as if there were no more")

for stream in streams:
    threading.Thread(target=iterate, args=[stream], daemon=daemon).start()
running.wait()
"""


@pytest.mark.parametrize("kind", ["daemon", "other"])
def test_a_thread_that_iterates_as_python_ends(
    numbered: TensorDB, mongo_uri: str, warehouse_dir: Path, kind: str
) -> None:
    (warehouse_dir / "open.py").write_text(OPEN_AT_THE_END)
    run = warm.run(
        [sys.executable, str(warehouse_dir / "open.py"), mongo_uri, f"file://{warehouse_dir}/blobs", kind],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.stdout == "" and run.returncode == 0
    # Python writes the name of an error and its text one after the other, and another thread may write in between.
    told = run.stderr.count("the main thread has ended, and Python starts no threads any more")
    assert run.stderr == "" if kind == "daemon" else told == 3, run.stderr

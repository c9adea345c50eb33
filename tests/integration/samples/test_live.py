"""Live writers: small blobs inside the documents, read by everything that reads samples."""

from __future__ import annotations

import copy
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import bson
import mongomock
import numpy as np
import pytest

from tensordb_data import Array, Bytes, TensorDB, Text
from tensordb_data.api.data.samples import Data
from tensordb_data.blobs.segments.inline import INLINE, MAX_INLINE
from tensordb_data.errors import CorruptBlobError, SampleError
from tensordb_data.samples import write_buffer
from tensordb_data.samples.write_batch import LIVE_SAMPLES
from tensordb_data.warehouse.index import Index
from tests.mongod import running

SCHEMA = {"image": Array("uint8", (4, 4)), "note": Text(optional=True), "raw": Bytes(), "label": int}
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 255, (60, 4, 4), np.uint8)


def fill(data: Data, live: list[bool], compression: str | None = None) -> None:
    """A sixth of the samples by each writer: some have a note, every fifth has raw bytes that are too large."""
    for part, kind in enumerate(live):
        rows = range(part * 60 // len(live), (part + 1) * 60 // len(live))
        with data.writer("d", schema=SCHEMA, live=kind, compression=compression) as writer:
            for i in rows:
                writer.add(image=IMAGES[i], raw=raw(i), note=None if i % 4 == 0 else f"{i} " * i, label=i)


def raw(i: int) -> bytes:
    return bytes([i]) * (MAX_INLINE + 1 if i % 5 == 0 else i)


def stored(db: TensorDB, name: str) -> list[str]:
    """Of each sample in order: whether a field is in its document or in a segment, or that it has none."""
    docs = db.database["data"].find({"dataset": "d"}).sort("_tdb.s", 1)
    parts = [doc["_tdb"].get("b", {}).get(name) for doc in docs]
    return ["none" if part is None else "document" if "d" in part else "segment" for part in parts]


@pytest.mark.parametrize("compression", [None, "zstd:3"])
def test_small_blobs_are_in_the_documents(db: TensorDB, compression: str | None) -> None:
    fill(db.data, [True], compression)
    assert set(stored(db, "image")) == {"document"}
    assert stored(db, "raw") == ["segment" if i % 5 == 0 else "document" for i in range(60)]
    assert stored(db, "note") == ["none" if i % 4 == 0 else "document" for i in range(60)]
    with db.data.writer("d", live=True, compression=compression) as writer:
        writer.add_many(image=IMAGES, raw=[raw(i) for i in range(60)], label=np.arange(60))
    assert stored(db, "image") == ["document"] * 120
    assert stored(db, "raw")[60:] == stored(db, "raw")[:60]
    with db.data.writer("d") as writer:
        writer.add(image=IMAGES[0], raw=b"", label=60)
    assert stored(db, "image")[-1] == stored(db, "raw")[-1] == "segment"
    labels = [(sample["label"], len(sample["raw"])) for sample in db.data.find({"dataset": "d"})]
    assert labels == 2 * [(i, len(raw(i))) for i in range(60)] + [(60, 0)]


@pytest.mark.parametrize("live", [[True], [False, True, False], [True, False, True]])
@pytest.mark.parametrize("compression", [None, "zstd:3"])
def test_every_reader_reads_them(db: TensorDB, live: list[bool], compression: str | None) -> None:
    fill(db.data, live, compression)
    samples = db.data.find({"dataset": "d"}).all()
    copied = copy.deepcopy(samples[3])
    for i, sample in enumerate([*samples[:3], copied, *samples[4:]]):
        np.testing.assert_array_equal(sample["image"], IMAGES[i])
        assert sample["raw"] == raw(i)
        assert sample.get("note") == (None if i % 4 == 0 else f"{i} " * i)
    options: dict[str, dict[str, Any]] = {
        "cursor": {}, "plan": {"shuffle": True}, "cached": {"shuffle": True}, "follow": {"follow": True},
    }  # fmt: skip
    for name, option in options.items():
        stream = db.data.find({"dataset": "d"}).stream(batch_size=7, fields=["raw", "image", "label"], **option)
        seen: list[int] = []
        for batch in stream:
            assert isinstance(batch["image"], np.ndarray) and batch["image"].flags.writeable, name
            np.testing.assert_array_equal(batch["image"], IMAGES[batch["label"]])
            assert batch["raw"] == [raw(i) for i in batch["label"]]
            seen += batch["label"].tolist()
            if len(seen) >= 60:
                break
        stream.close()
        assert sorted(seen[:60]) == list(range(60)) and (name.startswith(("plan", "cached")) or seen == list(range(60)))
    notes = db.data.find({"note": {"$exists": True}, "label": {"$mod": [4, 1]}})
    stream = notes.stream(batch_size=4, fields=["note", "label"], passes=1, shuffle=True)
    assert {i: note for batch in stream for i, note in zip(batch["label"].tolist(), batch["note"], strict=True)} == {
        i: f"{i} " * i for i in range(1, 60, 4)
    }


def test_a_plan_holds_no_bytes(db: TensorDB) -> None:
    fill(db.data, [True])
    stream = db.data.find({"dataset": "d"}).stream(batch_size=10, fields=["image", "label"], shuffle=True, passes=1)
    plan = stream._planner.plan()
    assert plan.table.refs["image"].segments == (INLINE,)
    assert plan.table.inline["image"].data is None and plan.table.nbytes < 50 * 60
    assert sum(len(batch["label"]) for batch in stream) == 60


def test_a_sample_deleted_in_mid_pass_is_skipped_and_counted(db: TensorDB) -> None:
    fill(db.data, [True])
    selection = db.data.find({"dataset": "d"})
    stream = selection.stream(batch_size=10, fields=["image", "label"], shuffle=True, passes=1)
    stream.pin()
    victim = selection.head(1)[0]["label"]
    db.data.find({"label": victim}).delete()
    seen = [label for batch in stream for label in batch["label"].tolist()]
    assert len(seen) == 59 and victim not in seen
    assert stream.stats()["deleted"] == 1 and stream.stats()["skipped"] == 0


def test_damage_is_noticed(db: TensorDB) -> None:
    fill(db.data, [True])
    bad = db.data.find({"label": 7}).first().id
    db.database["data"].update_one({"_id": bad}, {"$set": {"_tdb.b.image.d": b"x" * 16}})
    with pytest.raises(CorruptBlobError, match=rf"sample {bad} of 'd', field 'image': .*do not match their checksum"):
        db.data.find({"label": 7}).first()["image"]
    for shuffle in (False, True):
        stream = db.data.find({"dataset": "d"}).stream(
            batch_size=10, fields=["image", "label"], passes=1, shuffle=shuffle
        )
        with pytest.raises(SampleError, match=f"sample {bad}, field 'image'"):
            list(stream)
        stream = db.data.find({"dataset": "d"}).stream(
            batch_size=10, fields=["image", "label"], passes=1, shuffle=shuffle, max_failures=1
        )
        labels = sorted(label for batch in stream for label in batch["label"].tolist())
        assert labels == [i for i in range(60) if i != 7]


def test_commits_are_small_and_frequent(db: TensorDB) -> None:
    with db.data.writer("d", live=True) as writer:
        writer.add_many(x=np.zeros((1000, 3), np.uint8))
        with writer._buffer.changed:  # without a flush
            writer._buffer.changed.wait_for(lambda: writer._buffer.written >= 1000)
        watch = db.data.find({"dataset": "d"}).watch()
        writer.add(x=np.ones(3, np.uint8))
        assert next(watch)["x"].tolist() == [1, 1, 1]  # in time, without a flush
        watch.close()
    assert list(db.database["segments"].find()) == []
    versions = db.warehouse.datasets.versions(["d"])
    assert versions["d"][0] == 1001


def test_a_server_that_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not hold up the caller of a live writer, nor one who interrupts a commit."""
    n, begun = 5 * LIVE_SAMPLES, threading.Event()
    real = write_buffer.commit

    def commit(warehouse: Any, dataset: str, *args: Any, **options: Any) -> Any:
        if dataset == "e":
            begun.set()
        return real(warehouse, dataset, *args, **options)

    with running(tmp_path) as mongod, TensorDB(mongod.uri, blobs="memory://") as db:
        with db.data.writer("d", live=True) as live, db.data.writer("e") as writer:
            live.add(n=0)
            live.flush()
            writer.add(n=0)
            writer.flush()
            monkeypatch.setattr(write_buffer, "commit", commit)
            mongod.send(signal.SIGSTOP)
            try:
                for i in range(1, 2 * LIVE_SAMPLES):
                    live.add(n=i)
                live.add_many(n=range(2 * LIVE_SAMPLES, n))
                assert (live.written, live.pending) == (1, n - 1)
                writer.add(n=1)
                interrupter = threading.Thread(target=interrupt_main_after, args=(begun,))
                interrupter.start()
                with pytest.raises(KeyboardInterrupt) as caught:
                    writer.flush()
                interrupter.join()
                writer.add(n=2)
            finally:
                mongod.send(signal.SIGCONT)
        assert (live.written, writer.written) == (n, 3)
        if sys.version_info >= (3, 11):
            assert "1 samples were committed, 1 are in a commit that goes on" in caught.value.__notes__[0]
        for dataset, count in (("d", n), ("e", 3)):
            docs = db.database["data"].find({"dataset": dataset}).sort("_tdb.s", 1)
            assert [(doc["n"], doc["_tdb"]["s"]) for doc in docs] == [(i, i + 1) for i in range(count)]


def interrupt_main_after(begun: threading.Event) -> None:
    begun.wait()
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def test_what_one_commit_learns_of_the_schema_the_next_samples_use(db: TensorDB) -> None:
    """Integers that were added while a commit was under way are floats, if the dataset has been widened meanwhile."""
    go, reached = threading.Event(), threading.Event()
    with db.data.writer("d", schema={"x": int}, live=True) as writer:
        writer.add(x=0)
        writer.flush()
        with pytest.MonkeyPatch.context() as patch:
            real = Index.transaction

            def slow(self: Index, body: Any) -> Any:
                reached.set()
                go.wait()
                return real(self, body)

            patch.setattr(Index, "transaction", slow)
            writer.add(x=1)
            reached.wait()
            writer.add(x=2)
        schema = db.data.schema("d")
        assert schema is not None
        schema.evolve(x=float)
        go.set()
        writer.flush()
        writer.add(x=2.5)
    found = [sample["x"] for sample in db.data.find()]
    assert found == [0.0, 1.0, 2.0, 2.5] and {type(x) for x in found} == {float}


def test_many_fields_do_not_make_a_document_large(db: TensorDB) -> None:
    fields = {f"f{i}": bytes([i]) * 4000 for i in range(40)}
    with db.data.writer("d", live=True) as writer:
        writer.add(**fields)
        writer.add_many(**{name: [value, value] for name, value in fields.items()})
    assert max(len(bson.encode(doc)) for doc in db.database["data"].find()) < 90_000
    for sample in db.data.find():
        assert {name: sample[name] for name in fields} == fields


def test_on_mongomock() -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        fill(db.data, [True, False])
        for shuffle in (False, True):
            stream = db.data.find({"dataset": "d"}).stream(
                batch_size=7, fields=["image", "label"], passes=1, shuffle=shuffle
            )
            seen = [pair for batch in stream for pair in zip(batch["label"].tolist(), batch["image"], strict=True)]
            assert sorted(label for label, _ in seen) == list(range(60))
            assert all((image == IMAGES[label]).all() for label, image in seen)


def test_a_folder(warehouse_dir: Path) -> None:
    with TensorDB(warehouse_dir) as db:
        fill(db.data, [True])
        np.testing.assert_array_equal(db.data.find({"label": 9}).first()["image"], IMAGES[9])

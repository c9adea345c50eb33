"""Live writers: small blobs inside the documents, read by everything that reads samples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import bson
import mongomock
import numpy as np
import pytest

from tensordb_data import Array, Bytes, TensorDB, Text
from tensordb_data.api.samples import Data
from tensordb_data.blobs.segments.inline import INLINE, MAX_INLINE
from tensordb_data.errors import CorruptBlobError, SampleError

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
        assert writer.written >= 800  # without a flush
        writer.flush()
        watch = db.data.find({"dataset": "d"}).watch()
        writer.add(x=np.ones(3, np.uint8))
        assert next(watch)["x"].tolist() == [1, 1, 1]  # in time, without a flush
        watch.close()
    assert list(db.database["segments"].find()) == []
    versions = db.warehouse.datasets.versions(["d"])
    assert versions["d"][0] == 1001


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

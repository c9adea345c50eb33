"""Frozen sets beside the rest of the house: gc, fsck, rebuild, backup; and what a hostile one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bson
import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import TensorDB
from tensordb_data.errors import InUseError, NotFoundError, StorageError
from tensordb_data.frozen.structure import Structure
from tensordb_data.tensors.leaf import Leaf
from tensordb_data.tensors.write import digest, store_tensors
from tensordb_data.time import freeze as freezing
from tests.integration.time.test_freeze import content, fill


def lose(db: TensorDB) -> None:
    """The index is gone; the store is not."""
    for name in db.database.list_collection_names():
        if name != "warehouse":
            db.database[name].delete_many({})


def test_a_rebuild_brings_frozen_sets_back(db: TensorDB) -> None:
    fill(db, 30)
    selection = db.data.find({"dataset": "mixed"})
    selection.update({"$set": {"label": 4}})
    frozen, dropped = selection.freeze("v1", tags=["a"]), selection.freeze("v2")
    expected, card = content(frozen), frozen.card
    selection.update({"$set": {"label": 5}})
    db.data.find({"dataset": "mixed", "ok": True}).delete()
    dropped.drop()
    lose(db)
    report = db.rebuild()
    assert report.frozen == 1 and report.skipped == []
    again = db.data.frozen("v1")
    assert content(again) == expected and again.query == frozen.query
    assert again.card == card
    db.gc(grace=0)
    db.gc(grace=0)
    assert content(db.data.frozen("v1")) == expected
    assert [f for f in db.fsck().findings if f.kind != "unknown object"] == []
    assert [one.name for one in db.data.frozen()] == ["v1"]


def test_a_backup_has_frozen_sets(db: TensorDB, warehouse_dir: Path, tmp_path: Path) -> None:
    fill(db, 20)
    frozen = db.data.find({"dataset": "mixed"}).freeze("v1")
    expected = content(frozen)
    db.data.drop("mixed")
    db.backup(tmp_path / "backup")
    TensorDB.restore(tmp_path / "backup", warehouse_dir / "back")
    with TensorDB(warehouse_dir / "back") as back:
        assert content(back.data.frozen("v1")) == expected
        back.gc(grace=0)
        assert content(back.data.frozen("v1")) == expected and back.fsck().findings == []


def test_a_gc_beside_a_freeze_removes_nothing_of_it(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db, 30)
    expected = content(db.data.find({"dataset": "mixed"}))
    whole = freezing.cut

    def deleted_meanwhile(blocks: Any) -> Any:
        yield from list(whole(blocks))
        db.data.find({"dataset": "mixed"}).delete()
        db.gc(grace=0)
        db.gc(grace=0)

    monkeypatch.setattr(freezing, "cut", deleted_meanwhile)
    frozen = db.data.find({"dataset": "mixed"}).freeze("v1")
    db.gc(grace=0)
    db.gc(grace=0)
    assert content(frozen) == expected


def test_a_freeze_that_fails_leaves_nothing_that_is_seen(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db, 30, live=True)

    def fails(*given: Any) -> None:
        raise StorageError("the store is full")

    with monkeypatch.context() as patch:
        patch.setattr(freezing, "hold_segments", fails)
        with pytest.raises(StorageError, match="full"):
            db.data.find({"dataset": "mixed"}).freeze("v1")
    assert db.data.frozen() == [] and db.database["frozen_segments"].count_documents({}) == 0
    db.database["segments"].update_many({"state": "writing"}, {"$set": {"created": bson.datetime.datetime(2020, 1, 1)}})
    db.gc(grace=0)
    db.gc(grace=0)
    assert db.database["tensors"].count_documents({}) == 0 and db.fsck().findings == []
    assert db.data.find({"dataset": "mixed"}).freeze("v1").count() == 30


def test_drop_refuses_while_a_checkpoint_or_a_job_refers_to_it(db: TensorDB) -> None:
    fill(db, 10)
    frozen = db.data.find({"dataset": "mixed"}).freeze('v "1"')
    job = db.jobs.push("train", entry="a:b", data=frozen.query)
    with pytest.raises(InUseError, match=str(job.id)):
        frozen.drop()
    db.jobs.find({"_id": job.id}).delete()
    lineage = {"data": [{"query": frozen.query.to_json()}]}
    id = db.params.save({"w": np.zeros(3)}, run="r", step=3)
    db.database["params"].update_one({"_id": id}, {"$set": {"lineage": lineage}})
    with pytest.raises(InUseError, match="run 'r' at step 3"):
        frozen.drop()
    frozen.drop(force=True)
    with pytest.raises(NotFoundError):
        frozen.drop()


def test_fsck_names_what_is_wrong(db: TensorDB) -> None:
    fill(db, 20)
    frozen = db.data.find({"dataset": "mixed"}).freeze("v1")
    db.database["frozen"].update_one({}, {"$set": {"count": 3}})
    db.database["frozen_segments"].delete_many({})
    found = {(finding.kind, finding.what[:20]) for finding in db.fsck().findings}
    assert {kind for kind, _ in found} == {"damaged document", "dangling reference"}
    db.database["segments"].delete_many({})
    assert any("its segment is missing" in finding.what for finding in db.fsck().findings)
    with pytest.raises(StorageError):
        content(frozen)
    db.database["tensors"].delete_many({})
    kinds = {finding.kind for finding in db.fsck().findings if "'v1'" in finding.where}
    assert kinds == {"dangling reference", "missing object"}
    db.database["frozen"].update_one({}, {"$set": {"_tdb.structure": "text"}})
    assert any(finding.kind == "damaged document" for finding in db.fsck().findings)
    with pytest.raises(StorageError, match="names no structure"):
        db.data.frozen("v1").count()


def replaced(db: TensorDB, change: Any) -> None:
    """Put another structure in the place of that of the set."""
    doc = db.database["frozen"].find_one()
    assert doc is not None
    from tensordb_data.frozen.frozen_set import read_pieces

    data = read_pieces(db.warehouse, {0: ("structure", doc["_tdb"]["structure"])}, "set")[0].tobytes()
    data = change(data)
    content = digest(memoryview(data))
    leaf = Leaf("frozen.json", "bytes", "|u1", (len(data),), len(data), data)
    store_tensors(db.warehouse, "frozen", ObjectId(), {content: (leaf, memoryview(data))}, lambda session: None)
    db.database["frozen"].update_one({}, {"$set": {"_tdb.structure": content}})


def edited(**changes: Any) -> Any:
    def change(data: bytes) -> bytes:
        return json.dumps({**json.loads(data), **changes}).encode()

    return change


def column(name: str, pieces: list[Any]) -> Any:
    def change(data: bytes) -> bytes:
        doc = json.loads(data)
        doc["columns"][name] = pieces
        return json.dumps(doc).encode()

    return change


HOSTILE: list[Any] = [
    lambda data: b"", lambda data: data[:-9], lambda data: b"[]", lambda data: b"[" * 5000,
    edited(rows=[10**9]), edited(rows=[-1]), edited(rows=[19]), edited(rows=["20"]), edited(rows=[20, 20]),
    edited(format=2), edited(columns={}), edited(schemas={}), edited(versions={"mixed": [1]}), edited(holes=-1),
    column("ids", [None]), column("ids", ["=AAAA"]), column("ids", ["00"]), column("value label", ["="]),
    column("value label", [5]), column("blob image", ["=" + "A" * 40]),
]  # fmt: skip


def test_a_hostile_set_is_an_error(db: TensorDB) -> None:
    fill(db, 20)
    frozen = db.data.find({"dataset": "mixed"}).freeze("v1")
    doc = db.database["frozen"].find_one()
    assert doc is not None
    for number, change in enumerate(HOSTILE):
        db.database["frozen"].update_one({}, {"$set": {"_tdb.structure": doc["_tdb"]["structure"]}})
        assert frozen.count() == 20
        replaced(db, change)
        for read in (
            lambda: content(frozen), lambda: list(frozen.stream(batch_size=4, passes=1, fields=["label", "image"]))
        ):  # fmt: skip
            with pytest.raises(StorageError, match="'v1'"):
                read()
                pytest.fail(f"change {number} is no error")
    assert [card.name for card in db.data.frozen()] == ["v1"]


def test_a_blanked_row_is_a_hole(db: TensorDB) -> None:
    fill(db, 20)
    frozen = db.data.find({"dataset": "mixed"}).freeze("v1")
    expected = content(frozen)

    def blank(data: bytes) -> bytes:
        from tensordb_data.frozen.codec import encode_values
        from tensordb_data.frozen.columns import Values
        from tensordb_data.frozen.structure import inline

        doc = json.loads(data)
        mask = np.zeros(20, np.bool_)
        mask[[3, 7]] = True
        doc["columns"]["holes"], doc["holes"] = [inline(encode_values(Values(mask), bson.DEFAULT_CODEC_OPTIONS))], 2
        return json.dumps(doc).encode()

    replaced(db, blank)
    assert frozen.count() == 18
    assert content(frozen) == [one for at, one in enumerate(expected) if at not in (3, 7)]
    assert len(frozen.dataset()) == 18
    found = list(frozen.stream(batch_size=5, passes=1, fields=["label"]))
    assert [n for batch in found for n in batch["label"].tolist()] == [
        one["label"] for at, one in enumerate(expected) if at not in (3, 7)
    ]


def test_structures_come_back() -> None:
    structure = Structure({}, {"a": (3, 4)}, [5], {"ids": ["=AAAA"], "value x": [None], "blob y": [bytes(16)]}, 1)
    found = Structure.from_json(structure.to_json(), "it")
    assert found == structure and found.contents == [bytes(16)] and found.count == 4

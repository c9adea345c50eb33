"""What was added, removed and changed between two states; and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensordb_data import Array, Scalar, TensorDB, Text
from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.time import freeze as freezing
from tensordb_data.time.chunks import cut
from tests.integration.time.test_freeze import content, fill


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing, "cut", lambda blocks: cut(blocks, 8, 16))


@pytest.mark.parametrize("chunks", [False, True], ids=["one chunk", "many"])
def test_a_diff_names_what_differs(db: TensorDB, monkeypatch: pytest.MonkeyPatch, chunks: bool) -> None:
    if chunks:
        small_chunks(monkeypatch)
    fill(db, 60)
    everything = db.data.find({"dataset": "mixed"})
    v1 = everything.freeze("v1")
    samples = v1.all()
    gone = [one.id for one in samples[5:8]]
    db.data.find({"_id": {"$in": gone}}).delete()
    db.data.find({"_id": samples[10].id}).update({"$set": {"label": 77, "name": "new"}})
    db.data.find({"_id": samples[11].id}).update({"$unset": {"ok": 1}, "$set": {"score": float("nan")}})
    db.data.find({"_id": samples[12].id}).tag("t")
    fill(db, 4)
    live = db.data.diff("v1", everything)
    v2 = everything.freeze("v2")
    for found in (live, db.data.diff("v1", "v2"), db.data.diff(v1, v2)):
        assert len(found.added) == 4 and len(found.removed) == 3 and len(found.changed) == 3 and found.same == 54
        assert found.removed.ids == gone and [one.id for one in found.removed] == gone
        assert [one["label"] for one in found.added] == [0, 1, 2, 3]
        first, second, third = found.changed
        assert dict(first) == {"label": (samples[10]["label"], 77), "name": (samples[10]["name"], "new")}
        assert set(second) == {"ok", "score"} and second["ok"] == (False, None)
        assert dict(third) == {"tags": ([], ["t"])} and third.id == samples[12].id
        assert found.changed.fields == {"label": 1, "name": 1, "ok": 1, "score": 1, "tags": 1}
        assert "label" in repr(found) and "3" in repr(found) and bool(found)
        with pytest.raises(KeyError, match="has not changed"):
            first["tags"]
    back = db.data.diff("v2", "v1")
    assert (
        len(back.added) == 3
        and len(back.removed) == 4
        and [change.id for change in back.changed] == [change.id for change in live.changed]
    )
    assert not db.data.diff("v1", "v1") and not db.data.diff("v2", everything)
    assert len(db.data.diff(v1, db.data.find({"dataset": "mixed", "label": 1000})).removed) == 60


def test_blobs_are_compared_by_their_content(db: TensorDB) -> None:
    schema = {"image": Array("uint8", (50,)), "text": Text(optional=True), "n": Scalar("int")}
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (30, 50), dtype=np.uint8)
    with db.data.writer("b", schema=schema, live=True) as writer:
        ids = [writer.add(image=image, text="a" if n % 2 else None, n=n) for n, image in enumerate(images)]
    everything = db.data.find({"dataset": "b"})
    v1 = everything.freeze("v1")
    assert not db.data.diff("v1", everything)
    db.data.compact("b")
    assert not db.data.diff("v1", everything)
    everything.freeze("v2")
    assert not db.data.diff("v1", "v2")
    docs = {doc["_id"]: doc["_tdb"]["b"] for doc in db.database["data"].find()}
    swapped = {"_tdb.b.image": docs[ids[4]]["image"]}
    db.database["data"].update_one({"_id": ids[3]}, {"$set": swapped, "$unset": {"_tdb.b.text": ""}})
    db.touch("b")
    (change,) = db.data.diff(v1, everything).changed
    assert set(change) == {"image", "text"} and change["text"] == ("a", None)
    old, new = change["image"]
    assert (old == images[3]).all() and (new == images[4]).all()
    assert "image=..." in repr(change)


def test_arguments_of_diff(db: TensorDB) -> None:
    fill(db, 3)
    with pytest.raises(NotFoundError):
        db.data.diff("v1", db.data.find({}))
    wrong: list[Any] = [3, None, db.params.find({})]
    for each in wrong:
        with pytest.raises(QueryError):
            db.data.diff(db.data.find({}), each)


def test_restore_gives_values_back(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    fill(db, 40)
    everything = db.data.find({"dataset": "mixed"})
    first = everything.first()
    db.data.annotate({first.id: {"label": 8}}, source="model:a")
    v1 = everything.freeze("v1")
    expected = content(everything)
    everything.update({"$set": {"label": 5, "name": "other", "meta": [1]}, "$unset": {"ok": 1}})
    everything.tag("t")
    report = v1.restore(fields=["label"])
    assert report.updated == sum(one["label"] != 5 for one in expected) == 40 - report.same
    assert report.fields == {"label": report.updated} and report.not_applied == {} and report.deleted == 0
    assert [one["label"] for one in everything] == [one["label"] for one in expected]
    assert everything.first()["provenance"]["label"]["source"] == "model:a"
    assert {one["name"] for one in everything} == {"other"}
    v1.restore()
    assert content(everything) == expected and not db.data.diff("v1", everything)
    assert v1.restore().updated == 0


def test_restore_says_what_it_did_not_apply(db: TensorDB) -> None:
    fill(db, 20)
    everything = db.data.find({"dataset": "mixed"})
    v1 = everything.freeze("v1")
    expected = content(everything)
    schema = db.data.schema("mixed")
    assert schema is not None
    schema.rename(label="class_id")
    db.data.rename("mixed", "renamed")
    now = db.data.find({"dataset": "renamed"})
    now.update({"$set": {"class_id": 100, "name": "x"}})
    db.data.find({"dataset": "renamed"}, limit=3).delete()
    db.database["datasets"].update_one({"_id.d": "renamed"}, {"$unset": {"schema.name": ""}})
    report = v1.restore(["label", "name"])
    assert report.deleted == 3 and report.updated == 17 and report.renamed == {"label": "class_id"}
    assert [one["class_id"] for one in now] == [one["label"] for one in expected[3:]]
    assert report.not_applied == {"dataset 'renamed', field 'name': it is not in the schema any more": 17}
    for wrong in (["image"], ["nothing"], "label", [3], []):
        with pytest.raises(QueryError):
            v1.restore(wrong)  # type: ignore[arg-type]

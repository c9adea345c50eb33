"""Annotations: values set by machines, checked like any other, and known to be theirs."""

from __future__ import annotations

import datetime as dt
from typing import Any

import mongomock
import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import QueryError, Scalar, SchemaError, TensorDB

SOURCE = "model:cnn-1@400"


def fill(db: TensorDB, dataset: str = "d", n: int = 10) -> list[ObjectId]:
    with db.data.writer(dataset) as writer:
        return writer.add_many(x=np.zeros((n, 2), np.uint8), label=np.arange(n), meta=[{"a": 1}] * n)


def test_values_are_set_and_their_source_is_kept(db: TensorDB) -> None:
    ids = fill(db)
    before, version = dt.datetime.now(dt.timezone.utc), db.warehouse.datasets.versions()["d"]
    done = db.data.annotate({ids[1]: {"label": np.int64(2)}, ids[2]: {"label": 5, "score": 0.5}}, source=SOURCE)
    assert (done.changed, done.unknown) == (2, ())
    assert [sample["label"] for sample in db.data.find()] == [0, 2, 5, *range(3, 10)]
    found = db.data.find({"provenance.label.source": SOURCE}).all()
    assert [sample.id for sample in found] == ids[1:3]
    assert set(found[1]["provenance"]) == {"label", "score"} and found[1]["provenance"]["score"]["source"] == SOURCE
    assert found[0]["provenance"]["label"]["at"].replace(tzinfo=dt.timezone.utc) >= before - dt.timedelta(seconds=1)
    schema = db.data.schema("d")
    assert schema is not None and schema["score"] == Scalar("float", optional=True)
    after = db.warehouse.datasets.versions()["d"]
    assert after[0] == version[0] and after[1] > version[1]
    batch = next(iter(db.data.find({"provenance.label.source": SOURCE}).stream(batch_size=2, passes=1)))
    assert batch["label"].tolist() == [2, 5] and "provenance" not in batch


def test_the_last_source_counts_and_a_hand_edit_ends_it(db: TensorDB) -> None:
    ids = fill(db)
    db.data.annotate({ids[0]: {"label": 3, "meta.b": 1}}, source="one")
    db.data.annotate({ids[0]: {"label": 4}}, source="two")
    sample = db.data.find({"_id": ids[0]}).first()
    assert {name: note["source"] for name, note in sample["provenance"].items()} == {"label": "two", "meta": "one"}
    assert (sample["label"], sample["meta"]) == (4, {"a": 1, "b": 1})
    assert db.data.find({"_id": ids[0]}).update({"$set": {"label": 7}}) == 1
    assert set(db.data.find({"_id": ids[0]}).first()["provenance"]) == {"meta"}
    assert db.data.find({"_id": ids[1]}).update({"$set": {"label": 1}}) == 0  # as it was before
    assert "provenance" not in db.data.find({"_id": ids[1]}).first()


def test_unknown_ids_are_reported_and_the_others_are_annotated(db: TensorDB) -> None:
    ids, stranger = fill(db), ObjectId()
    (elsewhere,) = fill(TensorDB.over(db.warehouse.in_project("other")), n=1)
    values = {stranger: {"label": 1}, ids[0]: {"label": 9}, elsewhere: {"label": 9}}
    done = db.data.annotate(values, source=SOURCE)
    assert (done.changed, done.unknown) == (1, (stranger, elsewhere))
    assert db.database["data"].find_one({"_id": elsewhere})["label"] == 0  # type: ignore[index]
    assert db.data.annotate({}, source=SOURCE).changed == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"label": "two"}, "field 'label': expected int, found str"),
        ({"x": 3}, "blobs are immutable"),
        ({"new": np.zeros(3)}, "array"),
        ({"_id": 3}, "identity"),
        ({"dataset": "e"}, "stays in its dataset"),
        ({"tags": ["a"]}, r"\.tag"),
        ({"_tdb": 1}, "internal"),
        ({"provenance": {}}, "name is taken"),
        ({"label.a": 1}, "path into a json field"),
        ({}, "takes a dict"),
        (3, "dict of field to value"),
    ],
)
def test_what_does_not_fit_is_refused_as_a_whole(db: TensorDB, given: Any, says: str) -> None:
    ids = fill(db)
    with pytest.raises((QueryError, SchemaError), match=says):
        db.data.annotate({ids[0]: {"label": 3}, ids[1]: given}, source=SOURCE)
    assert [sample["label"] for sample in db.data.find()] == list(range(10))


def test_a_new_field_has_one_kind(db: TensorDB) -> None:
    ids = fill(db)
    with pytest.raises(SchemaError, match=f"sample {ids[1]}: dataset 'd', field 'note': expected str"):
        db.data.annotate({ids[0]: {"note": "a"}, ids[1]: {"note": 3}}, source=SOURCE)
    assert "note" not in (db.data.schema("d") or {})


def test_malformed_calls(db: TensorDB) -> None:
    for source in ("", "x" * 201, 3, None):
        with pytest.raises(QueryError, match="source="):
            db.data.annotate({}, source=source)  # type: ignore[arg-type]
    with pytest.raises(QueryError, match="annotate takes a dict"):
        db.data.annotate([1], source=SOURCE)  # type: ignore[arg-type]
    with pytest.raises(QueryError, match=r"bson\.ObjectId; found 'a'"):
        db.data.annotate({"a": {"label": 1}}, source=SOURCE)  # type: ignore[dict-item]
    with pytest.raises(SchemaError, match=r"'provenance'.*taken"), db.data.writer("d") as writer:
        writer.add(provenance=1)


def test_many_and_in_several_datasets(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensordb_data.samples.annotate._CHUNK", 7)
    ids = [*fill(db), *fill(db, "e", 20)]
    assert db.data.annotate({id: {"label": 50} for id in ids}, source=SOURCE).changed == 30
    assert db.data.find().distinct("label") == [50]


def test_on_mongomock() -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        ids = fill(db)
        assert db.data.annotate({ids[0]: {"label": 3}}, source=SOURCE).changed == 1
        assert db.data.find({"provenance.label.source": SOURCE}).first()["label"] == 3
        db.data.find({"_id": ids[1]}).update({"$set": {"label": 5}})
        assert "provenance" not in db.data.find({"_id": ids[1]}).first()

"""Selections against a real server."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import NotFoundError, Query, QueryError, Scalar, ScanWarning, SchemaError, StorageError, TensorDB
from tensordb_data.warehouse import query_plan


@pytest.fixture
def digits(db: TensorDB) -> TensorDB:
    with db.data.writer("digits") as writer:
        writer.add_many(
            image=np.arange(40, dtype=np.uint8).reshape(10, 2, 2),
            label=np.arange(10) % 5,
            split=["train"] * 8 + ["test"] * 2,
            score=np.arange(10) / 10,
            meta=[{"who": "a", "boxes": [i]} for i in range(10)],
            tags=["raw"],
        )
    return db


def test_reading(digits: TensorDB) -> None:
    train = digits.data.find({"dataset": "digits", "split": "train"})
    assert train.count() == 8
    assert digits.data.find({"split": "train"}, limit=3).count() == 3
    assert [sample["label"] for sample in train.head(3)] == [0, 1, 2]
    assert len(digits.data.find(limit=2).head(5)) == 2
    assert len(train.all()) == len(list(train)) == 8
    assert sorted(train.distinct("label")) == [0, 1, 2, 3, 4]
    assert sorted(digits.data.find(limit=2).distinct("label")) == [0, 1]
    assert digits.data.find({}, sort=[("score", -1)]).first()["score"] == 0.9
    with pytest.raises(NotFoundError, match=r"nothing matches Query\('data', \{'label': 77\}\) in project 'default'"):
        digits.data.find({"label": 77}).first()
    assert digits.data.find({"label": 77}).all() == []
    assert "digits" in repr(train) and "digits" in repr(train.first())
    with pytest.raises(QueryError, match="internal"):
        train.distinct("_tdb.p")
    with pytest.raises(QueryError, match="limit"):
        train.head(0)


def test_fields_limit_what_is_read(digits: TensorDB) -> None:
    sample = digits.data.find(fields=["label", "image", "meta.who"]).first()
    assert set(sample) == {"_id", "dataset", "tags", "label", "image", "meta"}
    assert sample["meta"] == {"who": "a"}
    assert sample["image"].shape == (2, 2)
    sample = digits.data.find(fields=["label"]).first()
    assert "image" not in sample and "split" not in sample and len(sample) == 4
    assert set(digits.data.find(fields=[]).first()) == {"_id", "dataset", "tags"}


def test_blobs_load_when_asked_for_and_with_their_neighbours(digits: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, reads = digits.warehouse.blobs.reader, []
    real = reader.read
    monkeypatch.setattr(reader, "read", lambda refs, *size: (reads.append(len(refs)), real(refs, *size))[1])
    samples = digits.data.find().all()
    assert reads == []
    assert [int(sample["image"][0, 0]) for sample in samples] == list(range(0, 40, 4))
    assert reads == [10]
    assert samples[0]["image"] is samples[0]["image"]
    one = digits.data.find().head(3)[2]
    gc.collect()
    assert one["image"][0, 0] == 8 and reads == [10, 1]


def test_every_sample_is_read_in_the_order_of_its_commit(digits: TensorDB) -> None:
    with digits.data.writer("a") as writer:
        for i in range(600):
            writer.add(n=i)
    assert [sample["n"] for sample in digits.data.find({"dataset": "a"})] == list(range(600))
    assert [sample.dataset for sample in digits.data.find()] == ["a"] * 600 + ["digits"] * 10


def test_update_with_filter_and_limit(digits: TensorDB) -> None:
    before = digits.warehouse.datasets.versions()["digits"][1]
    assert digits.data.find({"label": 3}).update({"$set": {"label": 7}}) == 2
    assert digits.data.find({"label": 7}).count() == 2
    assert digits.warehouse.datasets.versions()["digits"][1] == before + 1
    assert digits.data.find({"split": "train"}, sort=[("score", -1)], limit=3).update({"$set": {"split": "val"}}) == 3
    assert [sample["score"] for sample in digits.data.find({"split": "val"})] == [0.5, 0.6, 0.7]
    with pytest.raises(QueryError, match="all=True"):
        digits.data.find().update({"$set": {"label": 1}})
    assert digits.data.find().update({"$inc": {"label": 1}, "$mul": {"score": 2}}, all=True) == 10
    assert digits.data.find({"dataset": "nothing"}).update({"$set": {"label": 1}}) == 0


def test_update_of_json_fields(digits: TensorDB) -> None:
    one = digits.data.find({"label": 1}, limit=1)
    assert one.update({"$set": {"meta.who": "b"}, "$push": {"meta.boxes": {"$each": [7, 8]}}}) == 1
    assert one.first()["meta"] == {"who": "b", "boxes": [1, 7, 8]}
    assert one.update({"$pull": {"meta.boxes": 7}, "$unset": {"meta.who": ""}}) == 1
    assert one.update({"$addToSet": {"meta.boxes": 8}}) == 0
    assert one.first()["meta"] == {"boxes": [1, 8]}
    with pytest.raises(QueryError, match="the server refused"):
        one.update({"$push": {"meta": 1}})


def test_update_evolves_the_schema(digits: TensorDB) -> None:
    sel = digits.data.find({"dataset": "digits", "label": 0})
    assert sel.update({"$set": {"checked": True}}) == 2
    schema = digits.data.schema("digits")
    assert schema is not None and schema["checked"] == Scalar("bool", optional=True)
    with pytest.raises(SchemaError, match="expected bool"):
        sel.update({"$set": {"checked": "yes"}})
    with digits.data.writer("digits") as writer:
        writer.add(image=np.zeros((2, 2), np.uint8), label=0, split="x", score=1.0, meta={}, checked=False)
    assert sel.update({"$set": {"checked": None}}) == 3
    assert all("checked" not in sample for sample in sel)
    assert sel.update({"$set": {"checked": True}}) == 3
    assert sel.update({"$unset": {"checked": ""}}) == 3


@pytest.mark.parametrize(
    ("update", "says"),
    [
        ({"$set": {"label": "x"}}, "field 'label': expected int, found str 'x'"),
        ({"$set": {"label": None}}, "expected int"),
        ({"$set": {"image": np.int64(3)}}, "blobs are immutable"),
        ({"$unset": {"image": ""}}, "blobs are immutable"),
        ({"$unset": {"label": ""}}, "expected an optional field"),
        ({"$set": {"label.x": 1}}, "path into a json field"),
        ({"$set": {"new.x": 1}}, "set the field itself"),
        ({"$inc": {"new": 1}}, "set the field itself"),
        ({"$set": {"new": b"bytes"}}, "would be a blob"),
        ({"$inc": {"split": 1}}, "needs a number"),
        ({"$inc": {"label": 0.5}}, "takes an int"),
        ({"$push": {"label": 1}}, "list in a json field"),
        ({"$set": {"dataset": "other"}}, "stays in its dataset"),
        ({"$set": {"_tdb.s": 1}}, "internal"),
    ],
)
def test_update_is_checked(digits: TensorDB, update: dict[str, Any], says: str) -> None:
    before = [dict(sample._doc) for sample in digits.data.find()]
    with pytest.raises((SchemaError, QueryError), match=says):
        digits.data.find({"dataset": "digits"}).update(update)
    assert [dict(sample._doc) for sample in digits.data.find()] == before


def test_update_across_datasets_is_checked_against_each(digits: TensorDB) -> None:
    with digits.data.writer("other") as writer:
        writer.add(label="a")
    with pytest.raises(SchemaError, match="dataset 'other', field 'label': expected str"):
        digits.data.find({"label": {"$exists": True}}).update({"$set": {"label": 1}})
    assert digits.data.find({"label": 0}).update({"$set": {"label": 1}}) == 2


def test_tags(digits: TensorDB) -> None:
    sel = digits.data.find({"label": {"$in": [0, 1]}})
    assert sel.tag("clean", "späte $tag.", "raw") == 4
    assert sel.first().tags == ["raw", "clean", "späte $tag."]
    assert digits.data.find({"tags": "späte $tag."}).count() == 4
    assert digits.data.find(limit=1).untag("clean", "raw") == 1
    assert sel.first().tags == ["späte $tag."]
    assert digits.data.find().untag("späte $tag.") == 4
    for bad in ("", None, 3, "a\0", "\ud800"):
        with pytest.raises(QueryError, match="tag"):
            sel.tag(bad)  # type: ignore[arg-type]
    with pytest.raises(QueryError, match="at least one"):
        sel.tag()


def test_delete(digits: TensorDB) -> None:
    kept = [sample.id for sample in digits.data.find()][5:]
    assert digits.data.find(limit=5).delete() == 5
    assert [sample.id for sample in digits.data.find()] == kept
    with pytest.raises(QueryError, match="all=True"):
        digits.data.find().delete()
    with pytest.raises(QueryError, match="all=True"):
        digits.data.find({}).delete()
    assert digits.data.find({"label": 0}).delete() == 1
    assert digits.data.find().delete(all=True) == 4
    assert digits.data.find().delete(all=True) == 0


def test_narrowing(digits: TensorDB) -> None:
    train = digits.data.find({"split": "train"})
    assert (train & {"label": 3}).count() == 1
    assert (train & digits.data.find({"label": 3})).count() == 1
    assert (train & {"split": "test"}).count() == 0
    assert (digits.data.find() & {"label": 3}).query == Query("data", {"label": 3})
    with pytest.raises(QueryError, match="limited"):
        _ = digits.data.find(limit=3) & {"label": 3}
    with pytest.raises(QueryError, match="limited"):
        _ = train & digits.data.find(limit=3)
    with pytest.raises(QueryError, match="cannot be narrowed by one of logs"):
        _ = train & digits.logs.find()
    with pytest.raises(TypeError):
        _ = train & 3  # type: ignore[operator]
    with pytest.raises(QueryError, match="runs code"):
        _ = train & {"$where": "1"}


def test_select_takes_a_stored_query(digits: TensorDB) -> None:
    query = Query.from_json(digits.data.find({"label": 3}, limit=1).query.to_json())
    assert digits.select(query).all() == digits.data.find({"label": 3}, limit=1).all()
    with pytest.raises(QueryError, match="from_json"):
        digits.select(query.to_json())  # type: ignore[arg-type]


def test_explain_and_create_index(digits: TensorDB) -> None:
    plan = digits.data.find({"dataset": "digits", "label": 3}).explain()
    assert plan["index"] == "_tdb.p_1_dataset_1_label_1__tdb.s_1" and plan["stage"] == "IXSCAN"
    assert (plan["returned"], plan["docs_examined"], plan["keys_examined"]) == (2, 2, 2)
    assert "queryPlanner" in plan["raw"]
    name = digits.data.create_index(["split", ("score", -1)])
    assert digits.data.create_index(["split", ("score", -1)]) == name
    assert digits.data.find({"split": "train"}, sort=[("score", -1)]).explain()["index"] == name
    for bad in ([], ["$where"], ["_tdb.s"], [("a", 3)]):
        with pytest.raises(QueryError):
            digits.data.create_index(bad)


def test_a_scan_of_a_large_collection_is_told_once(digits: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_plan, "LARGE", 5)
    monkeypatch.setattr(query_plan, "_SELECTIVE", 2)
    monkeypatch.setattr(query_plan, "_seen", set())
    with pytest.warns(ScanWarning, match=r"db\.data\.create_index\(\['dataset', 'score'\]\) would help"):
        digits.data.find({"dataset": "digits", "score": 0.5}).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        digits.data.find({"dataset": "digits", "score": 0.7}).all()  # the same shape
        digits.data.find({"dataset": "digits", "label": 3}).all()  # served
        digits.data.find({"dataset": "digits"}).all()
        digits.data.find({"split": "train"}).count()  # returns most of what it reads
        digits.data.find({"_id": ObjectId()}).all()
        digits.data.create_index(["dataset", "meta.who"])
        digits.data.find({"dataset": "digits", "meta.who": "zz"}).all()


def test_what_the_server_refuses_is_one_error(digits: TensorDB) -> None:
    for filter in ({"a": {"$foo": 1}}, {"a": {"$regex": "("}}, {"$foo": 1}, {"a": {"$in": 3}}):
        for read in ("all", "count", "one", "explain"):
            with pytest.raises(QueryError, match="the server refused"):
                getattr(digits.data.find(filter), read)()
        with pytest.raises(QueryError, match="the server refused"):
            digits.data.find(filter).tag("x")


def test_a_lost_segment_names_itself(digits: TensorDB) -> None:
    for key, _ in list(digits.warehouse.blobs.store(0).list("")):
        digits.warehouse.blobs.store(0).delete(key)
    with pytest.raises(StorageError):
        digits.data.find().first()["image"]


def test_the_other_collections_have_the_same_verbs(db: TensorDB) -> None:
    mongo = db.database
    for name, field, new in (("architectures", "note", "m"), ("jobs", "priority", 7)):
        collection = getattr(db, name)
        mongo[name].insert_many(
            [{"_id": ObjectId(), "name": f"n{i}", "tags": [], "_tdb": {"p": "default"}} for i in range(3)]
        )
        assert collection.find().count() == 3
        assert collection.find(limit=2).tag("x") == 2
        assert collection.find({"tags": "x"}).update({"$set": {field: new}}) == 2
        assert collection.find({field: new}).first()[field] == new
        assert "_tdb" not in collection.find().first()
        assert collection.find({"name": "n2"}, fields=["name"]).delete() == 1
        with pytest.raises(QueryError, match="only samples can be streamed"):
            collection.find().stream(batch_size=2)

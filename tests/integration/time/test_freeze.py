"""A frozen set has its samples with their values for ever, whatever happens to the data."""

from __future__ import annotations

import datetime as dt
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bson
import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import Array, Query, Scalar, TensorDB, Text
from tensordb_data.errors import DuplicateError, NotFoundError, QueryError
from tensordb_data.time import read_now

Sel = Any
MIXED: dict[str, Any] = {
    "image": Array("uint8", (4, 4)), "text": Text(optional=True), "any": Array("float32", optional=True),
    "label": Scalar("int"), "name": Scalar("str", optional=True), "score": Scalar("float", optional=True),
    "ok": Scalar("bool", optional=True), "at": Scalar("datetime", optional=True), "meta": Scalar("json", optional=True),
}  # fmt: skip


def mixed(n: int) -> dict[str, Any]:
    return {
        "image": np.full((4, 4), n % 251, np.uint8), "text": f"größe {n}" * (n % 5) if n % 3 else None,
        "any": np.arange(n % 7, dtype=np.float32) if n % 2 else None, "label": n % 10,
        "name": f"name {n}" if n % 4 else None, "score": [n / 3, float("inf"), -0.0][n % 3] if n % 5 else None,
        "ok": n % 2 == 0 if n % 6 else None, "at": dt.datetime(2026, 1, 1) + dt.timedelta(hours=n) if n % 7 else None,
        "meta": [{"a": [1, None, "x"], "b": {"c": n}}, [n], "text", 2**40, None][n % 5],
    }  # fmt: skip


def fill(db: TensorDB, n: int = 60, dataset: str = "mixed", schema: Any = MIXED, **options: Any) -> None:
    with db.data.writer(dataset, schema=schema, **options) as writer:
        for i in range(n):
            writer.add(**mixed(i), tags=["odd"] if i % 2 else [])


def content(selection: Sel) -> list[dict[str, Any]]:
    """All that the samples have, as values that can be compared."""
    return [{name: plain(sample[name]) for name in sample} for sample in selection]


def plain(value: Any) -> Any:
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


def batches(selection: Sel, **options: Any) -> list[dict[str, Any]]:
    found = selection.stream(batch_size=7, passes=1, **options)
    return [{name: list(map(plain, column)) for name, column in batch.items()} for batch in found]


def assert_same(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert dict(one) == dict(other)


def test_a_frozen_set_outlives_updates_tags_deletes_compaction_and_gc(db: TensorDB) -> None:
    fill(db)
    selection = db.data.find({"dataset": "mixed", "label": {"$lt": 7}})
    before, shuffled, ordered = content(selection), batches(selection, shuffle=True, seed=3), batches(selection)
    frozen = selection.freeze("v1", tags=["release"])
    assert frozen.count() == len(before) and content(frozen) == before
    selection.update({"$set": {"label": 9, "name": "other"}})
    db.data.find({"dataset": "mixed"}).tag("late")
    db.data.find({"dataset": "mixed", "label": 9}, limit=40).delete()
    db.data.compact("mixed")
    db.gc(grace=0)
    db.gc(grace=0)
    assert content(frozen) == before and content(db.data.frozen("v1")) == before
    assert batches(frozen, shuffle=True, seed=3) == shuffled and batches(frozen) == ordered
    db.data.drop("mixed")
    fill(db, 5, schema={**MIXED, "label": Scalar("str")} | {"label": Scalar("int")})
    db.gc(grace=0)
    assert content(frozen) == before and batches(frozen, shuffle=True, seed=3) == shuffled
    assert db.fsck().findings == []
    frozen.drop()
    db.gc(grace=0)
    assert db.gc(grace=0).marked == 0 and db.storage().garbage == 0
    with pytest.raises(NotFoundError, match="no frozen set 'v1'"):
        frozen.count()


def test_a_frozen_set_keeps_names_and_schema_as_they_were(db: TensorDB) -> None:
    fill(db, 20)
    frozen, expected = db.data.find({"dataset": "mixed"}).freeze("v1"), content(db.data.find({"dataset": "mixed"}))
    schema = db.data.schema("mixed")
    assert schema is not None
    schema.rename(label="class_id")
    schema = db.data.schema("mixed")
    assert schema is not None
    schema.evolve(more=Scalar("int", optional=True))
    db.data.rename("mixed", "other")
    with db.data.writer("mixed", schema={"label": Scalar("str")}) as writer:
        writer.add(label="another dataset of this name")
    assert content(frozen) == expected
    assert set(frozen.describe()) >= {"label", "image"} and "class_id" not in frozen.describe()
    assert frozen.stream(batch_size=4, fields=["label", "dataset"]).spec.fields == ("label", "dataset")
    assert batches(frozen, fields=["dataset"])[0]["dataset"] == ["mixed"] * 7


@pytest.mark.parametrize(
    "options",
    [
        {"sort": [("label", -1), ("score", 1)]}, {"limit": 13}, {"sort": [("name", 1)], "limit": 9},
        {"fields": ["label", "image"]},
    ],
    ids=["sort", "limit", "sort and limit", "fields"],
)  # fmt: skip
def test_order_limit_and_fields_are_those_of_the_selection(db: TensorDB, options: dict[str, Any]) -> None:
    fill(db, 40)
    selection = db.data.find({"dataset": "mixed"}, **options)
    expected = content(selection)
    frozen = selection.freeze("v1")
    db.data.find({"dataset": "mixed"}).update({"$set": {"label": 3}})
    assert content(frozen) == expected
    assert content(db.data.frozen("v1")) == expected


def test_several_datasets_and_none(db: TensorDB) -> None:
    fill(db, 15, "a")
    with db.data.writer("b", schema={"label": Scalar("int"), "name": Array("uint8", (2,))}) as writer:
        writer.add_many(label=np.arange(9), name=np.ones((9, 2), np.uint8), tags=[["b"]] * 9)
    selection = db.data.find({"label": {"$lt": 5}})
    expected = content(selection)
    frozen = selection.freeze("both")
    assert frozen.card.datasets == {"a": 10, "b": 5}
    empty = db.data.find({"dataset": "a", "label": 1000}).freeze("empty")
    db.data.drop("b")
    db.data.find({"dataset": "a"}).delete()
    db.gc(grace=0)
    assert content(frozen) == expected
    assert batches(frozen, fields=["label"])[0]["label"] == [sample["label"] for sample in expected[:7]]
    assert empty.count() == 0 and empty.all() == [] and batches(empty) == [] and len(empty.dataset()) == 0
    assert empty.to_arrow().num_rows == 0
    with pytest.raises(NotFoundError, match="no dataset 'zoo'"):
        db.data.find({"dataset": "zoo"}).freeze("zoo")


def test_blobs_in_documents_are_kept_too(db: TensorDB) -> None:
    fill(db, 30, live=True)
    selection = db.data.find({"dataset": "mixed"})
    expected, shuffled = content(selection), batches(selection, shuffle=True, fields=["image", "label"])
    frozen = selection.freeze("v1")
    db.data.compact("mixed")
    selection.delete()
    db.gc(grace=0)
    db.gc(grace=0)
    assert content(frozen) == expected
    assert batches(frozen, shuffle=True, fields=["image", "label"]) == shuffled
    assert db.fsck().findings == []


def test_provenance_and_what_other_tools_have_written(db: TensorDB) -> None:
    fill(db, 10)
    first, second, third = db.data.find({"dataset": "mixed"}, limit=3).all()
    db.data.annotate({first.id: {"label": 5}}, source="model:a")
    db.database["data"].update_one({"_id": second.id}, {"$set": {"label": "text"}, "$unset": {"tags": ""}})
    db.database["data"].update_one({"_id": third.id}, {"$set": {"name": None, "label": 2**40}})
    db.touch("mixed")
    expected = content(db.data.find({"dataset": "mixed"}))
    frozen = db.data.find({"dataset": "mixed"}).freeze("v1")
    assert content(frozen) == expected
    assert frozen.first()["provenance"]["label"]["source"] == "model:a"


def test_a_second_freeze_stores_what_has_changed(db: TensorDB) -> None:
    with db.data.writer("many") as writer:
        writer.add_many(label=np.arange(5000), value=np.random.default_rng(0).random(5000))
    selection = db.data.find({"dataset": "many"})
    one = selection.freeze("one")
    stored = {doc["_id"]["h"] for doc in db.database["tensors"].find()}
    two = selection.freeze("two")
    again = {doc["_id"]["h"] for doc in db.database["tensors"].find()} - stored
    assert one.card.fingerprint == two.card.fingerprint and len(again) == 1  # the structure alone
    db.data.find({"dataset": "many", "label": {"$lt": 10}}).update({"$set": {"label": 7}})
    three = selection.freeze("three")
    changed = [doc for doc in db.database["tensors"].find() if doc["_id"]["h"] not in stored | again]
    assert one.card.fingerprint != three.card.fingerprint and len(changed) == 2  # the structure, and the labels
    assert two.card.nbytes / 5000 <= 32 + 16


def test_a_frozen_set_is_a_selection_for_all_that_reads(db: TensorDB, tmp_path: Any) -> None:
    fill(db, 25)
    selection = db.data.find({"dataset": "mixed"})
    expected = content(selection)
    table, parts = selection.to_arrow(blobs=["text"]), [part.read() for part in selection.partitions(3)]
    frozen = selection.freeze("v1")
    selection.update({"$set": {"label": 1, "name": "x"}})
    db.data.find({"dataset": "mixed", "label": 1}, limit=5).delete()
    assert frozen.to_arrow(blobs=["text"]).equals(table)
    travelled = pickle.loads(pickle.dumps(frozen.partitions(3)))  # noqa: S301
    for part, before in zip(travelled, parts, strict=True):
        now = part.read()
        assert {name: list(map(plain, column)) for name, column in now.items()} == {
            name: list(map(plain, column)) for name, column in before.items()
        }
    dataset = pickle.loads(pickle.dumps(frozen.dataset()))  # noqa: S301
    assert len(dataset) == 25 and dataset[3]["label"] == expected[3]["label"]
    assert frozen.export(tmp_path / "out", fields=["image", "label", "meta"]).count == 25
    assert [one["label"] for one in frozen.head(3)] == [one["label"] for one in expected[:3]]
    assert frozen.value_counts("label") == {n: 3 if n < 5 else 2 for n in range(10)}
    assert sorted(frozen.distinct("tags")) == ["odd"]
    page = frozen.page(10)
    rest = frozen.page(100, after=page.next)
    assert [one.id for one in [*page, *rest]] == [one["_id"] for one in expected]
    assert {one.id for one in frozen.sample(25)} == {one["_id"] for one in expected}
    assert len(list(frozen.encoded("text"))) == 25
    assert db.select(Query.from_json(frozen.query.to_json())).count() == 25
    assert pickle.loads(pickle.dumps(frozen.query)) == frozen.query  # noqa: S301
    assert frozen.python() == "db.data.frozen('v1')"
    job = db.jobs.push("train", entry="a:b", data=frozen.query)
    found = db.jobs.find({"_id": job.id}).first().selection("data")
    assert found is not None and content(found) == expected


def test_what_changes_or_narrows_a_frozen_set_is_refused(db: TensorDB) -> None:
    fill(db, 5)
    frozen = db.data.find({"dataset": "mixed"}).freeze("v1")
    refused: list[Callable[[], Any]] = [
        lambda: frozen.update({"$set": {"label": 1}}), lambda: frozen.tag("a"), lambda: frozen.untag("odd"),
        lambda: frozen.delete(all=True), lambda: frozen.split({"train": 1.0}), lambda: frozen & {"label": 1},
        lambda: frozen.aggregate([]), lambda: frozen.watch(), lambda: frozen.explain(),
        lambda: frozen.stream(batch_size=2, follow=True), lambda: frozen.freeze("v2"),
        lambda: db.select(frozen.query.replace(filter={"label": 1})), lambda: db.data.find({}).freeze(""),
        lambda: db.data.find({}).freeze(3), lambda: db.params.find({}).freeze("v2"), lambda: Query("jobs", frozen="v1"),
    ]  # fmt: skip
    for call in refused:
        with pytest.raises(QueryError):
            call()
    with pytest.raises(DuplicateError, match="'v1' already"):
        db.data.find({"dataset": "mixed"}).freeze("v1")
    with pytest.raises(NotFoundError, match="did you mean 'v1'"):
        db.data.frozen("v2")
    assert db.data.find({"dataset": "mixed"}).count() == 5


def test_a_query_does_not_take_another_set_of_the_name(db: TensorDB) -> None:
    fill(db, 5)
    frozen = db.data.find({"dataset": "mixed"}).freeze("v1")
    frozen.drop()
    assert frozen.query.frozen is not None and isinstance(frozen.query.frozen.id, ObjectId)
    db.data.find({"dataset": "mixed"}, limit=2).freeze("v1")
    with pytest.raises(NotFoundError, match="was dropped, and another set has its name"):
        frozen.count()
    assert db.select(Query("data", frozen="v1")).count() == 2
    assert [card.name for card in db.data.frozen()] == ["v1"] and "v1" in repr(db.data.frozen())


def test_documents_are_decoded_some_at_a_time(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    with db.data.writer("texts") as writer:
        writer.add_many(text=["x" * n for n in range(50)], n=np.arange(50))
    docs = list(db.database["data"].find({}, sort=[("_tdb.s", 1)]))
    reply = b"".join(bson.encode(doc) for doc in docs)
    for size in (1, 3, 50, 60):
        monkeypatch.setattr(read_now, "_DECODED", size)
        parts = list(read_now._decoded(reply, db.database.codec_options))
        assert [doc["_id"] for part in parts for doc in part] == [doc["_id"] for doc in docs]
        assert {len(part) for part in parts[:-1]} <= {size} and 0 < len(parts[-1]) <= size
        frozen = db.data.find({"dataset": "texts"}).freeze(f"v{size}")
        assert [sample["text"] for sample in frozen] == ["x" * n for n in range(50)]

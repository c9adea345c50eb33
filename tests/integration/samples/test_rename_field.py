"""Renaming a field: what samples, filters, streams, searches, updates and open writers see, and kills at any step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tensordb_data import Array, Scalar, SchemaError, TensorDB
from tensordb_data.errors import BusyError, NotFoundError, QueryError
from tensordb_data.samples import rename_field as module
from tensordb_data.samples.mutations import Mutation
from tests.integration.samples.test_rename import killed_at_each_step

SCHEMA = {"x": Array("float32", (4,)), "label": Scalar("int"), "name": Scalar("str", optional=True)}


def fill(db: TensorDB, n: int = 30, *, live: bool = False) -> None:
    with db.data.writer("d", schema=SCHEMA, live=live) as writer:
        for i in range(n):
            writer.add(x=np.full(4, i, np.float32), label=i, **({"name": f"word{i}"} if i % 2 else {}))


def streamed(db: TensorDB, x: str = "x", label: str = "label") -> list[tuple[int, float]]:
    stream = db.data.find({"dataset": "d"}).stream(7, [x, label], shuffle=True, passes=1)
    return sorted((int(n), float(v[0])) for batch in stream for n, v in zip(batch[label], batch[x], strict=True))


def is_renamed(db: TensorDB, to: str = "image") -> None:
    assert list(db.data.schema("d") or ()) == [to, "label", "name"]
    assert streamed(db, to) == [(i, float(i)) for i in range(30)]
    assert [float(sample[to][0]) for sample in db.data.find({"dataset": "d"})] == list(range(30))
    assert db.database["data"].count_documents({"_tdb.b.x": {"$exists": True}}) == 0


@pytest.mark.parametrize("live", [False, True])
def test_blobs_labels_and_annotations(db: TensorDB, live: bool) -> None:
    fill(db, live=live)
    stored = db.data.schema("d")
    assert stored is not None
    begun = iter(db.data.find({"dataset": "d"}).stream(10, ["label"], shuffle=True, passes=1))
    next(begun)
    schema = stored.rename(x="image")
    assert schema == db.data.schema("d") and list(schema) == ["image", "label", "name"]
    assert len(list(begun)) == 2
    is_renamed(db)
    ids = [sample.id for sample in db.data.find({"dataset": "d"})]
    db.data.annotate({ids[0]: {"label": 100}}, source="m")
    schema.rename(label="digit").rename(name="caption")
    assert db.data.find({"provenance.digit.source": "m"}).one()["digit"] == 100
    assert (
        db.data.find({"digit": {"$gte": 20}}).count() == 11 and db.data.find({"label": {"$exists": True}}).count() == 0
    )
    assert db.data.find({"caption": {"$exists": True}}).count() == 15
    assert db.data.find({"image": {"$exists": True}}).count() == 30
    hits = db.search("word7")
    assert [hit.query.filter for hit in hits] == [{"dataset": "d", "caption": "word7"}]
    checked = db.fsck()
    assert (checked.findings, checked.warnings) == ([], [])
    db.data.compact("d")
    assert streamed(db, "image", "digit")[-1] == (100, 0.0)


def test_those_that_use_the_old_name_are_told(db: TensorDB) -> None:
    fill(db)
    before = db.data.schema("d")
    assert before is not None
    opened = db.data.writer("d")
    opened.add(x=np.zeros(4, np.float32), label=99)
    before.rename(x="image", **{})
    told = "field 'x': it was renamed to 'image', so nothing was written"
    with pytest.raises(SchemaError, match=told):
        opened.close()
    with pytest.raises(SchemaError, match=told):
        with db.data.writer(
            "d", schema={"x": Array("float32", (4,), optional=True), **dict(db.data.schema("d") or {})}
        ) as w:
            w.add(x=np.zeros(4, np.float32), image=np.zeros(4, np.float32), label=1)
    before.rename(label="digit")
    for call in (
        lambda: db.data.find({"dataset": "d"}).update({"$set": {"label": 7}}),
        lambda: db.data.annotate({db.data.find({"dataset": "d"}).one().id: {"label": 7}}, source="m"),
    ):
        with pytest.raises(SchemaError, match="field 'label': it was renamed to 'digit'"):
            call()
    assert db.data.find({"dataset": "d"}).count() == 30 and db.data.find({"label": 7}).count() == 0
    schema = db.data.schema("d")
    assert schema is not None
    schema.evolve(label=Scalar("str", optional=True))  # the name is free for another field
    assert db.data.find({"dataset": "d", "digit": 3}).update({"$set": {"label": "three"}}) == 1
    assert db.data.find({"label": "three"}).one()["digit"] == 3


def test_an_update_that_was_checked_before_and_comes_after(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db)
    schema, enter = db.data.schema("d"), Mutation.__enter__
    assert schema is not None

    def late(self: Mutation) -> Mutation:
        monkeypatch.undo()
        schema.rename(label="digit")
        return enter(self)

    monkeypatch.setattr(Mutation, "__enter__", late)
    with pytest.raises(SchemaError, match="it was renamed to 'digit'"):
        db.data.find({"dataset": "d"}).update({"$inc": {"label": 1}})
    assert streamed(db, "x", "digit") == [(i, float(i)) for i in range(30)]
    assert db.database["data"].count_documents({"label": {"$exists": True}}) == 0


def test_names_that_cannot_be(db: TensorDB) -> None:
    fill(db)
    schema = db.data.schema("d")
    assert schema is not None
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"labl": "y"}, SchemaError, "expected one of the fields x, label, name; did you mean 'label'"),
        ({"x": "label"}, SchemaError, "there is a field 'label' already"),
        ({"x": "x"}, SchemaError, "there is a field 'x' already"),
        ({"x": "tags"}, SchemaError, "this name is taken"),
        ({"x": "_id"}, SchemaError, "this name is taken"),
        ({"x": "provenance"}, SchemaError, "this name is taken"),
        ({"x": "a.b"}, SchemaError, "must not begin with"),
        ({"x": ""}, SchemaError, "non-empty string"),
        ({"x": 7}, SchemaError, "non-empty string"),
        ({"x": "y", "label": "z"}, QueryError, "one field"),
        ({}, QueryError, "one field"),
    ]
    for given, kind, match in wrong:
        with pytest.raises(kind, match=match):
            schema.rename(**given)
    db.database["data"].update_one({"label": 3}, {"$set": {"image": "by another tool"}})
    with pytest.raises(SchemaError, match="samples with a value 'image', which is not in the schema"):
        schema.rename(x="image")
    with (
        Mutation(db.warehouse, "update", ["d"], alone=False),
        pytest.raises(BusyError, match="while samples are chang"),
    ):
        schema.rename(x="y")
    db.data.drop("d")
    with pytest.raises(NotFoundError, match="no schema yet"):
        schema.rename(x="y")


@pytest.mark.parametrize("limit", [10, 10_000])
def test_a_rename_that_is_killed_at_any_step(
    db: TensorDB, mongo_uri: str, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Each time, the field has one of the names, for all samples."""
    monkeypatch.setattr(module, "LIMIT", limit)
    fill(db)
    expected = [(i, float(i)) for i in range(30)]

    def call(doomed: TensorDB) -> None:
        schema = db.data.schema("d")
        assert schema is not None
        name = next(iter(schema))
        assert streamed(db, name) == expected
        found = doomed.data.schema("d")
        assert found is not None
        found.rename(x="image")

    stops = killed_at_each_step(mongo_uri, db, call)
    assert stops > 6
    is_renamed(db)
    assert "renaming" not in (db.database["datasets"].find_one() or {})


def test_values_that_change_while_they_are_copied(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates, deletions and commits beside a large rename; and a call that was stopped and then gives another name."""
    monkeypatch.setattr(module, "LIMIT", 10)
    fill(db)
    schema, copy = db.data.schema("d"), module._Renaming.copy
    assert schema is not None

    def change() -> None:
        assert db.data.find({"label": {"$lt": 15}}).update({"$inc": {"label": 100}}) == 15
        assert db.data.find({"label": 20}).delete() == 1
        fill(db, 12)

    def copied(self: Any, then: Callable[[], object]) -> None:
        copy(self)
        monkeypatch.setattr(module._Renaming, "copy", copy)
        then()

    monkeypatch.setattr(module._Renaming, "copy", lambda self: copied(self, lambda: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        schema.rename(label="other")
    assert db.database["data"].count_documents({"other": {"$exists": True}}) == 30
    with pytest.raises(BusyError, match="samples have values of that name"):
        schema.evolve(other=Scalar("int", optional=True))
    monkeypatch.setattr(module._Renaming, "copy", lambda self: copied(self, change))
    schema.rename(label="digit")
    docs = list(db.database["data"].find())
    assert sorted(doc["digit"] for doc in docs) == [*range(12), *range(15, 20), *range(21, 30), *range(100, 115)]
    assert not any(name in doc for doc in docs for name in ("label", "other"))

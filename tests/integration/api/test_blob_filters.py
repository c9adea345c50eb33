"""Filters on fields that are blobs, and on ids that are written as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tensordb_data import Array, TensorDB
from tensordb_data.errors import QueryError

MASK = np.ones((2, 2), np.uint8)
HAVE, LACK = {1, 3}, {0, 2}


@pytest.fixture
def seg(db: TensorDB) -> TensorDB:
    """Four samples of `seg`, two of which have the blob `mask`; two of `other`, where `mask` is a value."""
    with db.data.writer("seg", schema={"n": int, "mask": Array("uint8", (2, 2), optional=True)}) as writer:
        for n in range(4):
            writer.add(n=n, **({"mask": MASK} if n in HAVE else {}))
    with db.data.writer("other") as writer:
        writer.add_many(n=[10, 11], mask=["a", "b"])
    return db


def _found(db: TensorDB, filter: dict[str, Any]) -> set[int]:
    return {sample["n"] for sample in db.data.find(filter)}


def test_a_filter_sees_whether_a_sample_has_a_blob(seg: TensorDB) -> None:
    for condition, found in (
        ({"mask": {"$exists": True}}, HAVE),
        ({"mask": {"$exists": False}}, LACK),
        ({"mask": None}, LACK),
        ({"mask": {"$ne": None}}, HAVE),
        ({"mask": {"$eq": None}}, LACK),
        ({"mask": {"$in": [None]}}, LACK),
        ({"mask": {"$exists": True, "$nin": [None]}}, HAVE),
        ({"mask": {"$not": {"$exists": True}}}, LACK),
        ({"$or": [{"mask": {"$exists": True}}, {"n": 0}]}, {0, 1, 3}),
        ({"$nor": [{"mask": {"$exists": True}}, {"n": 0}]}, {2}),
        ({"$and": [{"n": {"$gt": 1}}, {"$or": [{"mask": None}]}]}, {2}),
    ):
        assert _found(seg, {"dataset": "seg", **condition}) == found, condition
        assert seg.data.find({"dataset": "seg", **condition}).count() == len(found)
    assert _found(seg, {"mask": {"$exists": True}}) == HAVE | {10, 11}
    assert _found(seg, {"mask": None}) == LACK
    assert _found(seg, {"dataset": "other", "mask": "a"}) == {10}
    assert _found(seg, {"dataset": {"$in": ["other"]}, "$expr": {"$eq": ["$mask", "b"]}}) == {11}


def test_more_than_presence_is_refused_with_the_way_to_ask(seg: TensorDB) -> None:
    for condition in (
        {"mask": 1},
        {"mask": {"$gt": 0}},
        {"mask": {"$type": "array"}},
        {"mask": {"$exists": True, "$ne": 3}},
        {"mask": {"$in": [None, 1]}},
        {"mask.0": 1},
        {"mask": {"a": None}},
        {"mask": {}},
        {"$nor": [{"n": 1}, {"mask": "a"}]},
        {"$expr": {"$eq": ["$mask", None]}},
        {"$expr": {"$gt": [{"$size": "$$ROOT.mask"}, 1]}},
        {"$expr": {"$eq": [{"$getField": "mask"}, 1]}},
        {"$jsonSchema": {"required": ["mask"]}},
    ):
        for scope in ({"dataset": "seg"}, {}):
            selection = seg.data.find({**scope, **condition})
            uses: tuple[Callable[[], Any], ...] = (selection.all, selection.delete)
            if not scope:
                uses = (selection.count, lambda s=selection: s.update({"$set": {"n": 9}}))  # type: ignore[misc]
            for use in uses:
                with pytest.raises(QueryError, match=r"'mask' is a blob in dataset 'seg'.*\$exists"):
                    use()
    with pytest.raises(QueryError, match="a sort needs values in the index, and field 'mask' is a blob"):
        seg.data.find({"dataset": "seg"}, sort="mask").all()
    with pytest.raises(QueryError, match="distinct needs values"):
        seg.data.find({"dataset": "seg"}).distinct("mask")
    assert seg.data.find().count() == 6


def test_writes_and_streams_select_by_presence(seg: TensorDB) -> None:
    having = seg.data.find({"dataset": "seg", "mask": {"$exists": True}})
    for options in ({}, {"shuffle": True}):
        batches = having.stream(4, ["n", "mask"], passes=1, **options)  # type: ignore[arg-type]
        assert {n for batch in batches for n in batch["n"].tolist()} == HAVE
    assert having.tag("masked") == 2
    assert seg.data.find({"mask": None}).update({"$inc": {"n": 20}}) == 2
    assert _found(seg, {"dataset": "seg"}) == {20, 22, *HAVE}
    with seg.data.find({"dataset": "seg", "mask": {"$exists": True}}).watch() as watch:
        with seg.data.writer("seg") as writer:
            writer.add(n=30)
            writer.add(n=31, mask=MASK)
        assert next(watch)["n"] == 31
    assert seg.data.find({"dataset": "seg", "mask": None}).delete() == 3
    assert _found(seg, {"dataset": "seg"}) == {*HAVE, 31}


def test_ids_as_text_select_what_they_name(seg: TensorDB) -> None:
    ids = [str(sample.id) for sample in seg.data.find({"dataset": "seg"}, sort="n")]
    kept = seg.data.find({"dataset": "seg", "_id": {"$nin": ids[:3]}})
    assert [sample["n"] for sample in kept] == [3]
    assert kept.delete() == 1
    assert _found(seg, {"$or": [{"_id": ids[0]}, {"_id": {"$in": ids[1:2]}}]}) == {0, 1}

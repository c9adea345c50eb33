"""Filters with a large `$in`: their parts match what the whole matches."""

from __future__ import annotations

from typing import Any

import pytest
from bson import ObjectId

from tensordb_data.errors import QueryError
from tensordb_data.query import large_in
from tensordb_data.query.query import Query

IDS = [ObjectId() for _ in range(100)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_in, "_LARGEST", 500)
    monkeypatch.setattr(large_in, "_PART", 300)


def test_a_small_one_is_sent_as_it_is() -> None:
    assert Query("data", {"_id": {"$in": IDS[:10]}}).split is None


@pytest.mark.parametrize(
    "filter, values",
    [
        ({"_id": {"$in": IDS}}, lambda part: part["_id"]["$in"]),
        ({"x": 1, "_id": {"$in": IDS, "$gt": IDS[3]}}, lambda part: part["_id"]["$in"]),
        (
            {"$and": [{"x": 1}, {"$and": [{"_id": {"$in": IDS}}]}]},
            lambda part: part["$and"][1]["$and"][0]["_id"]["$in"],
        ),
        ({"n": {"$in": list(range(5))}, "_id": {"$in": IDS}}, lambda part: part["_id"]["$in"]),
    ],
)
def test_the_parts_have_the_values_in_order_and_the_rest_of_the_filter(filter: Any, values: Any) -> None:
    found = Query("data", filter).split
    assert found is not None and found.field == "_id"
    assert [id for part in found.parts for id in values(part)] == IDS
    assert all(large_in.size_of(part) <= 300 for part in found.parts)
    assert values(found.with_values(IDS[:2])) == IDS[:2]
    assert found.with_values(IDS) == Query("data", filter).filter


def test_ids_that_are_named_twice_are_in_one_part() -> None:
    found = Query("data", {"_id": {"$in": IDS + IDS}}).split
    assert found is not None and [id for part in found.parts for id in part["_id"]["$in"]] == IDS


@pytest.mark.parametrize(
    "filter, options",
    [
        ({"_id": {"$nin": IDS}}, {}),
        ({"$or": [{"_id": {"$in": IDS}}, {"x": 1}]}, {}),
        ({"$nor": [{"_id": {"$in": IDS}}]}, {}),
        ({"x": {"$not": {"$in": list(range(200))}}}, {}),
        ({"x": {"$in": ["a" * 400, "b" * 400]}}, {}),
        ({"_id": {"$in": [*IDS, None]}}, {}),
        ({"_id": {"$in": IDS}}, {"sort": "x"}),
    ],
)
def test_what_cannot_be_split_is_refused(filter: Any, options: Any) -> None:
    with pytest.raises(QueryError, match="MongoDB takes 16 MB: ask in several parts"):
        Query("data", filter, **options)


def test_it_is_a_value_like_any_query() -> None:
    query = Query("data", {"_id": {"$in": IDS}}, limit=3)
    assert Query.from_json(query.to_json()) == query
    assert query.replace(limit=3) is query
    copied = query.filter
    copied["_id"]["$in"].clear()
    assert query.filter == {"_id": {"$in": IDS}}

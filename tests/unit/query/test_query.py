"""Query: a frozen value, and the rules that it enforces."""

from __future__ import annotations

import copy
import datetime as dt
import pickle
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from bson import ObjectId, Regex
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data import Query, QueryError
from tensordb_data.query.datasets import selected_datasets
from tensordb_data.query.query import names

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.datetimes(dt.datetime(1800, 1, 1), dt.datetime(2200, 1, 1))
    | st.builds(ObjectId, st.binary(min_size=12, max_size=12)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b.c", "$in", "$regex", "$ne", "$type", "größe"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(
    filter=st.dictionaries(st.sampled_from(["label", "dataset", "a.b", "$or"]), values, max_size=3),
    limit=st.none() | st.integers(1, 100),
    fields=st.none() | st.lists(st.sampled_from(["image", "label", "x.y"]), unique=True),
    sort=st.none() | st.dictionaries(st.sampled_from(["label", "step"]), st.sampled_from([1, -1])),
)
def test_json_round_trip(filter: dict[str, Any], limit: int | None, fields: list[str] | None, sort: Any) -> None:
    query = Query("data", filter, sort=sort, limit=limit, fields=fields)
    again = Query.from_json(query.to_json())
    assert again == query and hash(again) == hash(query)
    assert again.fingerprint == query.fingerprint
    assert again.to_json() == query.to_json()
    assert (again.sort, again.limit, again.fields) == (query.sort, query.limit, query.fields)
    assert pickle.loads(pickle.dumps(query)) == query  # noqa: S301


def test_operators_that_look_like_extended_json_survive() -> None:
    query = Query("data", {"name": {"$regex": "^a", "$options": "i", "$ne": "ab"}})
    assert Query.from_json(query.to_json()).filter == {"name": {"$regex": "^a", "$options": "i", "$ne": "ab"}}


def test_extended_json_is_read_as_values() -> None:
    id = ObjectId()
    query = Query.from_json(f'{{"collection":"data","filter":{{"_id":{{"$oid":"{id}"}}}}}}')
    assert query.filter == {"_id": id}
    assert query == Query("data", {"_id": id}) == Query("data", {"_id": {"$oid": str(id)}})
    with pytest.raises(QueryError, match="not valid extended JSON"):
        Query("data", {"_id": {"$oid": "12"}})


def test_is_a_frozen_value() -> None:
    filter = {"label": {"$in": [0, 1]}}
    query = Query("data", filter)
    filter["label"]["$in"].append(2)
    query.filter["label"]["$in"].append(3)
    assert query.filter == {"label": {"$in": [0, 1]}}
    with pytest.raises(AttributeError):
        query.limit = 3  # type: ignore[misc]
    assert copy.deepcopy(query) == query
    assert repr(Query("data", {"a": 1}, limit=2)) == "Query('data', {'a': 1}, limit=2)"


def test_order_of_top_level_keys_does_not_matter_but_that_of_nested_ones_does() -> None:
    assert Query("data", {"a": 1, "b": 2}) == Query("data", {"b": 2, "a": 1})
    assert Query("data", {"a": {"x": 1, "y": 2}}) != Query("data", {"a": {"y": 2, "x": 1}})


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = "from tensordb_data import Query; print(Query('data', {'b': [1, 2.5, None], 'a': 'ü'}, limit=3).fingerprint)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert out == Query("data", {"a": "ü", "b": [1, 2.5, None]}, limit=3).fingerprint


def test_numpy_numbers_and_python_types_become_plain() -> None:
    query = Query(
        "data",
        {"a": np.int64(3), "b": np.float32(0.5), "c": np.bool_(True), "d": (1, 2), "e": np.array(7)},
        limit=np.int64(4),  # type: ignore[arg-type]
    )
    assert query.filter == {"a": 3, "b": 0.5, "c": True, "d": [1, 2], "e": 7}
    assert type(query.limit) is int
    aware = dt.datetime(2024, 1, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    assert Query("data", {"t": aware}).filter == {"t": dt.datetime(2024, 1, 1, 10)}
    assert Query("data", {"n": re.compile("a", re.I)}).filter == {"n": Regex("a", re.I)}


TEXT, OTHER = "65f0c0ffee65f0c0ffee65f0", "65F0C0FFEE65F0C0FFEE65F1"
ID, ID2 = ObjectId(TEXT), ObjectId(OTHER)


@pytest.mark.parametrize(
    ("collection", "written", "meant"),
    [
        ("data", {"_id": TEXT}, {"_id": ID}),
        ("data", {"_id": {"$nin": [TEXT, ID2]}}, {"_id": {"$nin": [ID, ID2]}}),
        ("jobs", {"_id": {"$ne": TEXT, "$gte": OTHER}}, {"_id": {"$ne": ID, "$gte": ID2}}),
        ("params", {"$or": [{"_id": {"$not": {"$in": [TEXT]}}}]}, {"$or": [{"_id": {"$not": {"$in": [ID]}}}]}),
        ("logs", {"$and": [{"$nor": [{"_id": {"$gt": TEXT}}]}]}, {"$and": [{"$nor": [{"_id": {"$gt": ID}}]}]}),
        ("jobs", {"after": TEXT}, {"after": ID}),
        ("jobs", {"after": {"$elemMatch": {"$in": [TEXT]}}}, {"after": {"$elemMatch": {"$in": [ID]}}}),
        ("params", {"lineage.parent": {"$in": [TEXT, None]}}, {"lineage.parent": {"$in": [ID, None]}}),
        ("data", {"$expr": {"$in": ["$_id", [TEXT, OTHER]]}}, {"$expr": {"$in": ["$_id", [ID, ID2]]}}),
        ("data", {"$expr": {"$eq": [TEXT, "$$ROOT._id"]}}, {"$expr": {"$eq": [ID, "$$ROOT._id"]}}),
        ("data", {"$expr": {"$eq": [{"$toString": "$_id"}, TEXT]}}, {"$expr": {"$eq": [{"$toString": "$_id"}, TEXT]}}),
        ("data", {"after": TEXT, "_id": {"$exists": True}}, {"after": TEXT, "_id": {"$exists": True}}),
    ],
)  # fmt: skip
def test_ids_may_be_written_as_text(collection: str, written: dict[str, Any], meant: dict[str, Any]) -> None:
    assert Query(collection, written).filter == meant
    assert Query.from_json(Query(collection, written).to_json()) == Query(collection, meant)


@pytest.mark.parametrize(
    ("filter", "says"),
    [
        ({"$where": "true"}, "runs code on the server"),
        ({"_id": "first"}, "'_id' holds ids, of 24 hexadecimal digits"),
        ({"$nor": [{"_id": {"$not": {"$in": ["65f0c0ffee65f0c0ffee65f0", ""]}}}]}, "holds ids.*found the text ''"),
        ({"_id": {"$regex": "^65f0"}}, r"match no \$regex"),
        ({"$expr": {"$eq": ["$_id", "first"]}}, "holds ids"),
        ({"a": [{"b": {"$function": {}}}]}, "runs code on the server"),
        ({"$expr": {"$accumulator": {}}}, "runs code on the server"),
        ({"_tdb.p": "other"}, "internal"),
        ({"$or": [{"_tdb": 1}]}, "internal"),
        ({"$expr": {"$eq": ["$_tdb.p", "other"]}}, "internal"),
        ({"$expr": {"$eq": [{"$getField": "_tdb"}, 1]}}, "internal"),
        ({1: 2}, "keys must be strings"),
        ({"a\0": 2}, "NUL"),
        ("x", "a filter is a dict"),
        ([("a", 1)], "a filter is a dict"),
        ({"a": np.ones(3)}, r"\.tolist\(\)"),
        ({"a": 2**63}, "64-bit"),
        ({"a": {1, 2}}, "pass a list"),
        ({"a": object()}, "cannot be stored"),
        ({"a": dt.date(2024, 1, 1)}, "datetime"),
        ({"a": "\ud800"}, "Unicode"),
        ({"a": {"$nin": ["x" * 2**20] * 17}}, "the filter has 17 MB, and MongoDB takes 16 MB"),
        ({"a": dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5)))}, "'a': .*years 1 to 9999"),
        ({"a": [dt.datetime(9999, 12, 31, 23, tzinfo=dt.timezone(dt.timedelta(hours=-5)))]}, "'a.0': .*years 1 to"),
        ({"a": 1 + 2j}, "cannot be stored"),
    ],
)
def test_refused_filters(filter: Any, says: str) -> None:
    with pytest.raises(QueryError, match=says):
        Query("data", filter)


def test_text_that_mentions_internals_outside_expressions_is_fine() -> None:
    assert Query("data", {"note": "$_tdb", "x": "_tdb"}).filter == {"note": "$_tdb", "x": "_tdb"}


def test_cyclic_and_deep_filters() -> None:
    filter: dict[str, Any] = {}
    filter["a"] = filter
    with pytest.raises(QueryError, match="nested deeper"):
        Query("data", filter)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"limit": 0}, "between 1"),
        ({"limit": -1}, "between 1"),
        ({"limit": 2.0}, "whole number"),
        ({"limit": True}, "whole number"),
        ({"sort": [("a", 2)]}, "1 .ascending. or -1"),
        ({"sort": [("a", "asc")]}, "1 .ascending. or -1"),
        ({"sort": [("a", 1), ("a", -1)]}, "twice"),
        ({"sort": 3}, "sort is a list"),
        ({"sort": "-label"}, r'for descending order write \("label", -1\)'),
        ({"sort": [("a",)]}, "pairs"),
        ({"sort": [("$natural", 1)]}, "not a field name"),
        ({"sort": [("_tdb.s", 1)]}, "internal"),
        ({"sort": [({"$meta": "x"}, 1)]}, "non-empty string"),
        ({"fields": "image"}, "list of names"),
        ({"fields": {"image": 1}}, "list of names"),
        ({"fields": ["a", "a"]}, "twice"),
        ({"fields": ["a", "a.b"]}, "part of it"),
        ({"fields": ["$where"]}, "not a field name"),
        ({"fields": [""]}, "non-empty"),
        ({"fields": [{"a": {"$function": 1}}]}, "non-empty string"),
    ],
)
def test_refused_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(QueryError, match=says):
        Query("data", {}, **options)


def test_forms_of_sort() -> None:
    assert Query("data", sort="a").sort == (("a", 1),)
    assert Query("data", sort=["a", ("b", -1)]).sort == (("a", 1), ("b", -1))
    assert Query("data", sort={"a": -1}).sort == (("a", -1),)
    assert Query("data", sort=[]).sort is None


def test_unknown_collection() -> None:
    with pytest.raises(QueryError, match="data, architectures, params, jobs, logs"):
        Query("segments")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"filter":{}}', '{"collection":"data","projection":{}}', '{"collection":"data","filter":3}'],
)
def test_malformed_json(text: str) -> None:
    with pytest.raises(QueryError):
        Query.from_json(text)


def test_from_json_checks_the_same_rules() -> None:
    with pytest.raises(QueryError, match="runs code"):
        Query.from_json('{"collection":"data","filter":{"$where":"1"}}')


def test_names_and_datasets_of_a_filter() -> None:
    assert names({"a.b": 1, "$or": [{"c": 1}, {"$and": [{"d": 2}]}]}) == {"a", "c", "d"}
    assert names({"$expr": {}}) is None
    assert names({}) == set()
    assert selected_datasets({"dataset": "a"}) == ["a"]
    assert selected_datasets({"dataset": {"$in": ["a", "b"]}, "x": 1}) == ["a", "b"]
    assert selected_datasets({"$and": [{"x": 1}, {"dataset": {"$eq": "c"}}]}) == ["c"]
    assert selected_datasets({"$or": [{"dataset": "a"}, {"x": 1}]}) is None
    assert selected_datasets({"dataset": {"$regex": "a"}}) is None

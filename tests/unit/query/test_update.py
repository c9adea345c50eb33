"""Update documents: what is offered, what is refused and with which advice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensordb_data import QueryError
from tensordb_data.query.update import clean_update


def test_values_become_plain_copies() -> None:
    given = {"$set": {"a": np.int64(3), "b": (1, 2)}, "$inc": {"c": 1}, "$push": {"d": {"$each": [1, 2]}}}
    cleaned = clean_update(given)
    assert cleaned == {"$set": {"a": 3, "b": [1, 2]}, "$inc": {"c": 1}, "$push": {"d": {"$each": [1, 2]}}}
    assert type(cleaned["$set"]["a"]) is int


@pytest.mark.parametrize(
    ("update", "says"),
    [
        ({}, "empty"),
        ({"label": 3}, r"\$set"),
        ([{"$set": {"a": 1}}], "pipelines"),
        ("x", "an update is a dict"),
        ({"$rename": {"a": "b"}}, "found '\\$rename'"),
        ({"$currentDate": {"a": True}}, "found '\\$currentDate'"),
        ({"$where": {}}, "runs code"),
        ({"$set": {"a": {"b": [{"$function": {}}]}}}, "begins with"),
        ({"$push": {"a": {"$each": [{"$function": {}}]}}}, "runs code"),
        ({"$set": {}}, "takes a dict"),
        ({"$set": 3}, "takes a dict"),
        ({"$set": {"_id": 3}}, "identity"),
        ({"$set": {"_tdb.p": "x"}}, "internal"),
        ({"$set": {"tags.0": "x"}}, r"\.tag"),
        ({"$set": {"a.$": 1}}, "positional"),
        ({"$set": {"a.$[x]": 1}}, "positional"),
        ({"$set": {"a..b": 1}}, "non-empty"),
        ({"$set": {"": 1}}, "non-empty"),
        ({"$set": {3: 1}}, "non-empty"),
        ({"$set": {"a": np.ones(2)}}, "array"),
        ({"$set": {"a": {"$b": 1}}}, "begins with"),
        ({"$inc": {"a": 2**64}}, "64-bit"),
    ],
)
def test_refused(update: Any, says: str) -> None:
    with pytest.raises(QueryError, match=says):
        clean_update(update)

"""Cursors of pages: where a page ends, as an opaque text, and the filter for what comes after it."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bson import ObjectId, json_util

from tensordb_data.common.bson_values import JSON
from tensordb_data.errors import QueryError
from tensordb_data.query.query import Query

_LONGEST = 10_000
_TYPES: Sequence[tuple[str, ...]] = (
    ("null",), ("number",), ("string",), ("object",), ("array",), ("binData",), ("objectId",), ("bool",), ("date",),
    ("timestamp",), ("regex",),
)  # fmt: skip
"""The types of values in the order in which MongoDB sorts them."""


@dataclass(frozen=True)
class Mark:
    """Where a page ends."""

    count: int
    """How many entities there have been up to here."""
    keys: tuple[Any, ...] | None = None
    """The values by which they are sorted of the last one; None where only the count tells."""


def to_text(query: Query, mark: Mark) -> str:
    """A mark as text."""
    doc = {"q": _print(query), "n": mark.count, "k": None if mark.keys is None else list(mark.keys)}
    return base64.urlsafe_b64encode(json_util.dumps(doc, json_options=JSON).encode()).decode().rstrip("=")


def from_text(query: Query, text: object) -> Mark:
    """The mark that `to_text` has written.

    Raises:
        QueryError: The text is no mark, or one of another query.
    """
    wrong = QueryError(f"page: after= is the `next` of an earlier page; found {text!r:.60}")
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise wrong
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        doc = json_util.loads(json.dumps(json.loads(data)), json_options=JSON)
        found, count, keys = doc["q"], int(doc["n"]), doc["k"]
    except (ValueError, TypeError, KeyError, RecursionError, ArithmeticError, AttributeError):
        raise wrong from None
    if not isinstance(found, str) or count < 0 or not (keys is None or isinstance(keys, list)):
        raise wrong
    if any(isinstance(key, (dict, list)) for key in keys or ()):
        raise wrong
    if found != _print(query):
        raise QueryError("page: after= is of another query; begin with after=None")
    return Mark(count, None if keys is None else tuple(keys))


def _print(query: Query) -> str:
    return query.replace(fields=None).fingerprint


def after(order: Sequence[tuple[str, int]], keys: Sequence[Any]) -> dict[str, Any]:
    """The filter for what comes after some keys in an order of single values."""
    branches: list[dict[str, Any]] = []
    for i, (name, way) in enumerate(order):
        same: list[dict[str, Any]] = [_equal(before, keys[j]) for j, (before, _) in enumerate(order[:i])]
        later = _later(name, way, keys[i])
        if later:
            branches.append({"$and": [*same, {"$or": later}]})
    return {"$or": branches} if branches else {"_id": {"$in": []}}


def _equal(name: str, value: Any) -> dict[str, Any]:
    return {name: value if value is None else {"$eq": value}}


def _later(name: str, way: int, value: Any) -> list[dict[str, Any]]:
    """Alternatives that together match what is sorted after a value; what is missing is sorted as None."""
    place = _place(value)
    types = [type for group in (_TYPES[place + 1 :] if way > 0 else _TYPES[1:place]) for type in group]
    found: list[dict[str, Any]] = [{name: {"$type": types}}] if types else []
    if way < 0 and place:
        found.append({name: None})
    if value is None:
        return found
    if isinstance(value, float) and math.isnan(value):  # before all numbers
        return [*found, {name: {"$type": "number", "$ne": value}}] if way > 0 else found
    found.append({name: {"$gt" if way > 0 else "$lt": value}})
    if way < 0 and place == 1:
        found.append({name: math.nan})
    return found


def _place(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, bool):
        return 7
    if isinstance(value, (int, float)):
        return 1
    if isinstance(value, str):
        return 2
    if isinstance(value, (bytes, bytearray)):
        return 5
    return 6 if isinstance(value, ObjectId) else 8


def value_of(doc: Mapping[str, Any], name: str) -> Any:
    """The single value at a dotted name; None if there is none."""
    found: Any = doc
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found

"""How often each value of a field occurs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Hashable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import QueryError
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.schema import Scalar
from tensordb_data.table.fields import Fields, check_field
from tensordb_data.table.paths import is_simple, values_at
from tensordb_data.warehouse.bound_query import reported

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

_NAN = float("nan")


def value_counts(bound: BoundQuery, field: str, missing: bool = False) -> dict[Any, int]:
    """See `Selection.value_counts`."""
    fields = check_field(bound, field, "value_counts")
    with reported(bound.query):
        counts = retry_while_unavailable(partial(_counts, bound, field, fields), reads=True)
    lacking = counts.pop((None, None), 0)
    out = {value: n for (_, value), n in sorted(counts.items(), key=_order)}
    if len(out) < len(counts):
        both = [value for kind, value in counts if kind == "bool"]
        raise QueryError(
            f"value_counts: {field!r} has truth values and numbers that are one key of a dict, {both!r:.100} among"
            f' them; narrow the query to one of the two: {{"{field}": {{"$type": "bool"}}}}'
        )
    return {**out, None: lacking} if missing and lacking else out


Counts = dict[tuple[str | None, Any], int]
"""By kind and value. The kind keeps True and 1 apart; (None, None) is for entities without a value."""


def _counts(bound: BoundQuery, field: str, fields: Fields | None) -> Counts:
    counts: Counts = {}
    query = bound.query
    asked = query.split is None and query.frozen is None and bound.warehouse.index.is_server and is_simple(field)
    if not asked:
        for doc in bound.cursor({field.split(".")[0]: 1}):
            found = False
            for value in values_at(doc, field):
                _add(counts, field, value, 1)
                found = True
            if not found:
                _add(counts, field, None, 1)
        return counts
    kinds = None if fields is None else (fields.get(field) or {}).values()
    single = bool(kinds) and all(isinstance(kind, Scalar) and kind.kind != "json" for kind in kinds or ())
    stages: list[dict[str, Any]] = []
    if not (single or field in ("_id", "dataset")):
        stages = [{"$project": {"_id": 0, "v": f"${field}"}}]
        stages += [{"$unwind": {"path": "$v", "preserveNullAndEmptyArrays": True}}]
    group = {"$group": {"_id": "$v" if stages else f"${field}", "n": {"$sum": 1}}}
    for filter in bound.within_limit():
        for row in bound.collection.aggregate(
            [{"$match": filter}, *stages, group], allowDiskUse=True, **bound.time_limit
        ):
            _add(counts, field, row["_id"], row["n"])
    return counts


def _add(counts: Counts, field: str, value: Any, n: int) -> None:
    if not isinstance(value, Hashable):
        example = f"{field}.{next(iter(value), 'name')}" if isinstance(value, dict) else f"{field}.0"
        raise QueryError(
            f"value_counts: {field!r} holds a {type(value).__name__}, which is no single value ({value!r:.100}); "
            f"name what is in it, such as {example!r}"
        )
    key = keyed(value)
    counts[key] = counts.get(key, 0) + n


def keyed(value: Any) -> tuple[str | None, Any]:
    """A value with its kind, so that equal values are one key, and True and 1 are two."""
    if value is None:
        return None, None
    if isinstance(value, bool):
        return "bool", value
    if isinstance(value, (int, float)):
        return "number", _NAN if value != value else value if isinstance(value, float) else int(value)
    return type(value).__name__, value


def _order(item: tuple[tuple[str | None, Any], int]) -> tuple[Any, ...]:
    (kind, value), n = item
    if kind in ("number", "bool"):
        return -n, "", float("inf") if value != value else value, ""
    return -n, str(kind), 0, value.isoformat() if isinstance(value, dt.datetime) else str(value)


def most_frequent(counts: Iterable[tuple[tuple[str | None, Any], int]], top: int) -> dict[Any, int]:
    """The most frequent values of some counts, most frequent first."""
    return {value: n for (_, value), n in sorted(counts, key=_order)[:top]}

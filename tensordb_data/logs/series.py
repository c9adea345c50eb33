"""Read a metric over the steps of runs. The server summarises a million rows as a few hundred points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tensordb_data.errors import QueryError
from tensordb_data.query.query import check_name
from tensordb_data.warehouse.bound_query import reported

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Series:
    """A metric of one run and kind, as arrays of the same length. It has at most as many points as were asked for.

    A point stands for the rows of a range of steps. All series of a call have the same ranges. `mean`, `low` and `high`
    are those of the finite values in the range, and NaN if there are none.
    """

    run: str
    kind: str
    name: str
    step: Array
    """Mean step of the rows, float64."""
    mean: Array
    low: Array
    high: Array
    count: Array
    """Finite values, int64."""
    nonfinite: Array
    """Values that were nan or infinite, int64."""


def read_series(rows: BoundQuery, name: str, points: int) -> list[Series]:
    """See `LogSelection.series`."""
    check_name(name, "series")
    if not isinstance(points, int) or isinstance(points, bool) or points < 1:
        raise QueryError(f"points is a number of points, at least 1; found {points!r}")
    with reported(rows.query):
        bounds = next(iter(_aggregate(rows, name, [{"$group": {
            "_id": None, "low": {"$min": "$step"}, "high": {"$max": "$step"}
        }}])), None)  # fmt: skip
        if bounds is None:
            return []
        found = _aggregate(rows, name, _buckets(name, bounds["low"], bounds["high"], points))
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for point in found:
            groups.setdefault((point["_id"]["run"], point["_id"]["kind"]), []).append(point)
    return [
        Series(run, kind, name, *(np.array([point[key] for point in of], type) for key, type in _COLUMNS))
        for (run, kind), of in sorted(groups.items())
    ]


_COLUMNS = (
    ("step", np.float64), ("mean", np.float64), ("low", np.float64), ("high", np.float64),
    ("count", np.int64), ("nonfinite", np.int64),
)  # fmt: skip


def _buckets(name: str, low: int, high: int, points: int) -> list[dict[str, Any]]:
    value = f"${name}"
    # To the server nan is less than any number, and so is not above -inf.
    finite = {"$and": [{"$gt": [value, -math.inf]}, {"$lt": [value, math.inf]}]}
    kept = {"$cond": [finite, value, None]}
    width = max(1.0, (high - low + 1) / points)
    place = {"$floor": {"$divide": [{"$subtract": ["$step", low]}, width]}}
    return [
        {"$group": {
            "_id": {"run": "$run", "kind": "$kind", "place": place},
            "step": {"$avg": "$step"}, "mean": {"$avg": kept}, "low": {"$min": kept}, "high": {"$max": kept},
            "count": {"$sum": {"$cond": [finite, 1, 0]}}, "nonfinite": {"$sum": {"$cond": [finite, 0, 1]}},
        }},
        {"$sort": {"_id": 1}},
    ]  # fmt: skip


def _aggregate(rows: BoundQuery, name: str, stages: list[dict[str, Any]]) -> Any:
    first: list[dict[str, Any]] = [{"$match": rows.filter()}]
    if rows.query.limit is not None:
        first += [{"$sort": dict(rows.sort())}, {"$limit": rows.query.limit}]
    return rows.collection.aggregate([*first, {"$match": {name: {"$type": "number"}}}, *stages], allowDiskUse=True)

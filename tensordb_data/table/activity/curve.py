"""A curve of a run from a few of its rows, which the index finds, however many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.query.query import Query
from tensordb_data.warehouse.bound_query import BoundQuery

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_AT_STEP = 4  # rows at one step that are read at most, on average
_LOSSES = ("loss", "error", "err")


def sampled_curve(warehouse: Warehouse, run: str, kind: str, metric: str, points: int) -> list[tuple[int, float]]:
    """Steps and values of a metric, at some `points` steps that are equally far from each other, in order.

    Rows in which it is not a number are left out. A value may be nan or infinite.

    Args:
        warehouse: The warehouse.
        run: The run.
        kind: The kind of its rows.
        metric: The name of the value.
        points: How many steps to look at.
    """
    of = {"run": run, "kind": kind}
    ends = [_rows(warehouse, of, [("step", way), ("_id", way)], 1, ["step"]) for way in (1, -1)]
    steps = [row["step"] for end in ends for row in end if isinstance(row.get("step"), int)]
    if len(steps) < 2:
        return []
    low, high = steps
    wanted = sorted({*range(low, high + 1, max(1, (high - low) // points)), high})
    rows = _rows(warehouse, {**of, "step": {"$in": wanted}}, [("step", 1)], _AT_STEP * points, ["step", metric])
    found = [(row["step"], row.get(metric)) for row in rows]
    return [(step, value) for step, value in found if isinstance(value, (int, float)) and not isinstance(value, bool)]


def thinned(curve: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most so many of the points, equally far from each other; the first and the last among them."""
    if len(curve) <= most:
        return list(curve)
    return [curve[round(at * (len(curve) - 1) / (most - 1))] for at in range(most)]


def main_metric(names: Sequence[str]) -> str | None:
    """The metric that tells most of a run: a loss, if there is one."""
    losses = [name for name in names if any(word in name.lower() for word in _LOSSES)]
    return "loss" if "loss" in names else next(iter([*losses, *names]), None)


def kinds_of(warehouse: Warehouse, run: str) -> list[str]:
    """The kinds of rows that a run has, without those that hold no metrics."""
    found = BoundQuery(warehouse, Query("logs", {"run": run})).distinct("kind")
    return sorted(each for each in found if isinstance(each, str) and each not in ("system", "output"))


def _rows(
    warehouse: Warehouse, filter: Mapping[str, Any], sort: list[tuple[str, int]], limit: int, fields: Sequence[str]
) -> list[Mapping[str, Any]]:
    query = Query("logs", filter, sort=sort, limit=limit, fields=fields)
    return list(BoundQuery(warehouse, query).cursor())

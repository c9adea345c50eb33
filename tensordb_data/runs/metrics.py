"""The last and the best value of each metric of runs, from their rows and their parameter sets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tensordb_data.common.chunks import chunks
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.runs.attempts import Attempt, sets_in_line
from tensordb_data.warehouse.metrics import less_is_better

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_RUNS = 100  # whose lines are in one filter, which the server compares with each of their sets


@dataclass
class Metrics:
    """What is known of the metrics of one run."""

    last: dict[str, float] = field(default_factory=dict)
    """The value of the highest step."""
    best: dict[str, float] = field(default_factory=dict)
    """The highest finite value; of a loss or an error the lowest."""
    at: dict[str, Any] = field(default_factory=dict)
    """The step of `last`."""

    def add_last(self, name: str, step: Any, value: float) -> None:
        """Take in the value of the highest step that was found in one collection; what is no number comes first."""
        order = step if isinstance(step, (int, float)) else -1
        if order > self.at.get(name, -2):
            self.at[name], self.last[name] = order, value

    def add_best(self, name: str, low: float | None, high: float | None) -> None:
        """Take in the lowest and the highest finite value that were found in one collection."""
        less = less_is_better(name)
        value = low if less else high
        if value is not None:
            known = self.best.get(name, value)
            self.best[name] = min(known, value) if less else max(known, value)


def read_metrics(warehouse: Warehouse, runs: Mapping[str, Sequence[Attempt]]) -> dict[str, Metrics]:
    """The metrics of some runs, by their names. The server reads their sets, and their rows that are not superseded.

    Rows of kind `"system"` do not count. A set of a superseded step can still be loaded, so it may be the best, and not
    the last.

    Args:
        warehouse: The warehouse.
        runs: The attempts of each run, by its name.
    """
    found: dict[str, Metrics] = {}
    rows = {**_of(warehouse, runs), "superseded": None, "kind": {"$ne": "system"}}
    lines = {run: line for run, attempts in runs.items() if (line := sets_in_line(attempts))}
    parts = [("logs", rows, True), ("params", _of(warehouse, runs.keys() - lines.keys()), True)]
    for some in chunks(list(lines), _RUNS):
        scope, others = _of(warehouse, some), [{"run": run, "$nor": [lines[run]]} for run in some]
        parts += [("params", {**scope, "$nor": others}, True), ("params", {**scope, "$or": others}, False)]
    for collection, filter, current in parts:
        for each in _grouped(warehouse, collection, filter):
            run, name = each["_id"]["run"], each["_id"]["name"]
            metrics = found.setdefault(run, Metrics())
            if current:
                metrics.add_last(name, each["last"]["step"], each["last"]["value"])
            metrics.add_best(name, each["low"], each["high"])
    return found


def _of(warehouse: Warehouse, runs: Iterable[str]) -> dict[str, Any]:
    return {"_tdb.p": warehouse.project, "run": {"$in": list(runs)}}


def _grouped(warehouse: Warehouse, collection: str, filter: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    number = {"$and": [{"$isNumber": "$$this.v"}, {"$ne": ["$$this.k", "step"]}]}
    value = "$metric.v"
    # To the server nan is less than any number, and so is not above -inf.
    finite = {"$cond": [{"$and": [{"$gt": [value, -math.inf]}, {"$lt": [value, math.inf]}]}, value, None]}
    stages: list[dict[str, Any]] = [
        {"$match": dict(filter)},
        {"$project": {
            "run": 1, "step": 1, "metric": {"$filter": {"input": {"$objectToArray": "$$ROOT"}, "cond": number}},
        }},
        {"$unwind": "$metric"},
        {"$group": {
            "_id": {"run": "$run", "name": "$metric.k"}, "low": {"$min": finite}, "high": {"$max": finite},
            "last": {"$max": {"step": "$step", "id": "$_id", "value": value}},
        }},
    ]  # fmt: skip
    mongo = warehouse.index[collection]
    return retry_while_unavailable(lambda: list(mongo.aggregate(stages, allowDiskUse=True)), reads=True)

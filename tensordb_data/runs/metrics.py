"""The last and the best value of each metric of runs, from their rows and their parameter sets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.warehouse.metrics import less_is_better

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse


@dataclass
class Metrics:
    """What is known of the metrics of one run."""

    last: dict[str, float] = field(default_factory=dict)
    """The value of the highest step."""
    best: dict[str, float] = field(default_factory=dict)
    """The highest finite value; of a loss or an error the lowest."""
    at: dict[str, Any] = field(default_factory=dict)
    """The step of `last`."""

    def add(self, name: str, step: int | None, last: float, low: float | None, high: float | None) -> None:
        """Take in what was found of a metric in one collection."""
        order = -1 if step is None else step
        if order > self.at.get(name, -2):
            self.at[name], self.last[name] = order, last
        less = less_is_better(name)
        value = low if less else high
        if value is not None:
            known = self.best.get(name, value)
            self.best[name] = min(known, value) if less else max(known, value)


def read_metrics(warehouse: Warehouse, runs: Sequence[str]) -> dict[str, Metrics]:
    """The metrics of some runs, by their names. The server reads all rows of these runs that are not superseded.

    Rows of kind `"system"` do not count.
    """
    found: dict[str, Metrics] = {}
    scope = {"_tdb.p": warehouse.project, "run": {"$in": list(runs)}}
    rows = {**scope, "superseded": None, "kind": {"$ne": "system"}}
    for collection, filter in (("logs", rows), ("params", scope)):
        for each in _grouped(warehouse, collection, filter):
            run, name = each["_id"]["run"], each["_id"]["name"]
            last = each["last"]
            found.setdefault(run, Metrics()).add(name, last["step"], last["value"], each["low"], each["high"])
    return found


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

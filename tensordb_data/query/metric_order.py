"""The order of parameter sets by a metric: numbers first, then texts, and sets without one or with NaN last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_OWN = frozenset(("_id", "run", "step", "created", "tags"))
_KEY = "_tdb_order"


def metrics_of(sort: Sequence[tuple[str, int]] | None) -> list[str]:
    """The metrics in a sort of parameter sets."""
    return [name for name, _ in sort or () if name not in _OWN and not name.startswith("_tdb")]


class ByMetric:
    """The documents of parameter sets in the order of metrics. It is read as a cursor is, from the first one each time.

    MongoDB puts missing values and NaN before all numbers. So the set with the lowest loss would be one without a loss.

    Args:
        collection: The pymongo collection.
        filter: The documents.
        sort: Names and directions, 1 or -1.
        limit: How many; None for all.
        projection: What to read of each; None for everything.
        time_limit: The option of pymongo that limits its time, if there is a limit.
    """

    def __init__(
        self,
        collection: Any,
        filter: Mapping[str, Any],
        sort: Sequence[tuple[str, int]],
        limit: int | None,
        projection: Mapping[str, Any] | None,
        time_limit: Mapping[str, int],
    ) -> None:
        self._collection, self._options = collection, time_limit
        self._stages = ordered(filter, sort, limit)
        self._stages += [] if projection is None else [{"$project": dict(projection)}]
        self._open: Any = None

    def __iter__(self) -> Iterator[Any]:
        self.close()
        self._open = self._collection.aggregate(self._stages, allowDiskUse=True, **self._options)
        return iter(self._open)

    def clone(self) -> ByMetric:
        """Itself, since each iteration begins anew."""
        return self

    def close(self) -> None:
        """Let go of what is open on the server."""
        if self._open is not None:
            self._open.close()
            self._open = None


def ordered(filter: Mapping[str, Any], sort: Sequence[tuple[str, int]], limit: int | None) -> list[dict[str, Any]]:
    """The stages of a pipeline that give documents of parameter sets in the order of metrics.

    Args:
        filter: The documents.
        sort: Names and directions, 1 or -1.
        limit: How many; None for all.
    """
    keys = {name: f"{_KEY}.{number}" for number, name in enumerate(metrics_of(sort))}
    kinds = {key: _kind(name) for name, key in keys.items()}
    order: dict[str, int] = {}
    for name, direction in sort:
        order |= {keys[name]: 1} if name in keys else {}
        order[name] = direction
    stages: list[dict[str, Any]] = [{"$match": filter}, {"$set": kinds}, {"$sort": order}]
    stages += [] if limit is None else [{"$limit": limit}]
    return [*stages, {"$unset": _KEY}]


def _kind(name: str) -> dict[str, Any]:
    """0 for a number, 1 for a text and the like, 2 for NaN and for what is missing."""
    value = f"${name}"
    last = {"$or": [{"$eq": [value, float("nan")]}, {"$lte": [value, None]}]}
    return {"$cond": [last, 2, {"$cond": [{"$isNumber": value}, 0, 1]}]}

"""Go through samples in their default order, by ranges of sequence numbers, for as long as there is time.

A filter that few samples match, and that no index serves, may read all documents before the first match. A range of
sequence numbers is served by an index, so that each takes about as long as it is wide.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tensordb_data.query.datasets import selected_datasets

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

_FIRST = 2_000  # sequence numbers of the first range, which is gone through whatever time it takes
_GROWTH = 8

Position = tuple[str, int]
"""A dataset, and the sequence number of the last sample that was gone through."""


def can_walk(bound: BoundQuery) -> bool:
    """Whether a query gives samples in their default order, and is sent at once."""
    query = bound.query
    return query.collection == "data" and query.sort is None and query.split is None and query.frozen is None


def datasets_of(bound: BoundQuery) -> list[tuple[str, int]]:
    """The datasets that a query may match, in order, each with the sequence number of its newest sample."""
    versions = bound.warehouse.datasets.versions(selected_datasets(bound.query.filter))
    return sorted((name, sequence) for name, (sequence, _) in versions.items() if sequence)


@dataclass(frozen=True)
class Part:
    """Some of the samples."""

    filter: dict[str, Any]
    """Which samples these are."""
    end: Position
    """Where it ends."""
    time_limit: dict[str, int]
    """The option that ends a read of it when the time of the walk is up; empty for the first one."""


class Walk:
    """The parts that a query is gone through in. Whoever iterates reads each part before the next one.

    The first part is small and has no limit, so that each walk gets further than the one before it.

    Args:
        bound: A query that `can_walk`.
        seconds: How long to go on.
        after: Where to begin; None for the beginning.
    """

    def __init__(self, bound: BoundQuery, seconds: float, after: Position | None = None) -> None:
        self._bound, self._until = bound, time.monotonic() + seconds
        self.datasets: Sequence[tuple[str, int]] = datasets_of(bound)
        self.total = sum(sequence for _, sequence in self.datasets)
        self._after = after
        self.finished = False
        """Whether there is nothing left to go through."""

    def looked(self, at: Position | None) -> float:
        """How much of all lies before a position, from 0 to 1."""
        if at is None or not self.total:
            return 0.0 if at is None and self.total else 1.0
        before = sum(sequence for name, sequence in self.datasets if name < at[0])
        here = next((min(at[1], sequence) for name, sequence in self.datasets if name == at[0]), 0)
        return min(1.0, (before + here) / self.total)

    def __iter__(self) -> Iterator[Part]:
        width, first = _FIRST, True
        for name, newest in self.datasets:
            low = 0
            if self._after is not None:
                if name < self._after[0]:
                    continue
                low = self._after[1] if name == self._after[0] else 0
            while low < newest:
                now = time.monotonic()
                left = self._until - now
                if left <= 0 and not first:
                    return
                high = min(newest, low + width)
                some = {"dataset": name, "_tdb.s": {"$gt": low, "$lte": high}}
                limit = {} if first else self._bound.within(left).time_limit
                yield Part(some, (name, high), limit)
                low, first = high, False
                took = time.monotonic() - now
                if took * _GROWTH < self._until - time.monotonic():
                    width *= _GROWTH
                elif took > left / 2:
                    width = max(_FIRST, width // 2)
        self.finished = True

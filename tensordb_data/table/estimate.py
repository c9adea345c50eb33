"""How many entities match, and what they are like, from some that are drawn at random: in bounded time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pymongo.errors import ExecutionTimeout

from tensordb_data.common.html import Report
from tensordb_data.errors import QueryError
from tensordb_data.table.bounded import AtLeast, count_number, count_within
from tensordb_data.table.walk import can_walk, datasets_of
from tensordb_data.warehouse.bound_query import reported

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery

EXACT = 10_000
"""Up to so many matching entities are counted one by one."""
_TRY = 0.25  # seconds for that
_LONGER = 2.0  # where nothing can be drawn
_WIDTH = 1.96  # standard deviations on each side of 95 %


@dataclass(frozen=True)
class Estimate(Report):
    """About how many there are."""

    value: int
    low: int
    """There are not fewer, in 19 cases out of 20."""
    high: int
    """There are not more, in 19 cases out of 20."""
    exact: bool
    """Whether they were counted."""

    def __int__(self) -> int:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:,}" if self.exact else f"≈ {self.value:,} ({self.low:,} to {self.high:,})"


@dataclass(frozen=True)
class Drawn:
    """Those of the samples that were drawn which match."""

    docs: Sequence[Mapping[str, Any]]
    places: int
    """How many sequence numbers were drawn. Some are of samples that were deleted, or do not match."""
    total: int
    """How many sequence numbers there are."""

    @property
    def factor(self) -> float:
        """How many samples each of them stands for."""
        return self.total / self.places if self.places else 0.0


def few(bound: BoundQuery, seconds: float = _TRY) -> int | None:
    """How many entities match, if these are few enough to read, and are counted in time."""
    limit = min(bound.query.limit or EXACT + 1, EXACT + 1)
    wanted = bound.within(seconds).replaced(bound.query.replace(limit=limit))
    with reported(bound.query):
        try:
            found = wanted.count()
        except ExecutionTimeout:
            return None
    return found if found <= EXACT else None


def drawable(bound: BoundQuery) -> bool:
    """Whether some of the entities can be drawn at random: samples, which have numbers."""
    return can_walk(bound.replaced(bound.query.replace(sort=None))) and bound.query.limit is None


def draw_places(
    bound: BoundQuery, sample: int, seed: int, projection: Mapping[str, Any], seconds: float | None = None
) -> Drawn:
    """Read the matching ones of some sequence numbers, which are a function of the seed and of how many there are."""
    datasets = datasets_of(bound)
    total = sum(sequence for _, sequence in datasets)
    drawn = min(sample, total)
    places = np.sort(np.random.default_rng(seed).choice(total, drawn, replace=False)) if total else np.empty(0, int)
    some: list[dict[str, Any]] = []
    before = 0
    for name, sequence in datasets:
        low, high = np.searchsorted(places, [before, before + sequence])
        if high > low:
            numbers = (places[low:high] - before + 1).tolist()
            some.append({"dataset": name, "_tdb.s": {"$in": numbers}})
        before += sequence
    if not some:
        return Drawn([], 0, 0)
    bare = bound.within(seconds)
    extra = some[0] if len(some) == 1 else {"$or": some}
    options = {} if not bare.time_limit else {"max_time_ms": bare.time_limit["maxTimeMS"]}
    with reported(bound.query):
        docs = list(bare.collection.find(bare.filter(extra), projection, batch_size=sample, **options))
    return Drawn(docs, drawn, total)


def estimate(bound: BoundQuery, sample: int, seed: int) -> Estimate:
    """See `Selection.estimate`."""
    count_number(sample, "estimate: sample")
    check_seed(seed, "estimate")
    found = few(bound)
    if found is not None:
        return Estimate(found, found, found, True)
    if not drawable(bound):
        return _counted(bound)
    drawn = draw_places(bound, sample, seed, {"_id": 1}, bound.seconds)
    hits, places, total = len(drawn.docs), drawn.places, drawn.total
    if places == total:
        return Estimate(hits, hits, hits, True)
    low, high = _interval(hits, places)
    # What is drawn was seen, and so were the numbers that do not match.
    lowest, highest = max(hits, math.floor(low * total)), min(total - (places - hits), math.ceil(high * total))
    return Estimate(round(hits / places * total), lowest, highest, False)


def check_seed(seed: object, what: str) -> None:
    """Refuse what is no seed.

    Raises:
        QueryError: It is not a whole number from 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise QueryError(f"{what}: seed is a whole number from 0; found {seed!r:.100}")


def _counted(bound: BoundQuery) -> Estimate:
    """Where nothing can be drawn: what is counted within some time, and at most what there is."""
    found = count_within(bound, None, _LONGER)
    if not isinstance(found, AtLeast):
        return Estimate(found, found, found, True)
    most = int(bound.collection.estimated_document_count())
    return Estimate(int(found), int(found), max(int(found), most), False)


def _interval(hits: int, drawn: int) -> tuple[float, float]:
    """The interval of Wilson for a rate, at 95 %."""
    rate, z2 = hits / drawn, _WIDTH**2
    middle = (rate + z2 / (2 * drawn)) / (1 + z2 / drawn)
    half = _WIDTH * math.sqrt(rate * (1 - rate) / drawn + z2 / (4 * drawn**2)) / (1 + z2 / drawn)
    return max(0.0, middle - half), min(1.0, middle + half)

"""SequenceSharding: cuts the units of a pass into rounds. A round gives one batch to each rank."""

from __future__ import annotations

import heapq

from tensordb_data.stream.order.sequence_order import SequenceOrder
from tensordb_data.stream.order.sharding import PassSharding, Rounds
from tensordb_data.stream.spec import End, StreamSpec


class SequenceSharding:
    """The rounds of the rest of a pass. It has the methods of a `PassSharding`, and counts positions of items as well.

    A batch is one unit of at most N tokens, or several units that are packed rows. Windows are looked at when a round
    of theirs is asked for, since it takes seconds to look at all windows of a large pass.

    Args:
        order: The order of the pass.
        start: The position from which the rest begins. Within a unit, the first batch has what is left of it.
        batch_size: The number of units in a batch.
        world: The number of ranks.
        end: What happens to units that do not fill a round.
    """

    def __init__(self, order: SequenceOrder, start: int, batch_size: int, world: int, end: End) -> None:
        self._order, self._start = order, start
        self._batch_size, self._world, self._end = batch_size, world, end
        self._next = start // order.tokens.samples_together
        self._ends: list[int] = []  # of the units that are known, from `start` on

    @property
    def rounds(self) -> int:
        """The number of batches that each rank receives until the end of the pass. It looks at all windows."""
        while not self._is_complete:
            self._look()
        return self._units.rounds

    def has(self, round_: int) -> bool:
        """Whether there is a round of this number, from 0 on."""
        self._look_for(round_)
        return round_ < self._units.rounds

    def batch(self, round_: int, rank: int) -> tuple[int, int]:
        """The positions `low` to `high` - 1 of a batch. Positions from the end on stand for those from 0 on."""
        self._look_for(round_)
        low, high = self._units.batch(round_, rank)
        return self._end_of(low - 1), self._end_of(high - 1)

    def position(self, rounds: int) -> int:
        """The number of items of the pass that are delivered after `rounds` of these rounds."""
        self._look_for(rounds - 1)
        return min(self._end_of(self._units.position(rounds) - 1), len(self._order))

    @property
    def _units(self) -> PassSharding:
        """The rounds of the units that are known."""
        return PassSharding(len(self._ends), 0, self._batch_size, self._world, self._end)

    @property
    def _is_complete(self) -> bool:
        return self._next >= self._order.windows

    def _look_for(self, round_: int) -> None:
        """Look at so many windows that a round cannot be changed by those behind them, however few units they have."""
        while not self._is_complete and len(self._ends) < (round_ + 2) * self._batch_size * self._world:
            self._look()

    def _look(self) -> None:
        ends = self._order.ends_of(self._next)
        self._ends += ends[ends > self._start].tolist()
        self._next += 1
        if self._is_complete and self._end == "short" and self._order.tokens.pack is None:
            self._share_tail()

    def _end_of(self, unit: int) -> int:
        """The position at which a unit ends. Unit -1 ends where the first one begins."""
        if unit < 0:
            return self._start
        if unit < len(self._ends):
            return self._ends[unit]
        left, n = unit - len(self._ends), len(self._order)
        laps = 1
        while True:
            for window in range(self._order.windows):
                ends = self._order.ends_of(window)
                if left < len(ends):
                    return laps * n + int(ends[left])
                left -= len(ends)
            laps += 1

    def _share_tail(self) -> None:
        """Cut the batches that do not fill a round into as many as there are ranks.

        If they have fewer samples than there are ranks, the samples that are missing are taken from the round before.
        If that has too few as well, the last ranks get samples twice, as `PassSharding` says.
        """
        world = self._world
        full, tail = divmod(len(self._ends), world)
        if not tail:
            return
        base, end = self._end_of(full * world - 1), self._ends[-1]
        if end - base >= world:
            self._ends[full * world :] = _cut(base, self._ends[full * world :], world)
            return
        before = self._end_of((full - 1) * world - 1) if full else base
        if full and end - before >= 2 * world:
            last = end - world
            kept = [stop for stop in self._ends[(full - 1) * world :] if stop < last]
            singles = list(range(last + 1, end + 1))
            self._ends[(full - 1) * world :] = [*_cut(before, [*kept, last], world), *singles]


def _cut(base: int, ends: list[int], count: int) -> list[int]:
    """The ends of `count` batches, which are those of the given ends. The largest are halved until there are enough."""
    starts = [base, *ends[:-1]]
    parts = [(low - high, low, high) for low, high in zip(starts, ends, strict=True)]
    heapq.heapify(parts)
    while len(parts) < count:
        _, low, high = heapq.heappop(parts)
        middle = (low + high + 1) // 2
        for part in ((low - middle, low, middle), (middle - high, middle, high)):
            heapq.heappush(parts, part)
    return sorted(high for _, _, high in parts)


def sharding_of(spec: StreamSpec, n: int, order: SequenceOrder | None, start: int) -> Rounds:
    """The rounds of the rest of a pass.

    Args:
        spec: Of the stream.
        n: The number of samples of the pass.
        order: Of the pass, if its samples are put together by their lengths.
        start: The position from which the rest begins.
    """
    if order is None:
        return PassSharding(n, start, spec.batch_size, spec.world_size, spec.end)
    return SequenceSharding(order, start, spec.batch_size, spec.world_size, spec.end)

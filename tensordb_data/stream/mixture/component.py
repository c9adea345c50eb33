"""Component: one stream of a mix. Says which samples of which passes come next, and on which data a pass is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import NotFoundError
from tensordb_data.stream.order.block_shuffle import BlockShuffle
from tensordb_data.stream.passes.registry import OpenedPasses, PassRegistry
from tensordb_data.stream.passes.resolver import PassResolver
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.state import Position, State

if TYPE_CHECKING:
    from tensordb_data.stream.deliver.stream import Stream


@dataclass(frozen=True)
class Pass:
    """The data of a pass, and the order of its samples."""

    data: State
    plan: Plan
    block_shuffle: BlockShuffle
    weights: NDArray[np.float64] | None


@dataclass(frozen=True)
class PositionRange:
    """The samples at positions `low` to `high` - 1 of pass `number`."""

    number: int
    low: int
    high: int
    of: Pass


class Component:
    """The passes of one stream of a mix, in one iteration.

    A pass is opened when the first task that needs it is made. This is before the first batch of the pass is delivered.
    `is_stale` says whether it was too early.
    """

    newest: Plan
    """The plan of the pass that was opened last."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._planner = stream, stream._planner
        # A pass that was opened again is registered and not opened a third time. With small streams, and data that
        # changes all the time, no pass would be fresh enough otherwise.
        self._resolver = PassResolver(stream._planner, stream._pinned, stream._registry or PassRegistry())
        self._passes: dict[int, Pass] = {}
        self._opened: list[tuple[int, State]] = []
        self._start = 0

    def begin(self, state: State) -> None:
        """Begin at `state`. Its pass is opened now, if it is not open.

        Raises:
            NotFoundError: The pass has no sample.
        """
        self._start, self._opened = state.at.number, []
        found = self._passes.get(self._start) if state.at.position else None
        self._passes = {} if found is None else {self._start: found}
        if found is None:
            self._open(state)

    def advance(self, state: State, samples: int) -> tuple[list[PositionRange], State]:
        """Find the next samples after `state`. Returns where they are, and the state after them.

        Raises:
            NotFoundError: A pass has no sample.
        """
        ranges = []
        while samples:
            number, low = state.at.number, state.at.position
            found = self._passes.get(number) or self._open(state)
            n = len(found.plan)
            high = min(low + samples, n)
            ranges.append(PositionRange(number, low, high, found))
            samples -= high - low
            between = State(Position(number + 1), block_shuffle=found.data.block_shuffle)
            state = found.data.at_position(Position(number, high)) if high < n else between
        return ranges, state

    def opened(self) -> OpenedPasses:
        """The passes that were opened ahead of time since the last call."""
        opened, self._opened = self._opened, []
        return opened

    def is_stale(self, opened: OpenedPasses) -> bool:
        """See `PassResolver.is_stale`."""
        return self._resolver.is_stale(opened)

    def forget_before(self, state: State) -> None:
        """Forget the passes that have ended at `state`."""
        for number in [number for number in self._passes if number < state.at.number]:
            del self._passes[number]

    def _open(self, state: State) -> Pass:
        number, planner = state.at.number, self._planner
        if state.at.position:
            data: State | None = state
        elif number <= self._start:
            data = self._resolver.resolve(number, state.block_shuffle)
        else:
            data = self._resolver.lookup(number)
        plan = planner.plan(data)
        if not len(plan):
            raise NotFoundError(f"a stream of the mix has no sample: none matches {self._stream.spec.query!r}")
        block_shuffle = state.block_shuffle or (data and data.block_shuffle) or planner.block_shuffle(plan)
        data = planner.state_of(plan, block_shuffle, data)
        if number > self._start:
            self._opened.append((number, data))
        self.newest = plan
        found = self._passes[number] = Pass(
            data, plan, BlockShuffle(*block_shuffle), planner.beside.cumulative_weights(plan, data.drawn_by)
        )
        return found


def of_one_plan(ranges: Sequence[PositionRange]) -> list[list[PositionRange]]:
    """Group neighbouring ranges over one plan, which can be read together."""
    groups: list[list[PositionRange]] = []
    for range_ in ranges:
        last = groups[-1][-1].of if groups else None
        if last is not None and last.plan is range_.of.plan and last.block_shuffle == range_.of.block_shuffle:
            groups[-1].append(range_)
        else:
            groups.append([range_])
    return groups

"""Member: one stream of a mix. Which samples of which passes come next, and what those passes go over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import NotFoundError
from tensordb_data.stream.order.block_shuffle import Blocks
from tensordb_data.stream.passes.registry import Opened, OwnPasses
from tensordb_data.stream.passes.resolver import Opening
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.state import Position, State

if TYPE_CHECKING:
    from tensordb_data.stream.deliver.stream import Stream


@dataclass(frozen=True)
class Pass:
    """What a pass goes over, and how it is shuffled or drawn from."""

    data: State
    plan: Plan
    blocks: Blocks
    weights: NDArray[np.float64] | None


@dataclass(frozen=True)
class Span:
    """Samples `low`..`high` - 1 of pass `number`."""

    number: int
    low: int
    high: int
    of: Pass


class Member:
    """The passes of one stream, in one iteration of a mix. A pass is opened when the first task that needs it is made,
    which is ahead of its delivery; `stale` says whether that was too early.
    """

    newest: Plan
    """That which was opened last."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._source = stream, stream._source
        # What was opened anew is fixed: with small streams, and data that changes all the time, no batch would be new
        # enough otherwise.
        self._opening = Opening(stream._source, stream._pinned, stream._passes or OwnPasses())
        self._passes: dict[int, Pass] = {}
        self._opened: list[tuple[int, State]] = []
        self._start = 0

    def begin(self, state: State) -> None:
        """The next samples to be walked over are those from `state` on, whose pass is opened now if it is not.

        Raises:
            NotFoundError: it has no sample.
        """
        self._start, self._opened = state.at.number, []
        found = self._passes.get(self._start) if state.at.position else None
        self._passes = {} if found is None else {self._start: found}
        if found is None:
            self._open(state)

    def walk(self, state: State, samples: int) -> tuple[list[Span], State]:
        """The samples that come next, and where the stream stands behind them.

        Raises:
            NotFoundError: a pass has none.
        """
        spans = []
        while samples:
            number, low = state.at.number, state.at.position
            found = self._passes.get(number) or self._open(state)
            n = len(found.plan)
            high = min(low + samples, n)
            spans.append(Span(number, low, high, found))
            samples -= high - low
            between = State(Position(number + 1), blocks=found.data.blocks)
            state = found.data.moved(Position(number, high)) if high < n else between
        return spans, state

    def opened(self) -> Opened:
        """The passes that were opened ahead of time since this was asked last."""
        opened, self._opened = self._opened, []
        return opened

    def stale(self, opened: Opened) -> bool:
        """See `Opening.stale`."""
        return self._opening.stale(opened)

    def delivered(self, state: State) -> None:
        """Forget the passes that were through at `state`."""
        for number in [number for number in self._passes if number < state.at.number]:
            del self._passes[number]

    def _open(self, state: State) -> Pass:
        number, source = state.at.number, self._source
        if state.at.position:
            data: State | None = state
        elif number <= self._start:
            data = self._opening.fixed(number, state.blocks)
        else:
            data = self._opening.known(number)
        plan = source.plan(data)
        if not len(plan):
            raise NotFoundError(f"a stream of the mix has no sample: none matches {self._stream.spec.query!r}")
        blocks = state.blocks or (data and data.blocks) or source.blocks(plan)
        data = State(Position(), plan.versions, plan.ids, len(plan), blocks=blocks)
        if number > self._start:
            self._opened.append((number, data))
        self.newest = plan
        found = self._passes[number] = Pass(data, plan, Blocks(*blocks), source.cumulative(plan))
        return found


def of_one_plan(spans: Sequence[Span]) -> list[list[Span]]:
    """The spans, in order, in groups that can be read together."""
    groups: list[list[Span]] = []
    for span in spans:
        if groups and groups[-1][-1].of.plan is span.of.plan and groups[-1][-1].of.blocks == span.of.blocks:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups

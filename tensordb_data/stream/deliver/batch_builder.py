"""Make: the batches of a task, of samples some of which may be bad, moved or deleted since."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import SampleError
from tensordb_data.stream.fetch.decode import Column
from tensordb_data.stream.fetch.failure_budget import Budget
from tensordb_data.stream.fetch.relocate import Living
from tensordb_data.stream.order.sharding import Run
from tensordb_data.stream.passes.registry import Opened
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import Block
from tensordb_data.stream.state import State
from tensordb_data.stream.stats import Clock, Stats
from tensordb_data.stream.transform.apply import position_keys, transformed
from tensordb_data.stream.transform.collate import Batch, cut
from tensordb_data.stream.transform.function import Transform

if TYPE_CHECKING:
    from tensordb_data.blobs.reader.reader import BlobReader
    from tensordb_data.stream.spec import StreamSpec
    from tensordb_data.stream.transform.worker_pool import Workers

S = TypeVar("S")


@dataclass(frozen=True)
class Delivery(Generic[S]):
    """A batch, its number of samples, and the state of the stream once it is delivered. Without samples, only that."""

    batch: Batch
    samples: int
    then: S
    opens: Opened = ()
    """Passes that were opened ahead of time, of which this is the first batch, or which have none for this reader."""


Deliveries = list[Delivery[State] | SampleError]


class Maker:
    """Makes batches of `spec`, for an iteration that began in pass `first`. Called by many threads at once."""

    transform: Transform | Workers | None = None
    finish: Callable[[Batch], Batch] | None = None
    """Makes of each batch what the loop is to get, on the threads that make it."""

    def __init__(
        self,
        spec: StreamSpec,
        first: int,
        reader: BlobReader,
        living: Living,
        budget: Budget,
        stats: Stats,
    ) -> None:
        self._spec, self._first, self._reader = spec, first, reader
        self._living, self._budget, self._stats = living, budget, stats

    def present(
        self,
        plan: Plan,
        block: Block,
        group: list[Run],
        positions: NDArray[np.int64],
        data: State,
        clock: Clock,
    ) -> Deliveries:
        """`batches` of a task of a plan, whose samples may have been moved or deleted since."""
        alive = self._living.mask(block, plan.versions)
        try:
            if alive is None:
                made = self._made(block, group, positions, data, clock)
                self._budget.tried(len(block))
                return made
            return self._remaining(plan, block, alive, group, positions, data, clock, self._made)
        except SampleError:
            block, alive = self._living.located(block)
        try:
            return self._remaining(plan, block, alive, group, positions, data, clock, partial(self.batches, plan=plan))
        except SampleError as error:
            return [error]

    def _remaining(
        self,
        plan: Plan,
        block: Block,
        alive: NDArray[np.bool_],
        group: list[Run],
        positions: NDArray[np.int64],
        data: State,
        clock: Clock,
        make: Callable[..., Deliveries],
    ) -> Deliveries:
        """The batches of a task, made of those of its samples that are there."""
        if alive.all():
            return make(block, group, positions, data, clock)
        made: Deliveries = []
        low = missed = 0
        for run in group:
            size = run.high - run.low
            rows = low + np.flatnonzero(alive[low : low + size])
            low, missed = low + size, missed + size - len(rows)
            part, at = block.take(rows), positions[rows]
            if not len(rows):
                # Ranks and workers count batches: one whose samples are all gone repeats others.
                found = next(self._living.others(plan, size), None)
                if found is None:
                    raise SampleError(f"all {len(plan)} samples of this pass were deleted since it began")
                part = found
                at = run.low + np.arange(len(part))
            made += make(part, [replace(run, high=run.low + len(part))], at, data, clock)
            if made and isinstance(made[-1], SampleError):
                break
        self._living.missed(missed)
        return made

    def batches(
        self,
        block: Block,
        group: list[Run],
        positions: NDArray[np.int64],
        data: State,
        clock: Clock,
        plan: Plan | None = None,
    ) -> Deliveries:
        """The batches of a task. After the first that fails come no more, and those before it are delivered. One of
        which no sample is good repeats others of the plan, for ranks and workers count batches; without a plan, only
        the position moves on.
        """
        self._budget.tried(len(block))
        try:
            return self._made(block, group, positions, data, clock)
        except SampleError:
            pass
        deliveries: Deliveries = []
        low = 0
        for run in group:
            rows = np.arange(low, low + run.high - run.low)
            low += len(rows)
            try:
                part, at = block.take(rows), positions[rows]
                good = self._budget.readable(part, partial(self._try, part, run, at, data))
                if len(good):
                    deliveries += self._made(part.take(good), [run], at[good], data, clock)
                elif plan is not None:
                    deliveries += self._repeated(plan, run, data, clock)
                else:
                    deliveries.append(Delivery({}, 0, self._then(run, data), self._opens(run, data)))
            except SampleError as error:
                return [*deliveries, error]
        return deliveries

    def _try(
        self, block: Block, run: Run, positions: NDArray[np.int64], data: State, rows: NDArray[np.int64]
    ) -> Deliveries:
        return self._made(block.take(rows), [run], positions[rows], data, Clock())

    def _repeated(self, plan: Plan, run: Run, data: State, clock: Clock) -> Deliveries:
        """A batch in place of one whose samples are all bad."""
        for block in self._living.others(plan, run.high - run.low):
            good = []
            at = run.low + np.arange(len(block))
            for row in range(len(block)):
                with contextlib.suppress(SampleError):  # it counts in its own turn
                    self._try(block, run, at, data, np.array([row]))
                    good.append(row)
            if good:
                return self._made(block.take(np.array(good)), [run], at[good], data, clock)
        raise SampleError(f"none of the {len(plan)} samples of this pass can be read")

    @staticmethod
    def _then(run: Run, data: State) -> State:
        return data.moved(run.then) if run.then.position else State(run.then, blocks=data.blocks)

    def _opens(self, run: Run, data: State) -> Opened:
        return ((run.number, data),) if run.low == 0 and run.number > self._first else ()

    def _made(
        self, block: Block, group: list[Run], positions: NDArray[np.int64], data: State, clock: Clock
    ) -> Deliveries:
        columns: dict[str, Column] = {}
        if group:
            keys = (
                position_keys(self._spec.seed, group[0].number, positions) if self._spec.transform is not None else []
            )
            stack = self._spec.ragged != "pad"
            columns = transformed(block, self._reader, self.transform, keys, stack, clock)
        deliveries: Deliveries = []
        low = 0
        with clock("batch"):
            for run in group:
                high = low + run.high - run.low if len(group) > 1 else len(block)
                batch = cut(columns, low, high, self._spec.ragged, block.name)
                if self.finish is not None:
                    batch = self.finish(batch)
                deliveries.append(Delivery(batch, high - low, self._then(run, data), self._opens(run, data)))
                low = high
        self._stats.worked(clock)
        return deliveries

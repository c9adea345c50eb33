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
from tensordb_data.stream.fetch.failure_budget import FailureBudget
from tensordb_data.stream.fetch.relocate import Relocator
from tensordb_data.stream.order.sharding import BatchRange
from tensordb_data.stream.passes.registry import OpenedPasses
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import SampleTable
from tensordb_data.stream.state import State
from tensordb_data.stream.stats import Clock, Stats
from tensordb_data.stream.transform.apply import load_transformed, position_keys
from tensordb_data.stream.transform.collate import Batch, slice_batch
from tensordb_data.stream.transform.function import Transform

if TYPE_CHECKING:
    from tensordb_data.blobs.reader.reader import BlobReader
    from tensordb_data.stream.spec import StreamSpec
    from tensordb_data.stream.transform.worker_pool import WorkerPool

S = TypeVar("S")


@dataclass(frozen=True)
class BatchWithState(Generic[S]):
    """A batch, its number of samples, and the state of the stream once it is delivered. Without samples, only that."""

    batch: Batch
    samples: int
    state_after: S
    opened_passes: OpenedPasses = ()
    """Passes that were opened ahead of time, of which this is the first batch, or which have none for this reader."""


StreamResults = list[BatchWithState[State] | SampleError]


class BatchBuilder:
    """Makes batches of `spec`, for an iteration that began in pass `first`. Called by many threads at once."""

    transform: Transform | WorkerPool | None = None
    finish: Callable[[Batch], Batch] | None = None
    """Makes of each batch what the loop is to get, on the threads that make it."""

    def __init__(
        self,
        spec: StreamSpec,
        first: int,
        reader: BlobReader,
        relocator: Relocator,
        budget: FailureBudget,
        stats: Stats,
    ) -> None:
        self._spec, self._first, self._reader = spec, first, reader
        self._relocator, self._budget, self._stats = relocator, budget, stats

    def build_planned(
        self,
        plan: Plan,
        table: SampleTable,
        group: list[BatchRange],
        positions: NDArray[np.int64],
        data: State,
        clock: Clock,
    ) -> StreamResults:
        """`batches` of a task of a plan, whose samples may have been moved or deleted since."""
        existing_rows = self._relocator.existing(table, plan.versions)
        try:
            if existing_rows is None:
                results = self._build(table, group, positions, data, clock)
                self._budget.count_tried(len(table))
                return results
            return self._remaining(plan, table, existing_rows, group, positions, data, clock, self._build)
        except SampleError:
            table, existing_rows = self._relocator.relocate(table)
        try:
            return self._remaining(
                plan, table, existing_rows, group, positions, data, clock, partial(self.build, plan=plan)
            )
        except SampleError as error:
            return [error]

    def _remaining(
        self,
        plan: Plan,
        table: SampleTable,
        existing_rows: NDArray[np.bool_],
        group: list[BatchRange],
        positions: NDArray[np.int64],
        data: State,
        clock: Clock,
        make: Callable[..., StreamResults],
    ) -> StreamResults:
        """The batches of a task, made of those of its samples that are there."""
        if existing_rows.all():
            return make(table, group, positions, data, clock)
        results: StreamResults = []
        low = count_deleted = 0
        for batch_range in group:
            size = batch_range.high - batch_range.low
            rows = low + np.flatnonzero(existing_rows[low : low + size])
            low, count_deleted = low + size, count_deleted + size - len(rows)
            part, at = table.take(rows), positions[rows]
            if not len(rows):
                # Ranks and workers count batches: one whose samples are all gone repeats others.
                found = next(self._relocator.substitutes(plan, size), None)
                if found is None:
                    raise SampleError(f"all {len(plan)} samples of this pass were deleted since it began")
                part = found
                at = batch_range.low + np.arange(len(part))
            results += make(part, [replace(batch_range, high=batch_range.low + len(part))], at, data, clock)
            if results and isinstance(results[-1], SampleError):
                break
        self._relocator.count_deleted(count_deleted)
        return results

    def build(
        self,
        table: SampleTable,
        group: list[BatchRange],
        positions: NDArray[np.int64],
        data: State,
        clock: Clock,
        plan: Plan | None = None,
    ) -> StreamResults:
        """The batches of a task. After the first that fails come no more, and those before it are delivered. One of
        which no sample is good repeats others of the plan, for ranks and workers count batches; without a plan, only
        the position moves on.
        """
        self._budget.count_tried(len(table))
        try:
            return self._build(table, group, positions, data, clock)
        except SampleError:
            pass
        results: StreamResults = []
        low = 0
        for batch_range in group:
            rows = np.arange(low, low + batch_range.high - batch_range.low)
            low += len(rows)
            try:
                part, at = table.take(rows), positions[rows]
                good = self._budget.loadable(part, partial(self._try, part, batch_range, at, data))
                if len(good):
                    results += self._build(part.take(good), [batch_range], at[good], data, clock)
                elif plan is not None:
                    results += self._repeated(plan, batch_range, data, clock)
                else:
                    results.append(
                        BatchWithState({}, 0, self._then(batch_range, data), self._opened_passes(batch_range, data))
                    )
            except SampleError as error:
                return [*results, error]
        return results

    def _try(
        self,
        table: SampleTable,
        batch_range: BatchRange,
        positions: NDArray[np.int64],
        data: State,
        rows: NDArray[np.int64],
    ) -> StreamResults:
        return self._build(table.take(rows), [batch_range], positions[rows], data, Clock())

    def _repeated(self, plan: Plan, batch_range: BatchRange, data: State, clock: Clock) -> StreamResults:
        """A batch in place of one whose samples are all bad."""
        for table in self._relocator.substitutes(plan, batch_range.high - batch_range.low):
            good = []
            at = batch_range.low + np.arange(len(table))
            for row in range(len(table)):
                with contextlib.suppress(SampleError):  # it counts in its own turn
                    self._try(table, batch_range, at, data, np.array([row]))
                    good.append(row)
            if good:
                return self._build(table.take(np.array(good)), [batch_range], at[good], data, clock)
        raise SampleError(f"none of the {len(plan)} samples of this pass can be read")

    @staticmethod
    def _then(batch_range: BatchRange, data: State) -> State:
        return (
            data.at_position(batch_range.position_after)
            if batch_range.position_after.position
            else State(batch_range.position_after, block_shuffle=data.block_shuffle)
        )

    def _opened_passes(self, batch_range: BatchRange, data: State) -> OpenedPasses:
        return ((batch_range.number, data),) if batch_range.low == 0 and batch_range.number > self._first else ()

    def _build(
        self, table: SampleTable, group: list[BatchRange], positions: NDArray[np.int64], data: State, clock: Clock
    ) -> StreamResults:
        columns: dict[str, Column] = {}
        if group:
            keys = (
                position_keys(self._spec.seed, group[0].number, positions) if self._spec.transform is not None else []
            )
            stack = self._spec.ragged != "pad"
            columns = load_transformed(table, self._reader, self.transform, keys, stack, clock)
        results: StreamResults = []
        low = 0
        with clock("batch"):
            for batch_range in group:
                high = low + batch_range.high - batch_range.low if len(group) > 1 else len(table)
                batch = slice_batch(columns, low, high, self._spec.ragged, table.name)
                if self.finish is not None:
                    batch = self.finish(batch)
                results.append(
                    BatchWithState(
                        batch, high - low, self._then(batch_range, data), self._opened_passes(batch_range, data)
                    )
                )
                low = high
        self._stats.add_task(clock)
        return results

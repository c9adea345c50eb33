"""BatchBuilder: turns a task, the samples of some batches, into these batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import SampleError
from tensordb_data.stream.deliver.sequences import Sequences
from tensordb_data.stream.order.sharding import BatchRange
from tensordb_data.stream.passes.registry import OpenedPasses
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import SampleTable
from tensordb_data.stream.state import State
from tensordb_data.stream.stats import Clock, Stats
from tensordb_data.stream.transform.collate import Batch, slice_batch

if TYPE_CHECKING:
    from tensordb_data.stream.deliver.row_loader import RowLoader, Rows
    from tensordb_data.stream.spec import StreamSpec

S = TypeVar("S")


class BatchWithState(Generic[S]):
    """A batch, and the state of the stream after the batch was delivered.

    Args:
        batch: The batch.
        samples: How many it has. With none, only the state moves on.
        state_after: The state.
        opened_passes: Passes that were opened ahead of time, for this batch or for other readers before it.
    """

    __slots__ = ("batch", "opened_passes", "samples", "state_after")

    def __init__(self, batch: Batch, samples: int, state_after: S, opened_passes: OpenedPasses = ()) -> None:
        self.batch, self.samples, self.state_after, self.opened_passes = batch, samples, state_after, opened_passes


Results = list[BatchWithState[S] | SampleError]
"""The batches of a task, in order. An error is the last entry, and is raised in its place."""


@dataclass(frozen=True)
class Task:
    """The samples of one or more batches of one pass, which one thread loads together."""

    table: SampleTable
    ranges: list[BatchRange]
    """The batches. Their samples follow each other in `table`."""
    positions: NDArray[np.int64]
    """int64 [m]: the position in the pass of each sample."""
    data: State
    """The data of the pass."""
    clock: Clock
    plan: Plan | None = None
    """The plan that the table was taken from; None if it was read from a cursor."""
    opened_passes: OpenedPasses = ()
    """To be handed on with the first batch."""
    sequences: Sequences | None = None
    """How batches are made of sequences, if they are."""


class BatchBuilder:
    """Builds the batches of a stream; thread-safe.

    Args:
        spec: The spec of the stream.
        loader: Loads the samples.
        stats: Gets the times of each task.
        finish: Called with each batch, on the thread that built it. The loop gets what it returns.
    """

    def __init__(
        self, spec: StreamSpec, loader: RowLoader, stats: Stats, finish: Callable[[Batch], Batch] | None
    ) -> None:
        self._spec, self._loader, self._stats, self._finish = spec, loader, stats, finish

    def build(self, task: Task) -> Results[State]:
        """Build the batches of a task.

        A batch without a good sample repeats others of the plan. If there is no plan, only the position moves on.

        Returns:
            The batches. After the first error there are none.
        """
        if not task.ranges:
            return []
        versions = None if task.plan is None else task.plan.versions
        sizes = [range_.high - range_.low for range_ in task.ranges]
        keys = self._loader.keys(task.ranges[0].number, task.positions)
        results: Results[State] = []
        loaded = self._loader.load(task.table, keys, sizes, versions, task.clock)
        for range_, rows in zip(task.ranges, loaded, strict=False):
            try:
                if isinstance(rows, SampleError):
                    raise rows
                results.append(self._build_batch(task, range_, rows, () if results else task.opened_passes))
            except SampleError as error:
                results.append(error)
                break
        self._stats.add_task(task.clock)
        return results

    def _build_batch(
        self, task: Task, range_: BatchRange, rows: Rows, opened_passes: OpenedPasses
    ) -> BatchWithState[State]:
        at = range_.position_after
        state_after = task.data.at_position(at) if at.position else State(at, block_shuffle=task.data.block_shuffle)
        substituted = False
        if not len(rows):
            if task.plan is None:
                return BatchWithState({}, 0, state_after, opened_passes)
            rows = self._substitute(task, task.plan, range_)
            substituted = True
        with task.clock("batch"):
            sequences = task.sequences
            if sequences is not None and sequences.packing is not None:
                documents = sequences.documents(range_, None if substituted else rows.kept)
                batch = sequences.packing.batch(rows.columns, documents, rows.name)
            else:
                batch = slice_batch(rows.columns, 0, len(rows), self._spec.ragged, rows.name)
            if self._finish is not None:
                batch = self._finish(batch)
        return BatchWithState(batch, len(rows), state_after, opened_passes)

    def _substitute(self, task: Task, plan: Plan, range_: BatchRange) -> Rows:
        """Other samples for a batch that has lost all of its own.

        Raises:
            SampleError: No sample of the plan is left.
        """
        count = range_.high - range_.low
        if task.sequences is not None:
            plan, count = task.sequences.substitutes(plan), 1  # of which any batch can hold one
        rows = self._loader.load_substitutes(plan, count, range_.number, range_.low, task.clock)
        if rows is not None:
            return rows
        if self._loader.all_deleted(plan):
            raise SampleError(f"all {len(plan)} samples of this pass were deleted since it began")
        raise SampleError(f"none of the {len(plan)} samples of this pass can be read")

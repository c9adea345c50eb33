"""RowLoader: loads the samples of a table, some of which may be bad, moved, or deleted since the plan was made."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import SampleError
from tensordb_data.stream.fetch.decode import Column, Decoding
from tensordb_data.stream.fetch.relocate import FrozenRelocator, Relocator
from tensordb_data.stream.plan.index_snapshot import Deletions
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import SampleTable
from tensordb_data.stream.stats import Clock
from tensordb_data.stream.transform.apply import load_transformed, position_keys

if TYPE_CHECKING:
    from tensordb_data.stream.fetch.failure_budget import FailureBudget
    from tensordb_data.stream.spec import StreamSpec
    from tensordb_data.stream.state import Versions
    from tensordb_data.stream.stats import Stats
    from tensordb_data.stream.transform.apply import OpenTransform
    from tensordb_data.warehouse.context import Warehouse


@dataclass(frozen=True)
class Rows:
    """The loaded values of some samples."""

    columns: dict[str, Column]
    kept: NDArray[np.int64]
    """int64 [m]: which of the requested samples these are. Deleted and bad samples are missing."""
    table: SampleTable
    first: int = 0
    """The row of the table from which the first of these samples was loaded."""

    def __len__(self) -> int:
        return len(self.kept)

    def name(self, row: int) -> str:
        """How errors speak of the sample in `row`."""
        return self.table.name(self.first + row)


class RowLoader:
    """Loads and transforms the samples of one stream; thread-safe.

    Args:
        warehouse: Where the samples are.
        spec: The spec of the stream.
        transform: The transform of the stream, if it has one. The caller closes it.
        budget: Counts bad samples, and raises when there are too many.
        stats: Counts deleted samples.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        spec: StreamSpec,
        transform: OpenTransform | None,
        budget: FailureBudget,
        stats: Stats,
    ) -> None:
        self._reader, self._spec, self._transform = warehouse.blobs.reader, spec, transform
        self._budget = budget
        self._relocator = (Relocator if spec.query.frozen is None else FrozenRelocator)(warehouse, stats)

    def note_deletions(self, seen: Deletions) -> None:
        """Note which deletions there were at some time, see `Relocator.note`."""
        self._relocator.note(seen)

    def has_deletions(self, versions: Versions) -> bool:
        """Whether samples were deleted since a plan of these versions was made."""
        return self._relocator.has_deletions(versions)

    def count_tried(self, samples: int) -> None:
        """Count samples that were read without `load`."""
        self._budget.count_tried(samples)

    def keys(self, number: int, positions: NDArray[np.int64]) -> list[int]:
        """The random keys of the samples at `positions` of pass `number`. Empty if nothing draws random numbers."""
        return [] if not self._spec.draws else position_keys(self._spec.seed, number, positions)

    def load(
        self, table: SampleTable, keys: Sequence[int], sizes: Sequence[int], versions: Versions | None, clock: Clock
    ) -> list[Rows | SampleError]:
        """Load the samples of a table, in parts.

        Deleted samples are left out. So are bad samples, as far as `max_failures` allows. All parts are loaded at once.
        Only if this fails, the blobs are located anew, and each part is loaded on its own.

        Args:
            table: The samples.
            keys: Their random keys, from `keys`, if something draws random numbers.
            sizes: The number of samples of each part. A part becomes one batch.
            versions: The versions of the plan that the table was taken from. None if the table was just read from the
                index: then no sample of it is looked for again.
            clock: Counts the time of this task.

        Returns:
            The rows of each part. If a part fails, its error is the last entry.
        """
        self._budget.count_tried(len(table))
        rows = np.arange(len(table))
        if versions is not None and (existing := self._relocator.existing(table, versions)) is not None:
            rows = np.flatnonzero(existing)
        try:
            loaded = self._split(self._load(table, keys, rows, clock), sizes)
        except SampleError:
            if versions is not None:
                table, existing = self._relocator.relocate(table, versions)
                rows = np.flatnonzero(existing)
            loaded = self._load_parts(table, keys, rows, sizes, clock)
        self._relocator.count_deleted(len(table) - len(rows))
        return loaded

    def load_substitutes(self, plan: Plan, count: int, number: int, low: int, clock: Clock) -> Rows | None:
        """Load samples from the start of a plan, in place of samples that are deleted or bad.

        Ranks and workers count batches. So a batch that has lost all of its samples cannot be left out, and repeats
        others.

        Args:
            plan: The plan.
            count: The number of samples to load, at most.
            number: The pass, and
            low: the position in it, from which the random keys are made.
            clock: Counts the time of this task.

        Returns:
            At least one sample; None if no sample of the plan is left that can be loaded.
        """
        for table in self._relocator.substitutes(plan, count):
            keys = self.keys(number, low + np.arange(len(table)))
            good = []
            for row in range(len(table)):
                with contextlib.suppress(SampleError):  # a bad sample is counted where it is in the order
                    self._load(table, keys, np.array([row]), Clock())
                    good.append(row)
            if good:
                return self._load(table, keys, np.array(good), clock)
        return None

    def all_deleted(self, plan: Plan) -> bool:
        """Whether no sample of a plan is there any more."""
        return next(self._relocator.substitutes(plan, 1), None) is None

    def _load(self, table: SampleTable, keys: Sequence[int], rows: NDArray[np.int64], clock: Clock) -> Rows:
        if len(rows) < len(table):
            table, keys = table.take(rows), [keys[row] for row in rows.tolist()] if keys else []
        if not len(rows):
            return Rows({}, rows, table)
        packed = self._spec.tokens is not None and self._spec.tokens.pack is not None
        stack = self._spec.ragged != "pad" and not packed
        decoding = Decoding(self._spec.views, self._spec.fields, keys)
        return Rows(load_transformed(table, self._reader, self._transform, decoding, stack, clock), rows, table)

    def _split(self, rows: Rows, sizes: Sequence[int]) -> list[Rows | SampleError]:
        """The rows of each part of a table, by the sizes of the parts."""
        if len(sizes) == 1:
            return [rows]
        parts: list[Rows | SampleError] = []
        ends = np.cumsum(sizes)
        first = 0
        for size, stop in zip(sizes, np.searchsorted(rows.kept, ends).tolist(), strict=True):
            columns = {name: column[first:stop] for name, column in rows.columns.items()}
            kept = rows.kept[first:stop] - (ends[len(parts)] - size)
            parts.append(Rows(columns, kept, rows.table, first))
            first = stop
        return parts

    def _load_parts(
        self, table: SampleTable, keys: Sequence[int], rows: NDArray[np.int64], sizes: Sequence[int], clock: Clock
    ) -> list[Rows | SampleError]:
        """Load each part on its own, and leave out its bad samples."""
        parts: list[Rows | SampleError] = []
        low = 0
        for size in sizes:
            mine = rows[(rows >= low) & (rows < low + size)]
            try:
                part = self._load_good(table, keys, mine, clock)
            except SampleError as error:
                return [*parts, error]
            parts.append(Rows(part.columns, part.kept - low, part.table))
            low += size
        return parts

    def _load_good(self, table: SampleTable, keys: Sequence[int], rows: NDArray[np.int64], clock: Clock) -> Rows:
        """Load those of the samples at `rows` that are good.

        Raises:
            SampleError: More samples are bad than `max_failures` allows.
        """
        try:
            return self._load(table, keys, rows, clock)
        except SampleError:
            good = self._budget.loadable(table, rows, lambda row: self._load(table, keys, np.array([row]), Clock()))
            return self._load(table, keys, good, clock)

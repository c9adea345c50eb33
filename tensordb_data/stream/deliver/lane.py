"""Lane: makes batches of small samples on the thread that iterates. To hand them over to a thread would take longer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from tensordb_data.blobs.reader.checked_blobs import CheckedBlobs, can_be_checked
from tensordb_data.errors import SampleError, StorageError
from tensordb_data.schema import BlobField
from tensordb_data.stream.deliver.batch_builder import BatchWithState, Results
from tensordb_data.stream.fetch.decode import Column, values_of
from tensordb_data.stream.order.sharding import BatchRange, positions_of
from tensordb_data.stream.passes.registry import OpenedPasses
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.state import State
from tensordb_data.stream.stats import Clock
from tensordb_data.stream.transform.collate import Batch, slice_batch

if TYPE_CHECKING:
    from tensordb_data.blobs.reader.reader import BlobReader
    from tensordb_data.stream.deliver.row_loader import RowLoader
    from tensordb_data.stream.spec import StreamSpec
    from tensordb_data.stream.stats import Stats

_AT_ONCE = 1 << 20
"""Bytes that are gathered at once. More would not stay in the cache of a core."""
_WINDOW = 8192
"""Samples that are looked up at once."""

Rows = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""The rows of a plan at some positions of a pass."""


@dataclass(frozen=True)
class Making:
    """What makes the batches of one iteration."""

    spec: StreamSpec
    loader: RowLoader
    stats: Stats
    finish: Callable[[Batch], Batch] | None
    """Called with each batch."""


class Lane:
    """The batches of one pass, made one after the other where they are asked for.

    Args:
        making: What makes batches.
        plan: The plan of the pass.
        blobs: For each blob field, its blobs.
        rows: Finds the rows of the plan at some positions.
        data: The data of the pass.
        ranges: The batches.
        opened_passes: To be handed on with the first batch.
    """

    def __init__(
        self,
        making: Making,
        plan: Plan,
        blobs: dict[str, CheckedBlobs],
        rows: Rows,
        data: State,
        ranges: Iterator[BatchRange],
        opened_passes: OpenedPasses,
    ) -> None:
        self._making, self._plan, self._blobs, self._rows, self._data = making, plan, blobs, rows, data
        self.opened_passes = opened_passes
        """To be handed on with the next batch."""
        self.left = ranges
        """The batches that have not been made. They have to be made in another way."""
        self.is_over = False
        """Whether all batches were made."""
        layout = plan.table.layout
        first = layout.schemas[plan.table.datasets[0]]
        self._fields = {name: cast(BlobField, first[name]) for name in blobs}
        each = making.spec.batch_size * sum(field.fixed_nbytes or 0 for field in self._fields.values())
        self._at_once = min(max(_AT_ONCE // max(each, 1), 1), 8)
        self._window = max(_WINDOW // (making.spec.batch_size * self._at_once), 1) * self._at_once

    def __iter__(self) -> Generator[Results[State], None, None]:
        """Yield the batches, until the pass ends or they have to be made in another way."""
        making = self._making
        while window := list(islice(self.left, self._window)):
            made = 0
            try:
                if making.loader.has_deletions(self._plan.versions):
                    return
                for results in self._batches(window):
                    made += len(results)
                    yield results
            except (StorageError, SampleError):
                return  # whoever makes them in the other way finds out what is wrong with which sample
            finally:
                self.left = chain(window[made:], self.left)
            if made < len(window):
                return
        self.is_over = True

    def _batches(self, window: list[BatchRange]) -> Iterator[Results[State]]:
        making, clock = self._making, Clock()
        with clock("index"):
            positions = positions_of(window)
            rows = self._rows(positions)
            found = {name: blobs.find(rows) for name, blobs in self._blobs.items()}
            places = {name: at for name, at in found.items() if at is not None}
            if len(places) < len(found):
                return
            values = values_of(self._plan.table, rows)
        making.loader.count_tried(len(rows))
        low = 0
        for first in range(0, len(window), self._at_once):
            begun = Clock.wall()
            ranges = window[first : first + self._at_once]
            high = low + sum(range_.high - range_.low for range_ in ranges)
            columns = self._gather(places, values, low, high, clock)
            seconds = Clock.wall() - begun
            clock.add("fetch", seconds, 0.0)
            if high == len(rows):
                making.stats.add_task(clock)
            yield self._cut(columns, ranges)
            low = high

    def _gather(
        self, places: dict[str, NDArray[np.int64]], values: dict[str, Column], low: int, high: int, clock: Clock
    ) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        for name in self._plan.table.layout.fields:
            if name in places:
                stored = self._blobs[name].gather(places[name][low:high])
                clock.bytes += stored.nbytes
                clock.blobs += high - low
                columns[name] = self._fields[name].decode_rows(stored)
            else:
                columns[name] = values[name][low:high]
        return columns

    def _cut(self, columns: dict[str, Column], ranges: Sequence[BatchRange]) -> Results[State]:
        spec, finish, data = self._making.spec, self._making.finish, self._data
        plain = all(isinstance(column, np.ndarray) for column in columns.values())
        results: Results[State] = []
        low = 0
        for range_ in ranges:
            high = low + range_.high - range_.low
            batch: dict[str, Any]
            if plain:
                batch = {name: column[low:high] for name, column in columns.items()}
            else:
                batch = slice_batch(columns, low, high, spec.ragged, str)
            if finish is not None:
                batch = finish(batch)
            at = range_.position_after
            state = data.at_position(at) if at.position else State(at, block_shuffle=data.block_shuffle)
            results.append(BatchWithState(batch, high - low, state, self.opened_passes))
            self.opened_passes = ()
            low = high
        return results


def blobs_of(plan: Plan, spec: StreamSpec, reader: BlobReader) -> dict[str, CheckedBlobs] | None:
    """The blobs from which the batches of a plan can be made in a lane, if they were read before; None if not."""
    if not may_use_lane(plan, spec):
        return None
    found = {name: reader.checked(refs, int(refs.length[0])) for name, refs in plan.table.refs.items()}
    blobs = {name: checked for name, checked in found.items() if checked is not None}
    return blobs if len(blobs) == len(found) else None


def may_use_lane(plan: Plan, spec: StreamSpec) -> bool:
    """Whether the samples of a plan are small and plain: blobs of one size, and no transform."""
    table = plan.table
    if spec.transform is not None or spec.tokens is not None or spec.decode or table.inline or not len(table):
        return False
    total = 0
    for name, refs in table.refs.items():
        fields = [table.layout.schemas[dataset][name] for dataset in table.datasets]
        first = fields[0]
        if not isinstance(first, BlobField) or first.fixed_nbytes is None:
            return False
        same = all(isinstance(field, BlobField) and field.stored_alike(first) for field in fields[1:])
        if not same or not can_be_checked(refs, first.fixed_nbytes):
            return False
        total += first.fixed_nbytes
    return spec.batch_size * max(total, 1) <= _AT_ONCE

"""Take: reads samples of one stream for a mix, and puts those of several side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.common.buffer_pool import empty
from tensordb_data.errors import SampleError
from tensordb_data.stream.fetch.decode import Column
from tensordb_data.stream.fetch.relocate import Relocator
from tensordb_data.stream.mixture.component import PositionRange, of_one_plan
from tensordb_data.stream.order.block_shuffle import rows_at
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import SampleTable
from tensordb_data.stream.stats import Clock
from tensordb_data.stream.transform.apply import load_transformed, open_transform, position_keys
from tensordb_data.stream.transform.collate import Batch, slice_batch

if TYPE_CHECKING:
    from tensordb_data.stream.deliver.stream import Stream
    from tensordb_data.stream.fetch.failure_budget import FailureBudget
    from tensordb_data.stream.stats import Stats


@dataclass(frozen=True)
class Rows:
    """Values of some samples."""

    columns: dict[str, Column]
    name: Callable[[int], str]
    """How errors speak of each."""
    places: NDArray[np.int64]
    """Which they are, of those that were asked for: without the deleted and the bad ones."""


class ComponentReader:
    """Reads samples of one stream; thread-safe."""

    def __init__(self, stream: Stream, stats: Stats, budget: FailureBudget) -> None:
        self._spec = stream.spec
        self._reader = stream.warehouse.blobs.reader
        self._relocator = Relocator(stream.warehouse, stats)
        self._budget = budget
        self._transform = open_transform(stream.spec)

    def close(self) -> None:
        """End the processes that transform, if there are any."""
        if self._transform is not None:
            self._transform.close()

    def read(self, ranges: Sequence[PositionRange], clock: Clock) -> Rows | None:
        """The samples of spans over one plan, less those that were deleted since, and bad ones; None when none is left.

        Raises:
            SampleError: more samples are bad than the budget allows.
        """
        of = ranges[0].of
        with clock("index"):
            rows, keys = [], list[int]()
            for range_ in ranges:
                positions = np.arange(range_.low, range_.high)
                rows.append(rows_at(positions, len(of.plan), range_.number, self._spec, of.block_shuffle, of.weights))
                keys += self._keys(range_.number, positions)
            table = of.plan.table.take(np.concatenate(rows))
        count = len(table)
        self._budget.count_tried(count)
        existing_rows = self._relocator.existing(table, of.plan.versions)
        if existing_rows is None:
            try:
                return Rows(self._loaded(table, keys, clock), table.name, np.arange(count))
            except SampleError:
                table, existing_rows = self._relocator.relocate(table)
        there = np.flatnonzero(existing_rows)
        self._relocator.count_deleted(count - len(there))
        if not len(there):
            return None
        table, keys = table.take(there), _at(keys, there)
        try:
            return Rows(self._loaded(table, keys, clock), table.name, there)
        except SampleError:
            good = self._budget.loadable(table, partial(self._try, table, keys))
        if not len(good):
            return None
        table, keys = table.take(good), _at(keys, good)
        return Rows(self._loaded(table, keys, clock), table.name, there[good])

    def substitutes(self, plan: Plan, count: int, clock: Clock) -> Rows | None:
        """At most `count` samples from the start of a plan that are there and good; None when none is."""
        for table in self._relocator.substitutes(plan, count):
            keys = self._keys(0, np.arange(len(table)))
            good = []
            for row in range(len(table)):
                with contextlib.suppress(SampleError):  # it counts in its own turn
                    self._try(table, keys, np.array([row]))
                    good.append(row)
            if good:
                table, keys = table.take(np.array(good)), _at(keys, np.array(good))
                return Rows(self._loaded(table, keys, clock), table.name, np.arange(len(good)))
        return None

    def _keys(self, number: int, positions: NDArray[np.int64]) -> list[int]:
        return [] if self._transform is None else position_keys(self._spec.seed, number, positions)

    def _try(self, table: SampleTable, keys: list[int], rows: NDArray[np.int64]) -> dict[str, Column]:
        return self._loaded(table.take(rows), _at(keys, rows), Clock())

    def _loaded(self, table: SampleTable, keys: list[int], clock: Clock) -> dict[str, Column]:
        return load_transformed(table, self._reader, self._transform, keys, self._spec.ragged != "pad", clock)


def _at(keys: list[int], rows: NDArray[np.int64]) -> list[int]:
    return [keys[row] for row in rows.tolist()] if keys else []


@dataclass(frozen=True)
class BatchRequest:
    """A batch that is to be made."""

    choices: NDArray[np.int64]
    """int64 [batch]: which stream each sample comes from."""
    ranges: Sequence[Sequence[PositionRange]]
    """The samples of each stream, in order."""
    plans: Sequence[Plan]
    """Of each stream the plan that was opened last."""


class MixBatchBuilder:
    """Makes the batches of a mix."""

    def __init__(self, streams: Sequence[Stream], stats: Stats, budgets: Sequence[FailureBudget]) -> None:
        self._ragged = streams[0].spec.ragged
        with contextlib.ExitStack() as opened:
            self._all = [
                opened.enter_context(contextlib.closing(ComponentReader(stream, stats, budget)))
                for stream, budget in zip(streams, budgets, strict=True)
            ]
            self._opened = opened.pop_all()

    def close(self) -> None:
        """End what transforms."""
        self._opened.close()

    def batch(self, request: BatchRequest, clock: Clock) -> tuple[Batch, int]:
        """A batch, and its number of samples.

        Raises:
            SampleError: see `Taker.take`; the streams have different fields; or no sample is left.
        """
        found: list[Rows] = []
        places: list[NDArray[np.int64]] = []
        for number, reader in enumerate(self._all):
            where = np.flatnonzero(request.choices == number)
            for group in of_one_plan(request.ranges[number]):
                here, where = np.split(where, [sum(range_.high - range_.low for range_ in group)])
                rows = reader.read(group, clock)
                if rows is not None:
                    found.append(rows)
                    places.append(here[rows.places])
        if not found:
            # Ranks and workers count batches: one whose samples are all gone or bad repeats others.
            found = [self._others(request, clock)]
            places = [found[0].places]
        with clock("batch"):
            order = np.sort(np.concatenate(places))
            # Deleted samples leave no gaps.
            return self._joined(found, [np.searchsorted(order, place) for place in places]), len(order)

    def _others(self, request: BatchRequest, clock: Clock) -> Rows:
        for reader, plan in zip(self._all, request.plans, strict=True):
            found = reader.substitutes(plan, len(request.choices), clock)
            if found is not None:
                return found
        raise SampleError("no sample of any stream of the mix is left that can be read; begin anew")

    def _joined(self, found: Sequence[Rows], places: Sequence[NDArray[np.int64]]) -> Batch:
        def name(at: int) -> str:
            for rows, where in zip(found, places, strict=True):
                for row in np.flatnonzero(where == at).tolist():
                    return rows.name(row)
            raise IndexError(at)

        columns = side_by_side([rows.columns for rows in found], places)
        return slice_batch(columns, 0, sum(map(len, places)), self._ragged, name)


def side_by_side(parts: Sequence[dict[str, Column]], places: Sequence[NDArray[np.int64]]) -> dict[str, Column]:
    """The columns of all parts in one, the samples of each at its places.

    Raises:
        SampleError: the parts have different fields.
    """
    for part in parts[1:]:
        if part.keys() != parts[0].keys():
            raise SampleError(
                f"the streams of a mix must deliver the same fields: one has {', '.join(parts[0])}, another"
                f" {', '.join(part)}; name them with `fields`, or return them from the transforms"
            )
    return {name: _interleaved([part[name] for part in parts], places) for name in parts[0]}


def _interleaved(parts: list[Column], places: Sequence[NDArray[np.int64]]) -> Column:
    size = sum(map(len, places))
    if all(isinstance(part, np.ndarray) for part in parts):
        arrays = [part for part in parts if isinstance(part, np.ndarray)]
        if all(array.dtype == arrays[0].dtype and array.shape[1:] == arrays[0].shape[1:] for array in arrays):
            joined = empty((size, *arrays[0].shape[1:]), arrays[0].dtype)
            for where, array in zip(places, arrays, strict=True):
                joined[where] = array
            return joined
    items: list[Any] = [None] * size
    for where, part in zip(places, parts, strict=True):
        for at, item in zip(where.tolist(), part, strict=True):
            items[at] = item
    return items

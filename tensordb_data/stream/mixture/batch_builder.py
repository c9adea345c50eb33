"""MixBatchBuilder: reads the samples of several streams, and joins them into the batches of a mix."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.common.buffer_pool import empty
from tensordb_data.errors import SampleError
from tensordb_data.stream.deliver.row_loader import RowLoader, Rows
from tensordb_data.stream.fetch.decode import Column
from tensordb_data.stream.mixture.component import PositionRange, of_one_plan
from tensordb_data.stream.order.block_shuffle import rows_at
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.stats import Clock
from tensordb_data.stream.transform.apply import open_transform
from tensordb_data.stream.transform.collate import Batch, slice_batch

if TYPE_CHECKING:
    from tensordb_data.stream.deliver.stream import Stream
    from tensordb_data.stream.fetch.failure_budget import FailureBudget
    from tensordb_data.stream.stats import Stats


class ComponentReader:
    """Reads the samples of one component of a mix; thread-safe."""

    def __init__(self, stream: Stream, stats: Stats, budget: FailureBudget) -> None:
        self._spec = stream.spec
        self._transform = open_transform(stream.spec)
        self._loader = RowLoader(stream.warehouse, stream.spec, self._transform, budget, stats)

    def close(self) -> None:
        """End the processes that transform, if there are any."""
        if self._transform is not None:
            self._transform.close()

    def read(self, ranges: Sequence[PositionRange], clock: Clock) -> Rows:
        """Read the samples in the given ranges of plan positions.

        Samples deleted since the plan was made are left out, and so are bad ones, as far as `max_failures` allows.

        Args:
            ranges: Ranges over one plan.
            clock: Counts the time of this task.

        Returns:
            The values and, in `kept`, which of the requested samples they belong to.

        Raises:
            SampleError: More samples are bad than `max_failures` allows.
        """
        of = ranges[0].of
        with clock("index"):
            rows, keys = [], list[int]()
            for range_ in ranges:
                positions = np.arange(range_.low, range_.high)
                rows.append(rows_at(positions, len(of.plan), range_.number, self._spec, of.block_shuffle, of.weights))
                keys += self._loader.keys(range_.number, positions)
            table = of.plan.table.take(np.concatenate(rows))
        found = self._loader.load(table, keys, [len(table)], of.plan.versions, clock)[0]
        if isinstance(found, SampleError):
            raise found
        return found

    def read_substitutes(self, plan: Plan, count: int, clock: Clock) -> Rows | None:
        """Read at most `count` samples from the start of a plan; None if none is left that can be read."""
        return self._loader.load_substitutes(plan, count, 0, 0, clock)


@dataclass(frozen=True)
class BatchRequest:
    """Which samples a batch of a mix is built from."""

    choices: NDArray[np.int64]
    """int64 [batch]: the number of the stream from which each sample comes."""
    ranges: Sequence[Sequence[PositionRange]]
    """For each stream, its samples in order."""
    plans: Sequence[Plan]
    """For each stream, the plan that was opened last."""


class MixBatchBuilder:
    """Builds the batches of a mix; thread-safe."""

    def __init__(self, streams: Sequence[Stream], stats: Stats, budgets: Sequence[FailureBudget]) -> None:
        self._ragged = streams[0].spec.ragged
        with contextlib.ExitStack() as opened:
            self._readers = [
                opened.enter_context(contextlib.closing(ComponentReader(stream, stats, budget)))
                for stream, budget in zip(streams, budgets, strict=True)
            ]
            self._opened = opened.pop_all()

    def close(self) -> None:
        """End the processes that transform, if there are any."""
        self._opened.close()

    def build(self, request: BatchRequest, clock: Clock) -> tuple[Batch, int]:
        """Build a batch. Returns it, and its number of samples.

        Raises:
            SampleError: Too many samples are bad, see `ComponentReader.read`; the streams have different fields; or no
                sample is left.
        """
        parts: list[Rows] = []
        places: list[NDArray[np.int64]] = []
        for number, reader in enumerate(self._readers):
            where = np.flatnonzero(request.choices == number)
            for group in of_one_plan(request.ranges[number]):
                here, where = np.split(where, [sum(range_.high - range_.low for range_ in group)])
                rows = reader.read(group, clock)
                if len(rows):
                    parts.append(rows)
                    places.append(here[rows.kept])
        if not parts:
            parts = [self._substitutes(request, clock)]
            places = [parts[0].kept]
        with clock("batch"):
            order = np.sort(np.concatenate(places))  # deleted and bad samples leave gaps, which are closed
            return self._join(parts, [np.searchsorted(order, place) for place in places]), len(order)

    def _substitutes(self, request: BatchRequest, clock: Clock) -> Rows:
        for reader, plan in zip(self._readers, request.plans, strict=True):
            rows = reader.read_substitutes(plan, len(request.choices), clock)
            if rows is not None:
                return rows
        raise SampleError("no sample of any stream of the mix is left that can be read; begin anew")

    def _join(self, parts: Sequence[Rows], places: Sequence[NDArray[np.int64]]) -> Batch:
        def name(at: int) -> str:
            for rows, where in zip(parts, places, strict=True):
                for row in np.flatnonzero(where == at).tolist():
                    return rows.name(row)
            raise IndexError(at)

        columns = join_columns([rows.columns for rows in parts], places)
        return slice_batch(columns, 0, sum(map(len, places)), self._ragged, name)


def join_columns(parts: Sequence[dict[str, Column]], places: Sequence[NDArray[np.int64]]) -> dict[str, Column]:
    """Join the columns of all parts. The samples of each part go to its places.

    Raises:
        SampleError: The parts have different fields.
    """
    for part in parts[1:]:
        if part.keys() != parts[0].keys():
            raise SampleError(
                f"the streams of a mix must deliver the same fields: one has {', '.join(parts[0])}, another"
                f" {', '.join(part)}; name them with `fields`, or return them from the transforms"
            )
    return {name: _interleave([part[name] for part in parts], places) for name in parts[0]}


def _interleave(parts: list[Column], places: Sequence[NDArray[np.int64]]) -> Column:
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

"""StreamIteration: divides passes into tasks, runs the tasks on threads, and yields the batches in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.stream.deliver.batch_builder import BatchBuilder, BatchWithState, Results, Task
from tensordb_data.stream.deliver.lane import Lane, Making, blobs_of
from tensordb_data.stream.deliver.ordered_pool import ordered
from tensordb_data.stream.deliver.row_loader import RowLoader
from tensordb_data.stream.deliver.sequences import Sequences
from tensordb_data.stream.deliver.tail import Followed, follow
from tensordb_data.stream.fetch.failure_budget import FailureBudget
from tensordb_data.stream.fetch.prefetch import PrefetchTask, prefetching
from tensordb_data.stream.order.block_shuffle import BlockShuffle, rows_at
from tensordb_data.stream.order.sequence_order import SequenceOrder
from tensordb_data.stream.order.sequence_sharding import sharding_of
from tensordb_data.stream.order.sharding import BatchRange, Rounds, batch_ranges, positions_of
from tensordb_data.stream.passes.planner import Planner
from tensordb_data.stream.passes.registry import OpenedPasses
from tensordb_data.stream.plan.index_reader import IndexReader
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import FieldLayout, table_from_docs
from tensordb_data.stream.state import Position, State
from tensordb_data.stream.stats import Clock, Stats
from tensordb_data.stream.transform.apply import open_transform
from tensordb_data.stream.transform.collate import Batch

_TASK_BYTES = 4 << 20
_PAGE_BYTES = 2 << 20
_TASK_BATCHES = 64
_TASK_SAMPLES = 16
_FOLLOWED_BATCHES, _ENOUGH_BATCHES = 8, 2

Call = Callable[[], Results[State]]
"""A task that is ready to be run by a thread."""
CursorPage = tuple[list[dict[str, Any]], bool]


class StreamIteration:
    """One iteration of a stream.

    Args:
        planner: Makes the plans.
        start: The state from which the iteration begins.
        resolve_pass: Returns the data of a pass, or None if no reader has registered any. None if this reader is alone
            and the data is not pinned: then a pass goes over what is there when it begins.
        worker: (index, count) of this reader among those that share the batches of this rank.
        rounds: How many batches all these readers have received before.
        last: The iteration ends before the pass of this number. None: it does not end.
        threads: The number of threads that build batches.
        stats: Counts and times.
        budget: Counts bad samples.
        ended: Whether the iteration was closed. A stream that follows asks, since it has no other end.
        finish: Called with each batch, on the thread that built it. The loop gets what it returns.
    """

    def __init__(
        self,
        planner: Planner,
        start: State,
        resolve_pass: Callable[[int], State | None] | None,
        worker: tuple[int, int],
        rounds: int,
        last: int | None,
        threads: int,
        stats: Stats,
        budget: FailureBudget,
        ended: Callable[[], bool],
        finish: Callable[[Batch], Batch] | None,
    ) -> None:
        self._planner, self._spec = planner, planner.spec
        self._start, self._resolve_pass, self._worker, self._last = start, resolve_pass, worker, last
        self._rounds = rounds
        self._threads, self._stats = threads, stats
        self._ended = ended
        self._budget, self._finish = budget, finish

    def run(self) -> Generator[Results[State], None, None]:
        """Yield the results of one task after the other, until the passes end or the generator is closed."""
        warehouse, spec = self._planner.warehouse, self._spec
        with ExitStack() as opened:
            transform = open_transform(spec)
            if transform is not None:
                opened.callback(transform.close)
            self._loader = loader = RowLoader(warehouse, spec, transform, self._budget, self._stats)
            self._build = BatchBuilder(spec, loader, self._stats, self._finish).build
            threads = self._threads + spec.workers  # some of them wait for the processes that transform
            tasks = opened.enter_context(closing(self._tasks()))
            lanes: list[Lane] = []
            while True:
                yield from ordered(prefetching(_until_lane(tasks, lanes), warehouse.blobs.reader), threads, threads + 1)
                if not lanes:
                    return
                yield from lanes.pop()

    def _tasks(self) -> Generator[Call | Lane | None, None, None]:
        if self._spec.follow:
            yield from self._by_following()
            return
        at, first = self._start.at, self._rounds
        chosen = self._start.block_shuffle
        opened_passes: list[tuple[int, State]] = []
        is_ahead = False  # whether batches of before have not been delivered yet
        while self._last is None or at.number < self._last:
            if self._by_cursor(at):
                empty = yield from self._by_pages(at)
                is_ahead = True
            else:
                asked = time.monotonic()
                with self._stats.time_ahead("plan"):
                    data = self._start if at.position else self._resolve_pass and self._resolve_pass(at.number)
                    plan = self._planner.plan(data)
                if (seen := self._planner.deletions) is not None and seen.at >= asked:
                    self._loader.note_deletions(seen)
                chosen = chosen or (data and data.block_shuffle) or self._planner.block_shuffle(plan)
                data_of_pass = self._planner.state_of(plan, chosen, data)
                undecided = self._resolve_pass is not None and data is None  # it is decided as its first batch is due
                if is_ahead or (undecided and at.number > self._start.at.number):
                    opened_passes.append((at.number, data_of_pass))
                spec = self._spec
                order = self._planner.beside.sequence_order(plan, at.number, chosen)
                sharding = sharding_of(spec, len(plan), order, at.position)
                if len(plan) and at.position == 0 and not sharding.has(0):
                    raise self._all_dropped(len(plan))
                is_ahead = True
                for task in self._by_plan(plan, data_of_pass, order, sharding, at.number, first, opened_passes):
                    yield task
                    is_ahead = not (isinstance(task, Lane) and task.is_over)
                first += sharding.rounds
                empty = len(plan) == 0
            if empty and self._last is None:
                raise NotFoundError(f"an endless stream needs samples, and none matches {self._spec.query!r}")
            at = Position(at.number + 1)

    def _by_cursor(self, at: Position) -> bool:
        spec = self._spec
        alone = spec.world_size == 1 and self._worker == (0, 1) and self._resolve_pass is None
        if spec.query.frozen is not None:  # there is no cursor on it
            return False
        in_order = not spec.shuffle and not spec.replacement and not spec.query.sort and spec.end != "pad"
        return alone and in_order and spec.tokens is None and (at.position == 0 or at.after is not None)

    def _by_pages(self, at: Position) -> Generator[Call | None, None, bool]:
        """Yield tasks over the pages of a cursor. Returns whether no sample matches in the whole pass."""
        spec = self._spec
        versions = (self._start.versions if at.position else None) or self._planner.versions()
        layout = self._planner.layout(versions)
        limit = None if spec.query.limit is None else spec.query.limit - at.position
        if limit == 0:
            return False
        rows = spec.batch_size * self._batches_a_task(layout, _PAGE_BYTES)
        read = iter(IndexReader(self._planner.bound_query, layout, versions, rows, at.after, limit, spec.batch_size))
        position, seen = at.position, False
        with closing(ordered(repeat(partial(self._next_page, read)), 1, 1)) as pages:
            for page in pages:
                if page is None:
                    break
                docs, is_last = page
                seen = True
                data = State(versions=versions)
                opens = at.number > self._start.at.number and position == 0
                opened: OpenedPasses = ((at.number, data),) if opens else ()
                prepare = partial(self._page, layout, docs, is_last, data, at.number, position, opened)
                yield PrefetchTask(prepare, self._build)
                if position == self._start.at.position and at.number == self._start.at.number:
                    yield None  # the loop waits for the first batch, so it is yielded before the next page is read
                position += len(docs)
        if seen and spec.end == "drop" and position < spec.batch_size:
            raise self._all_dropped(position)
        return not seen and at.position == 0

    def _next_page(self, read: Iterator[CursorPage]) -> CursorPage | None:
        with self._stats.time_ahead("cursor"):
            return next(read, None)

    def _all_dropped(self, n: int) -> QueryError:
        tokens = self._spec.tokens
        if tokens is not None and (self._spec.end != "drop" or tokens.n is not None):
            what = 'long="drop"' if self._spec.end != "drop" else f'long={tokens.long!r} and end="drop"'
            return QueryError(
                f"nothing is left of {n} samples: {what} leaves out all that are longer than {tokens.most}, and batches"
                f" that do not make a round of {self._spec.world_size} ranks; make it larger, or use another end="
            )
        return QueryError(
            f'end="drop" drops everything: a pass has {n} samples, and a round {self._spec.batch_size} x'
            f" {self._spec.world_size} ranks; use smaller batches or another end="
        )

    def _page(
        self,
        layout: FieldLayout,
        docs: list[dict[str, Any]],
        is_last: bool,
        data: State,
        number: int,
        base: int,
        opened_passes: OpenedPasses = (),
    ) -> Task:
        """Prepare the batches of a page, whose first sample is at position `base` of pass `number`."""
        clock = Clock()
        with clock("index"):
            table = table_from_docs(layout, docs)
        size = self._spec.batch_size
        stop = len(docs) - len(docs) % size if self._spec.end == "drop" else len(docs)
        ranges = []
        for low in range(0, stop, size):
            high = min(low + size, stop)
            last = docs[high - 1]
            position_after = Position(number, base + high, (last["dataset"], last["_tdb"]["s"]))
            if is_last and high == stop:
                position_after = Position(number + 1)
            ranges.append(BatchRange(number, base + low, base + high, position_after))
        positions = np.arange(base, base + stop)
        table = table if stop == len(docs) else table.take(np.arange(stop))
        return Task(table, ranges, positions, data, clock, opened_passes=opened_passes)

    def _by_following(self) -> Generator[Call | None, None, None]:
        position = self._start.at.position
        rows, enough = self._spec.batch_size * _FOLLOWED_BATCHES, self._spec.batch_size * _ENOUGH_BATCHES
        for page in follow(self._planner, dict(self._start.followed or {}), rows, enough, self._ended, self._stats):
            if page is None:
                yield None
                continue
            yield partial(self._followed_batches, *page, position)
            docs = page[2]
            position += len(docs)

    def _followed_batches(
        self, layout: FieldLayout, dataset: str, docs: list[dict[str, Any]], born: str, before: Followed, base: int
    ) -> Results[State]:
        """Build the batches of a page of a stream that follows. Their states say how far each dataset was followed."""
        results: Results[State] = []
        for result in self._build(self._page(layout, docs, False, State(), 0, base)):
            if isinstance(result, BatchWithState):
                at = result.state_after.at
                followed = {**before, dataset: (at.after[1], born)} if at.after is not None else before
                result.state_after = State(Position(0, at.position), followed=followed)
            results.append(result)
        return results

    def _by_plan(
        self,
        plan: Plan,
        data: State,
        order: SequenceOrder | None,
        sharding: Rounds,
        number: int,
        first: int,
        opened_passes: list[tuple[int, State]],
    ) -> Iterator[Call | Lane | None]:
        """Yield the batches of a pass as tasks. The first one takes what is in `opened_passes` with it."""
        size = self._batches_a_task(plan.table.layout, _TASK_BYTES)
        block_shuffle = BlockShuffle(*(data.block_shuffle or (0, 0)))
        weights = self._planner.beside.cumulative_weights(plan, data.drawn_by)
        ranges = batch_ranges(sharding, number, self._spec.rank, *self._worker, first)
        if (blobs := blobs_of(plan, self._spec, self._planner.warehouse.blobs.reader)) is not None:
            yield None  # what is under way may check more blobs, and comes first
            making = Making(self._spec, self._loader, self._stats, self._finish)
            find = partial(
                rows_at, n=len(plan), number=number, spec=self._spec, block_shuffle=block_shuffle, cumulative=weights
            )
            lane = Lane(making, plan, blobs, find, data, ranges, tuple(opened_passes))
            yield lane
            ranges, opened_passes[:] = lane.left, lane.opened_passes
        while group := list(islice(ranges, size)):
            prepare = partial(self._planned, plan, data, order, weights, group, tuple(opened_passes))
            opened_passes.clear()
            yield PrefetchTask(prepare, self._build)

    def _planned(
        self,
        plan: Plan,
        data: State,
        order: SequenceOrder | None,
        weights: NDArray[np.float64] | None,
        ranges: list[BatchRange],
        opened_passes: OpenedPasses,
    ) -> Task:
        """Prepare some batches of a plan."""
        clock = Clock()
        with clock("index"):
            positions = positions_of(ranges)
            sequences = None if order is None else Sequences.of(order, plan.table.layout, self._spec, positions)
            if sequences is None:
                block_shuffle = BlockShuffle(*(data.block_shuffle or (0, 0)))
                rows = rows_at(positions, len(plan), ranges[0].number, self._spec, block_shuffle, weights)
            else:
                rows = sequences.items.rows
            table = plan.table.take(rows)
        return Task(table, ranges, positions, data, clock, plan, opened_passes, sequences)

    def _batches_a_task(self, layout: FieldLayout, nbytes: int) -> int:
        """The number of batches in a task, of about `nbytes`.

        A task has enough bytes to be worth a hand-over between threads. It has few samples if each one takes work of
        its own, to be decoded or transformed. A page of a cursor is smaller than a task of a plan, because the first
        batch waits until all of the page is read.
        """
        if self._spec.tokens is not None:
            return 1
        fields = [s[name] for s in layout.schemas.values() for name in layout.fields if name in s]
        sizes = [field.fixed_nbytes for field in fields if field.is_blob]
        if self._spec.transform is not None or None in sizes:
            return -(-_TASK_SAMPLES // self._spec.batch_size)
        sample = sum(size for size in sizes if size is not None) + 8 * (len(fields) - len(sizes)) + 1
        return int(min(max(nbytes // (self._spec.batch_size * sample), 1), _TASK_BATCHES))


def _until_lane(
    tasks: Generator[Call | Lane | None, None, None], lanes: list[Lane]
) -> Generator[Call | None, None, None]:
    """Yield tasks until one is a lane, which is put into `lanes`."""
    for task in tasks:
        if isinstance(task, Lane):
            lanes.append(task)
            return
        yield task

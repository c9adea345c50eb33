"""Deliver: the stages in a row. Passes are cut into tasks, tasks run on threads, batches come out in order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.stream.deliver.batch_builder import BatchBuilder, BatchWithState, StreamResults
from tensordb_data.stream.deliver.ordered_pool import ordered
from tensordb_data.stream.deliver.tail import Followed, follow
from tensordb_data.stream.fetch.failure_budget import FailureBudget
from tensordb_data.stream.fetch.prefetch import PrefetchTask, prefetching
from tensordb_data.stream.fetch.relocate import Relocator
from tensordb_data.stream.order.block_shuffle import BlockShuffle, rows_at
from tensordb_data.stream.order.sharding import BatchRange, PassSharding, batch_ranges
from tensordb_data.stream.passes.planner import Planner
from tensordb_data.stream.passes.registry import OpenedPasses
from tensordb_data.stream.plan.index_reader import IndexReader
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import FieldLayout, SampleTable, table_from_docs
from tensordb_data.stream.state import Position, State
from tensordb_data.stream.stats import Clock, Stats
from tensordb_data.stream.transform.apply import open_transform
from tensordb_data.stream.transform.collate import Batch

_TASK_BYTES = 4 << 20
_PAGE_BYTES = 2 << 20
_TASK_BATCHES = 64
_TASK_SAMPLES = 16
_FOLLOWED_BATCHES, _ENOUGH_BATCHES = 8, 2

Task = Callable[[], StreamResults]
CursorPage = tuple[list[dict[str, Any]], bool]
Indexed = tuple[SampleTable, list[BatchRange], NDArray[np.int64], State, Clock]


class StreamIteration:
    """One iteration of a stream, from `start` on.

    `settled` gives the data of a pass, where it is fixed, and fixes that of the pass that comes first; `worker` is
    (index, count) among the readers that share this rank's batches, and `rounds` how many batches of them all came
    before; `last` is the number of the pass to end before.
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
        self._reader = planner.warehouse.blobs.reader
        relocator = Relocator(planner.warehouse, stats)
        self._builder = BatchBuilder(planner.spec, start.at.number, self._reader, relocator, budget, stats)
        self._builder.finish = finish

    def run(self) -> Generator[StreamResults, None, None]:
        """Deliveries, a task's at a time, until the passes are through or the generator is closed."""
        with ExitStack() as opened:
            transform = open_transform(self._spec)
            if transform is not None:
                opened.callback(transform.close)
            self._builder.transform = transform
            threads = self._threads + self._spec.workers  # of which some wait for the processes that transform
            yield from ordered(prefetching(self._tasks(), self._reader), threads, threads + 1)

    def _tasks(self) -> Generator[Task | None, None, None]:
        if self._spec.follow:
            yield from self._by_following()
            return
        at, first = self._start.at, self._rounds
        chosen = self._start.block_shuffle
        opened_passes: list[tuple[int, State]] = []
        while self._last is None or at.number < self._last:
            if self._by_cursor(at):
                empty = yield from self._by_pages(at)
            else:
                with self._stats.time_ahead("plan"):
                    data = self._start if at.position else self._resolve_pass and self._resolve_pass(at.number)
                    plan = self._planner.plan(data)
                chosen = chosen or (data and data.block_shuffle) or self._planner.block_shuffle(plan)
                if at.number > self._start.at.number:
                    opened_passes.append((at.number, _data(plan, chosen)))
                sharding = PassSharding(
                    len(plan), at.position, self._spec.batch_size, self._spec.world_size, self._spec.end
                )
                if len(plan) and sharding.rounds == 0 and at.position == 0:
                    raise self._all_dropped(len(plan))
                for task in self._by_plan(
                    plan, BlockShuffle(*chosen), sharding, at.number, first, tuple(opened_passes)
                ):
                    yield task
                    opened_passes.clear()
                first += sharding.rounds
                empty = len(plan) == 0
            if empty and self._last is None:
                raise NotFoundError(f"an endless stream needs samples, and none matches {self._spec.query!r}")
            at = Position(at.number + 1)

    def _by_cursor(self, at: Position) -> bool:
        spec = self._spec
        alone = spec.world_size == 1 and self._worker == (0, 1) and self._resolve_pass is None
        in_order = not spec.shuffle and not spec.replacement and not spec.query.sort and spec.end != "pad"
        return alone and in_order and (at.position == 0 or at.after is not None)

    def _by_pages(self, at: Position) -> Generator[Task | None, None, bool]:
        """Tasks that read a cursor. Returns whether nothing matched in the whole pass."""
        spec = self._spec
        versions = (
            self._start.versions if at.position and self._start.versions is not None else self._planner.versions()
        )
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
                make = partial(self._page, layout, docs, is_last, data, at.number, position)
                yield PrefetchTask(make, self._builder.build)
                if position == self._start.at.position and at.number == self._start.at.number:
                    yield None  # somebody waits for the first batch, and none of the pages behind it
                position += len(docs)
        if seen and spec.end == "drop" and position < spec.batch_size:
            raise self._all_dropped(position)
        return not seen and at.position == 0

    def _next_page(self, read: Iterator[CursorPage]) -> CursorPage | None:
        with self._stats.time_ahead("cursor"):
            return next(read, None)

    def _all_dropped(self, n: int) -> QueryError:
        return QueryError(
            f'end="drop" drops everything: a pass has {n} samples, and a round {self._spec.batch_size} x'
            f" {self._spec.world_size} ranks; use smaller batches or another end="
        )

    def _page(
        self, layout: FieldLayout, docs: list[dict[str, Any]], is_last: bool, data: State, number: int, base: int
    ) -> Indexed:
        clock = Clock()
        with clock("index"):
            table = table_from_docs(layout, docs)
        size = self._spec.batch_size
        stop = len(docs) - len(docs) % size if self._spec.end == "drop" else len(docs)
        group = []
        for low in range(0, stop, size):
            high = min(low + size, stop)
            last = docs[high - 1]
            state_after = Position(number, base + high, (last["dataset"], last["_tdb"]["s"]))
            if is_last and high == stop:
                state_after = Position(number + 1)
            group.append(BatchRange(number, base + low, base + high, state_after))
        return table, group, np.arange(base, base + len(docs)), data, clock

    def _by_following(self) -> Generator[Task | None, None, None]:
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
    ) -> StreamResults:
        results = self._builder.build(*self._page(layout, docs, False, State(), 0, base))
        prepared: StreamResults = []
        for delivery in results:
            if isinstance(delivery, BatchWithState):
                at = delivery.state_after.at
                followed = {**before, dataset: (at.after[1], born)} if at.after is not None else before
                delivery = replace(delivery, state_after=State(Position(0, at.position), followed=followed))
            prepared.append(delivery)
        return prepared

    def _by_plan(
        self,
        plan: Plan,
        block_shuffle: BlockShuffle,
        sharding: PassSharding,
        number: int,
        first: int,
        opened_passes: OpenedPasses,
    ) -> Iterator[Task]:
        size = self._batches_a_task(plan.table.layout, _TASK_BYTES)
        weights = self._planner.cumulative_weights(plan)
        index = partial(self._planned, plan, block_shuffle, weights)
        rest: Callable[..., StreamResults] = partial(self._planned_batches, plan, opened_passes)
        group: list[BatchRange] = []
        for batch_range in batch_ranges(sharding, number, self._spec.rank, *self._worker, first):
            group.append(batch_range)
            if len(group) == size:
                yield PrefetchTask(partial(index, group), rest)
                group, rest = [], partial(self._planned_batches, plan, ())
        if group:
            yield PrefetchTask(partial(index, group), rest)

    def _planned(
        self, plan: Plan, block_shuffle: BlockShuffle, weights: NDArray[np.float64] | None, group: list[BatchRange]
    ) -> Indexed:
        clock = Clock()
        with clock("index"):
            positions = np.concatenate([np.arange(batch_range.low, batch_range.high) for batch_range in group])
            rows = rows_at(positions, len(plan), group[0].number, self._spec, block_shuffle, weights)
            table = plan.table.take(rows)
        return table, group, positions, _data(plan, (block_shuffle.block, block_shuffle.window)), clock

    def _planned_batches(self, plan: Plan, opened_passes: OpenedPasses, *prepared: Any) -> StreamResults:
        results = self._builder.build_planned(plan, *prepared)
        if opened_passes and results and isinstance(first := results[0], BatchWithState):
            results[0] = replace(first, opened_passes=opened_passes)
        return results

    def _batches_a_task(self, layout: FieldLayout, nbytes: int) -> int:
        """Batches that one task makes: enough bytes to be worth a hand-over between threads, few where each sample is
        work of its own. A page of a cursor is smaller than a task of a plan, since the first batch waits for all of it.
        """
        fields = [s[name] for s in layout.schemas.values() for name in layout.fields if name in s]
        sizes = [field.fixed_nbytes for field in fields if field.is_blob]
        if self._spec.transform is not None or None in sizes:
            return -(-_TASK_SAMPLES // self._spec.batch_size)
        sample = sum(size for size in sizes if size is not None) + 8 * (len(fields) - len(sizes)) + 1
        return int(min(max(nbytes // (self._spec.batch_size * sample), 1), _TASK_BATCHES))


def _data(plan: Plan, block_shuffle: tuple[int, int]) -> State:
    return State(Position(), plan.versions, plan.ids, len(plan), block_shuffle=block_shuffle)

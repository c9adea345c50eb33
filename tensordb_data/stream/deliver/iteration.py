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
from tensordb_data.stream.deliver.batch_builder import Deliveries, Delivery, Maker
from tensordb_data.stream.deliver.ordered_pool import ordered
from tensordb_data.stream.deliver.tail import Followed, follow
from tensordb_data.stream.fetch.failure_budget import Budget
from tensordb_data.stream.fetch.prefetch import Staged, announced
from tensordb_data.stream.fetch.relocate import Living
from tensordb_data.stream.order.block_shuffle import Blocks, rows_at
from tensordb_data.stream.order.sharding import Layout, Run, runs
from tensordb_data.stream.passes.planner import Source
from tensordb_data.stream.passes.registry import Opened
from tensordb_data.stream.plan.index_reader import Pages
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import Block, Layouts, block_from_docs
from tensordb_data.stream.state import Position, State
from tensordb_data.stream.stats import Clock, Stats
from tensordb_data.stream.transform.apply import open_transform
from tensordb_data.stream.transform.collate import Batch

_TASK_BYTES = 4 << 20
_PAGE_BYTES = 2 << 20
_TASK_BATCHES = 64
_TASK_SAMPLES = 16
_FOLLOWED_BATCHES, _ENOUGH_BATCHES = 8, 2

Task = Callable[[], Deliveries]
CursorPage = tuple[list[dict[str, Any]], bool]
Indexed = tuple[Block, list[Run], NDArray[np.int64], State, Clock]


class Deliverer:
    """One iteration of a stream, from `start` on.

    `settled` gives the data of a pass, where it is fixed, and fixes that of the pass that comes first; `worker` is
    (index, count) among the readers that share this rank's batches, and `rounds` how many batches of them all came
    before; `last` is the number of the pass to end before.
    """

    def __init__(
        self,
        source: Source,
        start: State,
        settled: Callable[[int], State | None] | None,
        worker: tuple[int, int],
        rounds: int,
        last: int | None,
        threads: int,
        stats: Stats,
        budget: Budget,
        ended: Callable[[], bool],
        finish: Callable[[Batch], Batch] | None,
    ) -> None:
        self._source, self._spec = source, source.spec
        self._start, self._settled, self._worker, self._last = start, settled, worker, last
        self._rounds = rounds
        self._threads, self._stats = threads, stats
        self._ended = ended
        self._reader = source.warehouse.blobs.reader
        living = Living(source.warehouse, stats)
        self._maker = Maker(source.spec, start.at.number, self._reader, living, budget, stats)
        self._maker.finish = finish

    def run(self) -> Generator[Deliveries, None, None]:
        """Deliveries, a task's at a time, until the passes are through or the generator is closed."""
        with ExitStack() as opened:
            transform = open_transform(self._spec)
            if transform is not None:
                opened.callback(transform.close)
            self._maker.transform = transform
            threads = self._threads + self._spec.workers  # of which some wait for the processes that transform
            yield from ordered(announced(self._tasks(), self._reader), threads, threads + 1)

    def _tasks(self) -> Generator[Task | None, None, None]:
        if self._spec.follow:
            yield from self._by_following()
            return
        at, first = self._start.at, self._rounds
        chosen = self._start.blocks
        opens: list[tuple[int, State]] = []
        while self._last is None or at.number < self._last:
            if self._by_cursor(at):
                empty = yield from self._by_pages(at)
            else:
                with self._stats.ahead("plan"):
                    data = self._start if at.position else self._settled and self._settled(at.number)
                    plan = self._source.plan(data)
                chosen = chosen or (data and data.blocks) or self._source.blocks(plan)
                if at.number > self._start.at.number:
                    opens.append((at.number, _data(plan, chosen)))
                layout = Layout(len(plan), at.position, self._spec.batch_size, self._spec.world_size, self._spec.end)
                if len(plan) and layout.rounds == 0 and at.position == 0:
                    raise self._all_dropped(len(plan))
                for task in self._by_plan(plan, Blocks(*chosen), layout, at.number, first, tuple(opens)):
                    yield task
                    opens.clear()
                first += layout.rounds
                empty = len(plan) == 0
            if empty and self._last is None:
                raise NotFoundError(f"an endless stream needs samples, and none matches {self._spec.query!r}")
            at = Position(at.number + 1)

    def _by_cursor(self, at: Position) -> bool:
        spec = self._spec
        alone = spec.world_size == 1 and self._worker == (0, 1) and self._settled is None
        in_order = not spec.shuffle and not spec.replacement and not spec.query.sort and spec.end != "pad"
        return alone and in_order and (at.position == 0 or at.after is not None)

    def _by_pages(self, at: Position) -> Generator[Task | None, None, bool]:
        """Tasks that read a cursor. Returns whether nothing matched in the whole pass."""
        spec = self._spec
        versions = self._start.versions if at.position and self._start.versions is not None else self._source.versions()
        layouts = self._source.layouts(versions)
        limit = None if spec.query.limit is None else spec.query.limit - at.position
        if limit == 0:
            return False
        rows = spec.batch_size * self._batches_a_task(layouts, _PAGE_BYTES)
        read = iter(Pages(self._source.selection, layouts, versions, rows, at.after, limit, spec.batch_size))
        position, seen = at.position, False
        with closing(ordered(repeat(partial(self._next_page, read)), 1, 1)) as pages:
            for page in pages:
                if page is None:
                    break
                docs, is_last = page
                seen = True
                data = State(versions=versions)
                make = partial(self._page, layouts, docs, is_last, data, at.number, position)
                yield Staged(make, self._maker.batches)
                if position == self._start.at.position and at.number == self._start.at.number:
                    yield None  # somebody waits for the first batch, and none of the pages behind it
                position += len(docs)
        if seen and spec.end == "drop" and position < spec.batch_size:
            raise self._all_dropped(position)
        return not seen and at.position == 0

    def _next_page(self, read: Iterator[CursorPage]) -> CursorPage | None:
        with self._stats.ahead("cursor"):
            return next(read, None)

    def _all_dropped(self, n: int) -> QueryError:
        return QueryError(
            f'end="drop" drops everything: a pass has {n} samples, and a round {self._spec.batch_size} x'
            f" {self._spec.world_size} ranks; use smaller batches or another end="
        )

    def _page(
        self, layouts: Layouts, docs: list[dict[str, Any]], is_last: bool, data: State, number: int, base: int
    ) -> Indexed:
        clock = Clock()
        with clock("index"):
            block = block_from_docs(layouts, docs)
        size = self._spec.batch_size
        stop = len(docs) - len(docs) % size if self._spec.end == "drop" else len(docs)
        group = []
        for low in range(0, stop, size):
            high = min(low + size, stop)
            last = docs[high - 1]
            then = Position(number, base + high, (last["dataset"], last["_tdb"]["s"]))
            if is_last and high == stop:
                then = Position(number + 1)
            group.append(Run(number, base + low, base + high, then))
        return block, group, np.arange(base, base + len(docs)), data, clock

    def _by_following(self) -> Generator[Task | None, None, None]:
        position = self._start.at.position
        rows, enough = self._spec.batch_size * _FOLLOWED_BATCHES, self._spec.batch_size * _ENOUGH_BATCHES
        for page in follow(self._source, dict(self._start.followed or {}), rows, enough, self._ended, self._stats):
            if page is None:
                yield None
                continue
            yield partial(self._followed_batches, *page, position)
            docs = page[2]
            position += len(docs)

    def _followed_batches(
        self, layouts: Layouts, dataset: str, docs: list[dict[str, Any]], born: str, before: Followed, base: int
    ) -> Deliveries:
        deliveries = self._maker.batches(*self._page(layouts, docs, False, State(), 0, base))
        made: Deliveries = []
        for delivery in deliveries:
            if isinstance(delivery, Delivery):
                at = delivery.then.at
                followed = {**before, dataset: (at.after[1], born)} if at.after is not None else before
                delivery = replace(delivery, then=State(Position(0, at.position), followed=followed))
            made.append(delivery)
        return made

    def _by_plan(
        self, plan: Plan, blocks: Blocks, layout: Layout, number: int, first: int, opens: Opened
    ) -> Iterator[Task]:
        size = self._batches_a_task(plan.block.layouts, _TASK_BYTES)
        weights = self._source.cumulative(plan)
        index = partial(self._planned, plan, blocks, weights)
        rest: Callable[..., Deliveries] = partial(self._planned_batches, plan, opens)
        group: list[Run] = []
        for run in runs(layout, number, self._spec.rank, *self._worker, first):
            group.append(run)
            if len(group) == size:
                yield Staged(partial(index, group), rest)
                group, rest = [], partial(self._planned_batches, plan, ())
        if group:
            yield Staged(partial(index, group), rest)

    def _planned(self, plan: Plan, blocks: Blocks, weights: NDArray[np.float64] | None, group: list[Run]) -> Indexed:
        clock = Clock()
        with clock("index"):
            positions = np.concatenate([np.arange(run.low, run.high) for run in group])
            rows = rows_at(positions, len(plan), group[0].number, self._spec, blocks, weights)
            block = plan.block.take(rows)
        return block, group, positions, _data(plan, (blocks.block, blocks.window)), clock

    def _planned_batches(self, plan: Plan, opens: Opened, *made: Any) -> Deliveries:
        deliveries = self._maker.present(plan, *made)
        if opens and deliveries and isinstance(first := deliveries[0], Delivery):
            deliveries[0] = replace(first, opens=opens)
        return deliveries

    def _batches_a_task(self, layouts: Layouts, nbytes: int) -> int:
        """Batches that one task makes: enough bytes to be worth a hand-over between threads, few where each sample is
        work of its own. A page of a cursor is smaller than a task of a plan, since the first batch waits for all of it.
        """
        fields = [s[name] for s in layouts.schemas.values() for name in layouts.fields if name in s]
        sizes = [field.fixed_nbytes for field in fields if field.is_blob]
        if self._spec.transform is not None or None in sizes:
            return -(-_TASK_SAMPLES // self._spec.batch_size)
        sample = sum(size for size in sizes if size is not None) + 8 * (len(fields) - len(sizes)) + 1
        return int(min(max(nbytes // (self._spec.batch_size * sample), 1), _TASK_BATCHES))


def _data(plan: Plan, blocks: tuple[int, int]) -> State:
    return State(Position(), plan.versions, plan.ids, len(plan), blocks=blocks)

"""A training of many ranks in one process and in virtual time, over the code that real ones run.

Real are: the plans, the order and its division, what readers register and agree on, elastic positions, the segments,
the choice of ranges to fetch, the cache on disk with its claims and evictions, and the repetition of refused requests.
Simulated are: time, the latencies of servers, the processes, and the loop around a pass that `Stream` and
`StreamIteration` have in threads. A job that loses a worker starts again from its last checkpoint, as a launcher does.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import mongomock
import numpy as np
from bson import ObjectId

from tensordb_data import TensorDB
from tensordb_data.blobs.reader.disk_cache import SegmentCache
from tensordb_data.blobs.reader.open_segment import OpenSegment
from tensordb_data.blobs.reader.remote import Remote
from tensordb_data.blobs.reader.segment_table import groups
from tensordb_data.blobs.stores.base import TransientError
from tensordb_data.stream.deliver.advance import Division, advanced
from tensordb_data.stream.order.block_shuffle import BlockShuffle, choose_block_shuffle, rows_at
from tensordb_data.stream.order.sharding import BatchRange, PassSharding, batch_ranges, positions_of
from tensordb_data.stream.passes.planner import plan_name
from tensordb_data.stream.passes.registry import SharedPassRegistry, new_token
from tensordb_data.stream.passes.resolver import PassResolver
from tensordb_data.stream.passes.stream_board import StreamBoard
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.state import Position, State
from tests.simulated.clock import Clock
from tests.simulated.servers import Documents, MeetingBoard, ObjectStore, VirtualFetcher

STEP, AHEAD, CHECKPOINT = 0.1, 2, 3
"""Seconds of a step; batches that a worker makes ahead; rounds between checkpoints."""
BLOB, SEGMENT, GROWTH = 64, 1000, 5
"""int64 numbers in a blob, blobs in a segment, and samples that are added at a time."""
_IS_CURRENT, _PLAN = 1, 3
"""Commands by which a reader asks whether its plan is current, and opens one that its host has cached."""


class Stage(NamedTuple):
    """A job: so many ranks and rounds. A worker may be killed in one of them.

    So often samples are added while the readers come to a pass, so that some see them and some do not.
    """

    world: int
    rounds: int
    killed_at: int | None = None
    growths: int = 0


class Host:
    """The processes of a host: its cache on disk, and the segments that each of them has open."""

    def __init__(self, training: Training, folder: Path, cap: int) -> None:
        self.cache = SegmentCache(folder, cap)
        self.fetchers: list[VirtualFetcher] = []
        self._training, self._cap, self._folder = training, cap, folder
        self.processes = [self._process() for _ in range(2)]

    def _process(self) -> Process:
        cache = SegmentCache(self._folder, self._cap)
        remote = Remote(cache)
        remote.fetcher = VirtualFetcher(self._training.clock)
        self.fetchers.append(remote.fetcher)
        return Process(self._training, cache, remote)


class Process:
    """One process that reads blobs."""

    def __init__(self, training: Training, cache: SegmentCache, remote: Remote) -> None:
        self._training, self._cache, self._remote = training, cache, remote
        self._open: dict[ObjectId, OpenSegment] = {}
        cache.dropped = self._drop

    def _drop(self, names: set[str]) -> None:
        self._open = {
            id_: one for id_, one in self._open.items() if one.file is not None and one.file.path.name not in names
        }

    def read(self, plan: Plan, rows: Any) -> None:
        """Read the blobs of some rows, and compare them with what was written."""
        training, refs = self._training, plan.table.refs["x"].take(rows)
        training.reads += len(rows)
        for number, part in groups(refs.segment, np.arange(len(rows))):
            id_ = refs.segments[number]
            segment = self._open.get(id_)
            if segment is None:
                doc, store = training.segments[id_], training.store
                segment = self._remote.fetcher.retried(partial(OpenSegment, doc, store, self._cache))  # type: ignore[arg-type]
                self._open[id_] = segment
            none = np.zeros(len(part), np.bool_)
            at = segment.positions(refs.offset[part].astype(np.int64), refs.length[part], none, part)
            there = none if segment.file is None else segment.file.marked(0, segment.blobs)[at]
            training.hits += int(there.sum())
            futures = self._remote.want(segment, np.unique(at[~there]), dense=False, urgent=True)
            arrivals = [training.clock.result(future) for future in futures]
            for row, blob in zip(part.tolist(), at.tolist(), strict=True):
                data = next((found for one in arrivals if (found := one.blob(blob)) is not None), None)
                if data is None:
                    assert segment.file is not None
                    offset = int(refs.offset[row])
                    data = segment.file.data[offset : offset + int(refs.length[row])].data
                assert int(np.frombuffer(data[:8], np.int64)[0]) == training.number(plan, int(rows[row]))


class HostPlanner:
    """The plans of the data, for readers whose host has cached them. Each asks the database what is current."""

    def __init__(self, training: Training, planner: Any) -> None:
        self._training, self._planner, self.spec = training, planner, planner.spec
        self.totals: dict[Any, int] = {}

    def state_now(self, block_shuffle: tuple[int, int] | None = None) -> State:
        self._training.database.ask(_PLAN)
        plan = self._planner.plan()
        chosen = choose_block_shuffle(plan, self._training.cache_bytes)
        state: State = self._planner.state_of(plan, block_shuffle or (chosen.block, chosen.window), None)
        self._training.plans[plan_name(state)] = plan
        return state

    def is_current(self, data: State) -> bool:
        self._training.database.ask(_IS_CURRENT)
        return bool(self._planner.is_current(data))

    def send_plan(self, data: State) -> None:
        """Nothing: the hosts share what they have cached."""


class Training:
    """Samples, servers and hosts, and what was delivered of each pass."""

    def __init__(
        self,
        folder: Path,
        hosts: int,
        n: int,
        batch_size: int,
        workers: int,
        cache_bytes: int,
        seed: int,
        refuses: float = 0.1,
    ):
        self.clock, self.dice = Clock(), random.Random(seed)
        self.database = Documents(self.clock, seed)
        self.db = TensorDB(client=mongomock.MongoClient(), blobs="memory://")
        self._n, self.batch_size, self.workers, self.cache_bytes = 0, batch_size, workers, cache_bytes
        self.add(n)
        objects = self.db.data.find({"dataset": "d"}).stream(batch_size=1)._planner.warehouse.blobs.store()
        self.store = ObjectStore(self.clock, seed, objects, refuses=refuses)
        self.hosts = [Host(self, folder / str(number), cache_bytes) for number in range(hosts)]
        self.plans: dict[str, Plan] = {}
        self.reads = self.hits = self.restarts = self.repeated = 0
        self.stalls: list[float] = []
        self.boundaries: list[float] = []
        self._taken: dict[int, list[tuple[State, BatchRange]]] = defaultdict(list)

    def add(self, count: int) -> None:
        """Add samples, each of which carries its number."""
        for low in range(self._n, self._n + count, SEGMENT):
            x = np.repeat(np.arange(low, min(low + SEGMENT, self._n + count))[:, None], BLOB, 1)
            with self.db.data.writer("d") as writer:
                writer.add_many(x=x)
        self._n += count
        self.segments = {doc["_id"]: doc for doc in self.db.database["segments"].find()}

    def number(self, plan: Plan, row: int) -> int:
        """The number that the sample in a row was given."""
        assert plan.table.sequence is not None
        return int(plan.table.sequence[row] - plan.table.sequence[0])

    def run(self, stages: Sequence[Stage]) -> None:
        """Run one job after the other, each from where the one before was."""
        state = State()
        for stage in stages:
            left, killed_at = stage.rounds, stage.killed_at
            while left:
                job = Job(self, state, stage._replace(rounds=left, killed_at=killed_at))
                done = job.run()
                state = job.settle(done)
                self.restarts += done < left
                left, killed_at = left - done, None

    def take(self, delivered: Sequence[tuple[State, BatchRange]]) -> None:
        for data, batch in delivered:
            self._taken[batch.number].append((data, batch))

    def check(self) -> int:
        """Each sample of a pass was delivered once, in all that came before its end. Returns the number of passes.

        Where fewer samples are left than there are ranks, the last ranks get some of them a second time (counted).
        """
        for number, batches in self._taken.items():
            (name,) = {plan_name(data) for data, _ in batches}
            (blocks,) = {data.block_shuffle for data, _ in batches}
            n, plan = len(self.plans[name]), self.plans[name]
            positions = np.sort(positions_of([batch for _, batch in batches]))
            once = np.unique(positions)
            self.repeated += len(positions) - len(once)
            assert once.tolist() == list(range(len(once))), f"pass {number} has a gap"
            assert len(once) == n or number == max(self._taken), f"pass {number}: {len(once)} of {n} samples"
            spec = self.db.data.find({"dataset": "d"}).stream(batch_size=1, shuffle=True)._planner.spec
            rows = rows_at(once, n, number, spec, BlockShuffle(*(blocks or (0, 0))), None)
            assert len(np.unique(plan.table.ids[rows], axis=0)) == len(once), f"pass {number} has a sample twice"
        return len(self._taken)


class Job:
    """The ranks and workers of one job, from a state on."""

    def __init__(self, training: Training, start: State, stage: Stage) -> None:
        self._training, self._start, self._stage = training, start, stage
        stream = training.db.data.find({"dataset": "d"}).stream(
            training.batch_size, shuffle=True, fields=["x"], rank=0, world_size=stage.world
        )
        self._planner: Any = HostPlanner(training, stream._planner)
        self._board, self._warehouse = MeetingBoard(training.database), stream._planner.warehouse
        self._step = 0
        self._made: list[dict[int, tuple[State, BatchRange]]] = [{} for _ in range(stage.rounds)]
        self._is_over = self._failed = False
        self._resolver = self._new_resolver(new_token())

    def _new_resolver(self, token: str) -> PassResolver:
        index = {"passes": self._training.database}
        warehouse: Any = SimpleNamespace(index=index, address=SimpleNamespace(read_only=False))
        resumed = {self._start.at.number: self._start} if self._start.at.position else {}
        registry = SharedPassRegistry(warehouse, self._planner.spec, token, ranks=True)
        return PassResolver(self._planner, None, registry, resumed)

    def run(self) -> int:
        """Run it. Returns after how many rounds its last checkpoint was taken."""
        clock, stage = self._training.clock, self._stage
        coroutines = [
            clock.spawn(lambda rank=rank, index=index: self._guarded(rank, index))  # type: ignore[misc]
            for rank in range(stage.world) for index in range(self._training.workers)
        ]  # fmt: skip
        coroutines.append(clock.spawn(self._loop))
        clock.run(lambda: self._is_over)
        done = self._step if not self._failed else self._step - self._step % CHECKPOINT
        for host in self._training.hosts:
            coroutines += [one for fetcher in host.fetchers for one in fetcher.running] if self._failed else []
        for coroutine in coroutines:
            clock.kill(coroutine)
        if self._failed:  # its processes are gone, and what they knew
            for host in self._training.hosts:
                host.processes = [host._process() for _ in host.processes]
        return done

    def settle(self, done: int) -> State:
        """Count what was delivered before the checkpoint. Returns its state."""
        training, stage = self._training, self._stage
        for round_ in range(done):
            training.take(list(self._made[round_].values()))
        division = Division(training.batch_size, stage.world, "short")
        found: list[State] = []

        def advance() -> None:
            found.append(advanced(self._resolver, self._start, done, division, None))

        training.clock.spawn(advance)
        training.clock.run(lambda: bool(found))
        return found[0]

    def _loop(self) -> None:
        """The steps of the model, each when all ranks have their batches."""
        training, stage = self._training, self._stage
        for round_ in range(stage.rounds):
            before = training.clock.now
            growths = stage.growths
            if round_ == stage.killed_at:
                self._failed = self._is_over = True
            while len(self._made[round_]) < stage.world:
                training.clock.sleep(0.003)
                if growths and (round_ == 0 or self._begins_pass(round_)):
                    growths -= 1
                    training.add(GROWTH)
            waited = training.clock.now - before
            training.stalls.append(waited)
            if round_ == 0 or next(iter(self._made[round_].values()))[1].low == 0:
                training.boundaries.append(waited)
            training.clock.sleep(STEP)
            self._step = round_ + 1
        self._is_over = True

    def _begins_pass(self, round_: int) -> bool:
        """Whether a round is the first one of a pass, as far as its ranks say."""
        before = self._made[round_ - 1]
        now = self._made[round_]
        return not now or next(iter(now.values()))[1].number != next(iter(before.values()))[1].number

    def _guarded(self, rank: int, index: int) -> None:
        with suppress(TransientError):
            self._reader(rank, index)
            return
        self._failed = self._is_over = True

    def _reader(self, rank: int, index: int) -> None:
        """A worker of a rank: its share of the batches, some of them ahead, pass after pass."""
        training, stage = self._training, self._stage
        host = training.hosts[rank * len(training.hosts) // stage.world]
        process = host.processes[rank % len(host.processes)]
        board = StreamBoard(self._board, self._warehouse, self._planner.spec) if index == 0 else None
        token = board.agree("token", self._resolver.registry.token) if board else ""  # type: ignore[union-attr]
        assert token in ("", self._resolver.registry.token)  # type: ignore[union-attr]
        resolver = self._new_resolver(self._resolver.registry.token)  # type: ignore[union-attr]
        at, first = self._start.at, 0
        while first < stage.rounds:
            due = first <= self._step
            data = resolver.resolve(at.number) if due else resolver.lookup(at.number)
            is_decided = data is not None
            data = data or self._planner.state_now()
            while True:
                plan = training.plans[plan_name(data)]
                sharding = PassSharding(len(plan), at.position, training.batch_size, stage.world, "short")
                is_stale = False
                for batch in batch_ranges(sharding, at.number, rank, index, training.workers, first):
                    round_ = first + self._round_of(sharding, batch, rank)
                    if round_ >= stage.rounds:
                        return
                    while self._step + AHEAD * training.workers < round_:
                        training.clock.sleep(STEP / 4)
                    rows = rows_at(
                        positions_of([batch]), len(plan), at.number, self._planner.spec,
                        BlockShuffle(*(data.block_shuffle or (0, 0))), None,
                    )  # fmt: skip
                    process.read(plan, rows)
                    if not is_decided:  # the first batch of the pass: now it is due
                        while self._step < round_:
                            training.clock.sleep(STEP / 4)
                        is_decided = True
                        if is_stale := resolver.is_stale([(at.number, data)]):
                            break
                    self._made[round_][rank] = data, batch
                if not is_stale:
                    break
                found = resolver.lookup(at.number)
                assert found is not None
                data = found
            first += sharding.rounds
            at = Position(at.number + 1)

    def _round_of(self, sharding: PassSharding, batch: BatchRange, rank: int) -> int:
        low, high = 0, sharding.rounds - 1
        while low < high:  # the batches of a rank lie in the order of rounds
            middle = (low + high) // 2
            low, high = (middle + 1, high) if sharding.batch(middle, rank)[0] < batch.low else (low, middle)
        return low

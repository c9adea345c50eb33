"""Stream: the batches of a query. It has a position in an endless sequence, which the iteration moves on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from tensordb_data.common.deprecation import renamed_to
from tensordb_data.errors import NotFoundError, QueryError, SampleError, StateError
from tensordb_data.stream.deliver.advance import Division, advanced, batches_of
from tensordb_data.stream.deliver.base import BatchStream, flatten
from tensordb_data.stream.deliver.batch_builder import BatchWithState
from tensordb_data.stream.deliver.elements import Element, elements_of
from tensordb_data.stream.deliver.iteration import StreamIteration
from tensordb_data.stream.fetch.failure_budget import FailureBudget
from tensordb_data.stream.options import Place, Shard
from tensordb_data.stream.passes.planner import Planner, plan_name
from tensordb_data.stream.passes.registry import PassRegistry, SharedPassRegistry
from tensordb_data.stream.passes.resolver import PassResolver
from tensordb_data.stream.ranks import Divider, find_members
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.state import OnChange, Position, State
from tensordb_data.stream.stats import Stats
from tensordb_data.stream.transform.apply import library_in
from tensordb_data.stream.transform.collate import Batch

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tensordb_data.warehouse.context import Warehouse

log = logging.getLogger("tensordb_data.stream")

_ALONE = (
    "rank %d of %d cannot agree with the others on the data of a pass: it takes what it sees now, and if data is"
    " committed while the ranks start, samples come twice or not at all. Give all of them Shard(group=), a text that"
    " names the run, and a user who may write to the database"
)


class Stream(BatchStream[State]):
    """Batches of the samples that match a query. `Selection.stream` makes one.

    An iteration begins at the position of the stream: after the last batch that was delivered, at the start of the
    next pass when a finite iteration has ended, or where `load_state_dict` put it. Only the newest iteration is live.

    A stream reads the index in one of two ways. Both give the same batches. Without shuffling, in one process, batches
    come straight from a database cursor, in constant memory. Otherwise the stream reads the references of all samples
    once, into a plan of about 32 bytes a sample.

    A pass (an epoch over the selection) delivers the samples that existed when it began. The next pass sees changes,
    unless the stream is pinned (see `pin`). Worker processes, and the ranks that share the stream, agree on the data of
    each pass. The ranks are found each time that an iteration begins.

    A batch is a dict of fields. Numbers are arrays of shape [batch, ...]; everything else is a list.
    """

    def __init__(self, warehouse: Warehouse, spec: StreamSpec, shard: Shard | None = None) -> None:
        super().__init__(State())
        self.warehouse = warehouse
        self.spec = spec
        self._stats = Stats(self._threads, spec.workers)
        self._planner = Planner(warehouse, spec)
        self._shard = shard  # how to find the ranks; None if they stay as they are
        self._pinned: State | None = None
        self._registry: PassRegistry | None = None
        self._resumed: Mapping[int, State] = {}  # passes that had begun when the state of a resumed run was taken
        self._budget = FailureBudget(spec.max_failures, self._stats)
        self._finish: Callable[[Batch], Batch] | None = None

    def check_transform(self) -> None:
        """Check that samples of this stream can be decoded as it says, and go through its transform. None is read.

        Raises:
            QueryError: A field cannot be decoded so, or the transform would be called with none of their fields; see
                `Library.targets`.
        """
        library, spec = library_in(self.spec), self.spec
        if spec.decode or (library is not None and library.asks_for_fields):
            with suppress(NotFoundError):  # a dataset that does not exist yet is looked at when it does
                layout = self._planner.layout(self._planner.versions())
                if library is not None and library.asks_for_fields:
                    library.targets(layout.delivered(spec.views, spec.fields))

    def __repr__(self) -> str:
        at = self._state.at
        spec = self.spec
        tokens = "" if spec.tokens is None else f", {spec.tokens!r}"
        return f"Stream({spec.query!r}, batch_size={spec.batch_size}{tokens}, pass={at.number}, position={at.position})"

    def __getstate__(self) -> dict[str, Any]:
        if self._shard is not None and self._shard.is_local:
            self._know_ranks()
        shard = None if self._shard is None or self._shard.is_local else self._shard
        kept = ("warehouse", "spec", "_worker", "_state", "_pinned", "_registry", "_resumed")
        found = {name: self.__dict__[name] for name in kept}
        return {**found, "_shard": shard, "planner": self._planner.agreement()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["warehouse"], state["spec"])  # type: ignore[misc]
        self._planner.join(state.pop("planner"))
        self.__dict__.update(state)

    def _begin(self) -> None:
        if self._shard is not None:
            self._find_ranks()
            if self._planner.has_peers and self._registry is None:
                self._share_passes()

    def _results(self, ended: Callable[[], bool]) -> Generator[BatchWithState[State] | SampleError, None, None]:
        passes = self.spec.passes

        def resolve_pass(number: int) -> State | None:
            """The data of a pass, if it is decided. For the pass that comes next, it is decided now."""
            resolver, due = self._resolver(), number <= self._state.at.number
            return resolver.resolve(number, self._state.block_shuffle) if due else resolver.lookup(number)

        last = None if passes is None else (self._state.at.number // passes + 1) * passes
        rounds = 0
        while True:
            iteration = StreamIteration(
                self._planner,
                self._state,
                None if self._pinned is None and self._registry is None else resolve_pass,
                self._worker,
                rounds,
                last,
                self._threads,
                self._stats,
                self._budget,
                ended,
                self._finish,
            )
            with closing(iteration.run()) as tasks:
                for result in flatten(tasks):
                    opened = result.opened_passes if isinstance(result, BatchWithState) else ()
                    if opened and self._resolver().is_stale(opened):
                        break  # and open the pass again, on the data of now
                    rounds = self._worker[0] + 1
                    yield result
                else:
                    return

    def _resolver(self) -> PassResolver:
        return PassResolver(self._planner, self._pinned, self._registry, self._resumed)

    def close(self) -> None:
        """End the iteration in progress, at once, and free the plan.

        The loop gets no more batches. A thread that is in the middle of a read ends after it. The position stays, and
        the stream can be iterated again.
        """
        super().close()
        self._planner.drop()

    def state_dict(self) -> dict[str, Any]:
        """The position after the last delivered batch: a small dict that can be written as JSON.

        Give it to `load_state_dict` of a stream with the same query, shuffle, seed and `tokens`. Batch size, fields,
        transform, rank and world size may differ.
        """
        return self._state.to_doc(self.spec)

    def plans(self, state: Mapping[str, Any] | None = None) -> dict[str, NDArray[np.uint8]]:
        """The plan that a state refers to, to be stored beside it: the plan of the pass in progress, compressed.

        Args:
            state: from `state_dict()` or `advance`; by default the present one.

        Returns:
            The plan by its digest. Empty if the state needs no plan: between two passes, and in query order from a
            cursor.
        """
        of = self._state if state is None else State.from_doc(state, self.spec)
        return self._plans(of) if of.at.position else {}

    def _plans(self, *states: State) -> dict[str, NDArray[np.uint8]]:
        """The plans of states, by their digests. A plan of the same samples with other values has another name."""
        found: dict[str, NDArray[np.uint8]] = {}
        for state in states:
            if state.ids is not None:
                name = plan_name(state) if state.ids in found else state.ids
                found[name] = self._planner.compressed(state)
        return found

    def load_state_dict(
        self,
        state: Mapping[str, Any],
        *,
        on_change: OnChange = "finish",
        plans: Mapping[str, NDArray[np.uint8]] | None = None,
    ) -> None:
        """Continue from `state`: the next batches hold exactly the samples not yet delivered.

        Args:
            state: from `state_dict()`, of any rank, world size and batch size.
            on_change: what to do if the data of the pass in progress has changed since it began. `"finish"` ends the
                pass as it began: in its order, with its values, without samples that were added or deleted since.
                `"error"` raises. `"replan"` leaves out the rest of the pass and begins the next one, on today's data.
            plans: from `plans()`. Without them, the stream looks for the plan in the cache of this host, and then reads
                it from the database. This fails if samples of the pass were deleted or do not match any more.

        Raises:
            StateError: the state is of another stream, or the data has changed.
        """
        self._move(self._loaded(state, on_change, plans))

    def _loaded(self, state: Mapping[str, Any], on_change: OnChange, plans: Mapping[str, Any] | None) -> State:
        """The state that `load_state_dict` gives the stream."""
        if on_change not in get_args(OnChange):
            raise QueryError(f"`on_change` must be one of {', '.join(get_args(OnChange))}. Found: {on_change!r}")
        loaded = State.from_doc(state, self.spec)
        self._planner.accept_plans(plans or {})
        if loaded.at.position and not self.spec.follow:
            return self._checked(loaded, on_change)
        # Between two passes there is nothing to finish. The next pass goes over what is there when it begins.
        return State(loaded.at, followed=loaded.followed, block_shuffle=loaded.block_shuffle)

    def _move(self, state: State) -> None:
        self._token += 1
        self._state = self._with_plan_digest(state)

    def _checked(self, loaded: State, on_change: OnChange) -> State:
        """The loaded state. If the data has changed and `on_change` is "replan", the start of the next pass."""
        try:
            if loaded.ids is not None:
                self._planner.plan(loaded)
            if on_change != "finish" and self._planner.has_changed(loaded):
                raise StateError(
                    "the data has changed since the pass of this state began:"
                    ' on_change="finish" ends the pass as it began, "replan" begins the next one on today\'s data'
                )
        except StateError:
            if on_change != "replan":
                raise
            return State(Position(loaded.at.number + 1), block_shuffle=loaded.block_shuffle)
        return loaded

    def pin(self) -> Stream:
        """Fix the data of all passes from now on, for this stream and every copy of it in another process.

        So workers and ranks that share a pass agree on its order. Under torch.distributed all ranks take the data that
        the first of them sees. Call this on every rank; none waits for the others.

        Returns:
            The stream itself.
        """
        self._know_ranks()
        if self._pinned is None and not self.spec.follow:
            self._pinned, self._registry = self._planner.agree_on_state(), None
            self._state = self._with_plan_digest(self._state)
        return self

    def _find_ranks(self, divider: Divider | None = None) -> None:
        """Find who shares this stream, now that an iteration begins in this process.

        Args:
            divider: What divides the stream among the ranks above it.

        Raises:
            QueryError: see `find_members`.
        """
        if self._shard is not None and self._planner.settle(find_members(self._shard, divider)):
            self.spec, self._registry = self._planner.spec, None

    def _know_ranks(self) -> None:
        """Find who shares this stream, if that has not been found yet."""
        if self._planner.members is None:
            self._find_ranks()

    def _number_ranks(self, rank: int, world_size: int) -> None:
        """Say which rank this is, unless the user has said it."""
        if self._shard is not None and self._shard.rank is None and self._shard.mesh is None:
            self._shard = replace(self._shard, rank=rank, world_size=world_size)

    def _keep_ranks(self) -> None:
        """Never look for the ranks again: this copy is in a worker, which has those of its parent."""
        self._shard = None

    def _share_passes(self) -> SharedPassRegistry | None:
        """Let the copies of this stream in other processes and ranks agree on the data of each pass.

        If they cannot agree, because nothing is known of the ranks but their number or this user may not write, the
        stream is pinned.

        Returns:
            The registry; None if the stream is pinned, or follows.
        """
        self._know_ranks()
        if self._pinned is not None or self.spec.follow:
            return None
        registry = self._planner.registry or self._planner.open_registry()
        if registry is None:
            members = self._planner.members
            alone = members is not None and members.peers and not (members.board and members.board.carries)
            if members is not None and alone and self._state.ids is None:
                log.warning(_ALONE, members.rank, members.world_size)
            self.pin()
            return None
        self._use_registry(registry.of_iteration(""))
        return registry

    def _join_iteration(self, name: str) -> None:
        """Use the registry of the iteration that its readers know as `name`."""
        if self._pinned is None and self._planner.registry is not None:
            registry = self._planner.registry.of_iteration(name)
            if self._registry is None or self._registry.iteration != registry.iteration:
                self._use_registry(registry)

    def _begin_iteration(self) -> None:
        """Begin an iteration with one reader, in this process. Its passes are registered, for `advance`."""
        self._find_ranks()
        self._register_alone()

    def _register_alone(self) -> None:
        """Register the passes of an iteration in this process, if no other process goes over the same passes."""
        if self._planner.has_peers:
            self._share_passes()
        elif self._pinned is None and self._planner.registry is None and not self.spec.follow:
            self._use_registry(PassRegistry())

    def _use_registry(self, registry: PassRegistry) -> None:
        self._registry = registry
        self._state = self._with_plan_digest(self._state)

    def _with_plan_digest(self, state: State) -> State:
        """`state` with the digest and length of its pass, if the stream is pinned or has a registry."""
        if (self._pinned is None and self._registry is None) or state.ids is not None:
            return state
        if state.at.position:
            return self._state_of_plan(state)
        known = self._pinned or State()
        at = state.at._replace(after=None)
        return known._replace(at=at, block_shuffle=state.block_shuffle or known.block_shuffle)

    def _samples_now(self) -> int:
        """The number of samples in a pass over the data of now, or over the data to which the stream is pinned."""
        n = (self._pinned or self._planner.state_now()).n
        assert n is not None
        return n

    def _start_of(self, number: int) -> dict[str, Any]:
        """The state at the start of a pass."""
        start = State(Position(number), block_shuffle=self._state.block_shuffle)
        return self._with_plan_digest(start).to_doc(self.spec)

    def _state_of_plan(self, state: State) -> State:
        """A state in mid-pass, with the digest and length of its pass."""
        plan = self._planner.plan(state)
        at = state.at
        if at.after is not None:
            # A cursor counts what it has delivered. Some of it may be missing in a plan that is read now.
            at = Position(at.number, self._planner.count_before(state))
        block_shuffle = state.block_shuffle or (None if self._pinned is None else self._pinned.block_shuffle)
        drawn_by = state.drawn_by or (None if self._pinned is None else self._pinned.drawn_by)
        return State(at, plan.versions, plan.ids, len(plan), block_shuffle=block_shuffle, drawn_by=drawn_by)

    def advance(self, state: Mapping[str, Any], batches: int) -> dict[str, Any]:
        """The state after `batches` more batches were delivered to this rank.

        A process that does not iterate the stream itself uses this, to turn a count of batches into a state.

        Raises:
            StateError: the number of samples in a pass is not known. Call `pin` first. A stream that follows has no
                such number.
        """
        if self.spec.follow:
            raise StateError(
                "only the stream itself knows how far it has followed: iterate over it directly, and save its own"
                " `state_dict()` (a checkpointer takes it as stream=stream)"
            )
        self._know_ranks()
        return self._advance(State.from_doc(state, self.spec), batches).to_doc(self.spec)

    def _advance(self, state: State, batches: int, division: Division | None = None) -> State:
        """`state` after so many more batches were delivered to each rank."""
        return advanced(self._resolver(), state, batches, division or self._division, self._state.block_shuffle)

    @property
    def _division(self) -> Division:
        return Division(self.spec.batch_size, self.spec.world_size, self.spec.end)

    def _batches_now(self, first: int) -> int:
        """The number of batches that an iteration from pass `first` on delivers, over the data of `_samples_now`."""
        data = self._pinned or self._planner.state_now()
        return batches_of(self._planner, data, range(first, first + (self.spec.passes or 0)), self._division)

    def at(self, state: Mapping[str, Any], **place: Unpack[Place]) -> Stream:
        """A stream at `state` that shares the data of this one, as that of another rank if `place` says so.

        It does not communicate with other ranks, so worker processes can call it.
        """
        self._know_ranks()
        part = Stream(self.warehouse, replace(self.spec, **place))
        part._planner.share_plan(self._planner)
        part._state, part._pinned = State.from_doc(state, part.spec), self._pinned
        part._registry = self._registry
        part._stats, part._budget = self._stats, self._budget
        return part

    def shard(self, index: int, count: int) -> Stream:
        """One of `count` streams that share the batches of this one, from its position on.

        Shard 0 delivers the batches 0, count, 2 * count, …; shard 1 the batches 1, count + 1, …; and so on. A reader
        that takes one batch from each shard in turn gets the batches of this stream, in order. Call `pin` before, so
        that all shards see the same data.

        Args:
            index: The number of this shard, from 0.
            count: The number of shards.

        Raises:
            QueryError: The stream follows what is committed, and `count` is more than 1.
        """
        if self.spec.follow and count > 1:
            raise QueryError(f"a stream that follows has one reader. Found: {count} workers; use num_workers=1 or 0")
        self._know_ranks()
        part = Stream(self.warehouse, self.spec)
        part._planner.share_plan(self._planner)
        part._state, part._pinned, part._registry = self._state, self._pinned, self._registry
        part._worker = (index, count)
        if count == 1:
            part._stats, part._budget = self._stats, self._budget
        else:
            part._stats = Stats(part._threads, part.spec.workers)
            part._budget = FailureBudget(self.spec.max_failures, part._stats)
        return part

    @renamed_to("shard")
    def worker(self, index: int, count: int) -> Stream:
        """The old name of `shard`."""
        return self.shard(index, count)

    def element_spec(self) -> dict[str, Element]:
        """The dtype and shape of one sample, for each delivered field.

        A `None` in a shape is a dimension that varies. A dtype of `None` means that batches hold a list of Python
        objects. With a transform, a first batch is read to find out, and later samples may differ from it.
        """
        if self.spec.transform is not None:
            return self._observed()
        versions = self._pinned.versions if self._pinned is not None else None
        layout = self._planner.layout(versions if versions is not None else self._planner.versions())
        return elements_of(layout, self.spec)

    def _observed(self) -> dict[str, Element]:
        probe = Stream(self.warehouse, replace(self.spec, passes=1, rank=0, world_size=1, end="short", workers=0))
        with closing(probe._deliver(probe._token)) as batches:
            first = next(batches)
        return {
            name: (value.dtype.name, value.shape[1:]) if isinstance(value, np.ndarray) else (None, ())
            for name, value in first.items()
        }

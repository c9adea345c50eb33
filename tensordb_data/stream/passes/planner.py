"""Planner: reads and keeps the plans of a stream, which say what samples a pass goes over and how they are stored."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from tensordb_data.blobs.stores.memory import MemoryStore
from tensordb_data.common.boards import READ_ONLY
from tensordb_data.errors import BusyError, NotAllowedError, StateError
from tensordb_data.stream.order.block_shuffle import choose_block_shuffle
from tensordb_data.stream.passes.beside import Beside
from tensordb_data.stream.passes.frozen_reader import plan_reader
from tensordb_data.stream.passes.registry import SharedPassRegistry, new_token
from tensordb_data.stream.passes.stream_board import StreamBoard
from tensordb_data.stream.plan.format import DAMAGED, pack_plan, unpack_plan
from tensordb_data.stream.plan.index_reader import bounded
from tensordb_data.stream.plan.index_snapshot import Deletions
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.ranks import Members
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.state import Position, State, Versions
from tensordb_data.warehouse.bound_query import BoundQuery

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

log = logging.getLogger("tensordb_data.stream")


class Planner:
    """Reads the plans of one stream. It keeps the newest one for the next pass."""

    def __init__(self, warehouse: Warehouse, spec: StreamSpec) -> None:
        self.warehouse, self.spec = warehouse, spec
        self._reader = plan_reader(warehouse, spec)
        self.beside = Beside(spec, self._reader)
        """What the order of the samples needs to know of them."""
        self.totals: dict[Hashable, int] = {}
        """How many rounds passes have, where that takes long to find."""
        self._plan: Plan | None = None
        self._compressed: tuple[Plan, str | None, NDArray[np.uint8]] | None = None
        self.given_plans: Mapping[str, NDArray[np.uint8]] = {}
        """Plans that came with a checkpoint, by their digests."""
        self.registry: SharedPassRegistry | None = None
        """Where the readers of a shared stream register the data of its passes."""
        self.members: Members | None = None
        """Who shares the stream; None if that has not been found yet, or need not be, in a worker."""
        self._board: StreamBoard | None = None
        self._separate_caches = False  # whether some readers may share no cache with the others
        self._agreed_state: State | None = None
        self._sent: set[str] = set()  # the plans that were sent

    @property
    def bound_query(self) -> BoundQuery:
        """The query of the stream."""
        return self._reader.bound_query

    @property
    def deletions(self) -> Deletions | None:
        """See `PlanReader.deletions`."""
        return self._reader.deletions

    def versions(self) -> Versions:
        """See `PlanReader.versions`."""
        return self._reader.versions()

    def layout(self, versions: Versions) -> FieldLayout:
        """See `PlanReader.layout`."""
        return self._reader.layout(versions)

    def plan(self, wanted: State | None = None) -> Plan:
        """The plan of the data that `wanted` refers to; by default of the data now.

        Raises:
            StateError: Samples of the wanted data were deleted since, or do not match the query any more. And its plan
                is kept neither on this machine nor with a checkpoint.
            BusyError: See `open_snapshot`.
        """
        versions = None if wanted is None else wanted.versions
        plan = self._plan
        if versions is None:
            plan = self._given(wanted) or self._received(wanted) or self._newest()
        elif plan is None or not self._is_whole(plan, wanted):
            plan = self._given(wanted) or self._received(wanted) or self._reader.at(versions)
        if wanted is not None and wanted.ids is not None and plan.ids != wanted.ids:
            raise StateError(
                f"the data has changed in mid-pass: the pass began with {wanted.n} samples, and {len(plan)} of that"
                " time match now. Its plan is not kept on this machine: restore a checkpoint of the run, which has it,"
                ' or begin the next pass on today\'s data with load_state_dict(state, on_change="replan")'
            )
        self._plan = plan
        if wanted is not None and wanted.drawn_by is not None:
            self.beside.cumulative_weights(plan, wanted.drawn_by)  # it is an error now if they are not known
        return plan

    def _is_whole(self, plan: Plan, wanted: State | None) -> bool:
        """Whether a plan is the one of a state, and its weights are at hand."""
        if wanted is None or plan.versions != wanted.versions or wanted.ids not in (None, plan.ids):
            return False
        return self.beside.feedback is None or self.beside.feedback.has(wanted.drawn_by, plan)

    def is_current(self, data: State) -> bool:
        """Whether a pass that begins now goes over this data, and is drawn by the same weights."""
        feedback = self.beside.feedback
        return self.versions() == data.versions and (feedback is None or feedback.is_current(data.drawn_by))

    def has_changed(self, wanted: State) -> bool:
        """Whether the samples that match now, or their values, differ from those that `wanted` refers to."""
        now = self.versions()
        if wanted.versions == now:
            return False
        if wanted.ids is None:
            return True  # a cursor has no plan to compare
        before, after = self.plan(wanted), self._newest(lasting=False)
        return before.ids != after.ids or any(
            column.tolist() != after.table.values[name].tolist() for name, column in before.table.values.items()
        )

    def count_before(self, state: State) -> int:
        """Count the samples up to the last one that the cursor of `state` has read. Deleted samples do not count."""
        dataset, sequence = state.at.after or ("", 0)
        until = [{"dataset": dataset, "_tdb.s": {"$lte": sequence}}, {"dataset": {"$lt": dataset}}]
        return self.bound_query.count({"$and": [bounded(state.versions or {}), {"$or": until}]})

    def block_shuffle(self, plan: Plan) -> tuple[int, int]:
        """How a stream that begins now shuffles: the values of a `BlockShuffle`."""
        spec = self.spec
        if spec.shuffle is not True or spec.replacement:
            return (0, 0)
        store = self.warehouse.blobs.store()
        near = isinstance(store, MemoryStore) or store.local_path("segments") is not None
        chosen = choose_block_shuffle(plan, None if near else self.warehouse.blobs.reader.cache_bytes)
        return (chosen.block, chosen.window)

    def _newest(self, lasting: bool = True) -> Plan:
        """The plan of the data now.

        If a long change of the data is going on, it is a plan of the data before this change. If that cannot be read
        and no plan of it is cached, it is the last plan of this stream, but only if `lasting`.
        """
        try:
            return self._reader.newest(self._plan, self.beside.of_new)
        except BusyError as error:
            plan = self._reader.cached_before(error) or (self._plan if lasting else None)
            if plan is None:
                raise
            log.warning("%s; a pass begins on data of before", error)
            return plan

    # --- plans that travel ------------------------------------------------------------------------------------------

    def compressed(self, data: State) -> NDArray[np.uint8]:
        """The plan of a state, with the weights and lengths of its samples, as compressed bytes: uint8 [m]."""
        plan = self.plan(data)
        if self._compressed is None or self._compressed[0] is not plan or self._compressed[1] != data.drawn_by:
            whole = self.beside.added_to(plan, data.drawn_by)
            packed = np.frombuffer(b"".join(pack_plan(whole, small=True)), np.uint8)
            self._compressed = plan, data.drawn_by, packed
        return self._compressed[2]

    def accept_plans(self, plans: Mapping[str, Any]) -> None:
        """Keep plans that came with a checkpoint or from another rank, for states that refer to them.

        Args:
            plans: Compressed plans by their digests.
        """
        self.given_plans = {**self.given_plans, **{ids: np.asarray(plan, np.uint8) for ids, plan in plans.items()}}

    def _given(self, wanted: State | None) -> Plan | None:
        if wanted is None or wanted.ids is None:
            return None
        for name in (plan_name(wanted), wanted.ids):
            content = self.given_plans.get(name)
            plan = None if content is None else self._unpacked(content, wanted.versions or {})
            if plan is not None:
                return plan
        return None

    def _unpacked(self, content: NDArray[np.uint8], versions: Versions) -> Plan | None:
        try:
            plan = unpack_plan(content, self.layout(versions))
        except DAMAGED as error:
            # It may lack a field that this stream delivers, and the stream that stored it did not.
            log.info("a stored plan is of no use and will be read anew: %s", error)
            return None
        if plan.versions != versions:
            return None
        self.beside.take_from(plan)
        self._reader.keep(replace(plan, cumulative_weights=None, lengths={}))  # workers that run already find it there
        return plan

    def drop(self) -> None:
        """Forget the plan, to free its memory."""
        self._plan = self._compressed = None
        self.beside.drop()

    def share_plan(self, other: Planner) -> None:
        """Use the plan and the registry of another planner, which has the same query and fields."""
        self._plan = other._plan
        self.beside.take_over(other.beside)
        self.join(other.agreement())

    def settle(self, members: Members) -> bool:
        """Note who shares the stream. Returns whether that has changed; what they had agreed on is forgotten then."""
        before = self.members or Members(self.spec.rank, self.spec.world_size)
        changed = members != before
        if changed:
            self.spec = replace(self.spec, rank=members.rank, world_size=members.world_size)
            self.registry, self._agreed_state, self._board = None, None, None
            if members.peers and members.board is not None:
                self._board = StreamBoard(members.board, self.warehouse, self.spec)
        self.members = members
        return changed

    @property
    def has_peers(self) -> bool:
        """Whether other processes go over the same passes."""
        return self.members is not None and self.members.peers

    def open_registry(self) -> SharedPassRegistry | None:
        """Open a registry, by which the readers of this stream, in other processes and ranks, agree on its passes.

        No rank waits for another one.

        Returns:
            The registry; None if this user may not write to the database, or nothing is known of the other ranks.

        Raises:
            NotAllowedError: This user may not write to the database, and that of another rank may.
        """
        warehouse, spec = self.warehouse, self.spec
        if not self.has_peers:
            self._agreed_state = self.agree_on_state()
            token = new_token() if SharedPassRegistry(warehouse, spec, "").is_writable() else ""
        elif self._board is None:
            return None
        else:
            self.state_now()  # what cannot be read is an error here, and the workers find the plan in the cache
            self._separate_caches = not self._board.share_a_cache()
            writable = SharedPassRegistry(warehouse, spec, "").is_writable()
            token = self._board.agree("token", new_token() if writable else READ_ONLY)
            if token == READ_ONLY:
                return None
            if not writable:
                raise NotAllowedError(
                    "this user may not write to the database, and the user of another rank may: give all ranks the same"
                    " user. Ranks agree on the data of each pass through the database"
                )
        self.registry = SharedPassRegistry(warehouse, spec, token, ranks=self.has_peers) if token else None
        return self.registry

    def agreement(self) -> dict[str, Any]:
        """What planners in other processes need, for `join`."""
        return {name: self.__dict__[name] for name in ("given_plans", "registry", "_separate_caches", "_agreed_state")}

    def join(self, agreement: Mapping[str, Any]) -> None:
        """Use what the readers of another planner have agreed on."""
        self.__dict__.update(agreement)

    def state_now(self, block_shuffle: tuple[int, int] | None = None) -> State:
        """The state at the start of a pass over the data of now."""
        plan = self.plan()
        return self.state_of(plan, block_shuffle or self.block_shuffle(plan), None)

    def state_of(self, plan: Plan, block_shuffle: tuple[int, int], data: State | None) -> State:
        """The state at the start of a pass over a plan.

        Args:
            plan: The plan.
            block_shuffle: How the pass is shuffled.
            data: The data of the pass; None if that is not decided yet. Then feedback is read now.
        """
        drawn_by = self.beside.drawn_by(plan, data)
        return State(Position(), plan.versions, plan.ids, len(plan), block_shuffle=block_shuffle, drawn_by=drawn_by)

    def send_plan(self, data: State) -> None:
        """Send the plan of `data` to the readers that share no cache with this one."""
        agreed, name = self._agreed_state, plan_name(data)
        known = agreed is not None and plan_name(agreed) == plan_name(data)
        if self.registry is not None and self._separate_caches and not known and name not in self._sent:
            self.registry.send_plan(name, self.compressed(data))
            self._sent.add(name)

    def _received(self, wanted: State | None) -> Plan | None:
        if wanted is None or wanted.ids is None or self.registry is None or not self._separate_caches:
            return None
        if self._is_at_hand(wanted):
            return self._plan
        found = self.registry.receive_plan(plan_name(wanted))
        return None if found is None else self._unpacked(found, wanted.versions or {})

    def agree_on_state(self) -> State:
        """The state at the start of a pass over the data of now, the same on all ranks that have a board.

        The first rank that comes here decides. A rank that shares its cache opens the plan there. The others receive
        it through the database; a user who may not write reads it anew.

        Raises:
            TensorDBError: A plan cannot be made or read.
        """
        if self._board is None:
            self._separate_caches = self.warehouse.cache_dir is None
            return self._kept(self.state_now())
        registry = self.registry or self.open_registry()
        if registry is None and not self._board.carries:
            return self._kept(self.state_now())
        if registry is None:
            first = self._board.agree("data", json.dumps(self.state_now().to_doc(self.spec)))
            return self._kept(State.from_doc(json.loads(first), self.spec))
        state = registry.for_good.get(0)
        if state is None:
            now = self.state_now()
            self.send_plan(now)
            state = registry.for_good.setdefault(0, now)
        return self._kept(state)

    def _kept(self, state: State) -> State:
        """`state`, the plan of which stays known to this planner and to those that join it."""
        self.plan(state)
        if self._separate_caches:  # otherwise it would be lost when the next plan is read
            self.accept_plans({plan_name(state): self.compressed(state)})
        return state

    def _is_at_hand(self, state: State) -> bool:
        """Whether the plan of a state can be had without reading the index."""
        if self._plan is not None and self._is_whole(self._plan, state):
            return True
        if self.warehouse.cache_dir is None:
            return False
        versions = state.versions or {}
        plan = self._reader.cached(self.layout(versions), versions)
        if plan is not None and self._is_whole(plan, state):
            self._plan = plan
            return True
        return False


def plan_name(data: State) -> str:
    """The name of the plan of a state. It has the versions too, since the same samples can have other values.

    And it has the name of the weights, where they are of feedback.
    """
    drawn_by = "" if data.drawn_by is None else f"-{data.drawn_by}"
    return f"{data.ids}{drawn_by}-{xxhash.xxh3_64_hexdigest(repr(sorted((data.versions or {}).items())).encode())}"

"""PassResolver: decides which data a pass goes over, when it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tensordb_data.stream.passes.planner import Planner, plan_name
from tensordb_data.stream.passes.registry import OpenedPasses, PassRegistry
from tensordb_data.stream.state import State


@dataclass(frozen=True)
class PassResolver:
    """Finds the data of a stream's passes.

    The data of a pass is, in this order: what the pass went over before the run was resumed; what the stream is pinned
    to; what a reader has registered. If it is none of these, the pass goes over what is there when it begins.
    """

    planner: Planner
    pinned: State | None
    registry: PassRegistry | None
    resumed: Mapping[int, State] = field(default_factory=dict)
    """The passes that had begun when the state of a resumed run was taken."""

    def lookup(self, number: int) -> State | None:
        """The data of a pass; None if it is not decided yet."""
        if number in self.resumed:
            return self.resumed[number]
        if self.pinned is not None or self.registry is None:
            return self.pinned
        return self.registry.get(number)

    def resolve(self, number: int, block_shuffle: tuple[int, int] | None = None) -> State | None:
        """The data of a pass. If it is not decided yet, the data of now is registered.

        Returns:
            The data; None if the stream is neither pinned nor has a registry.
        """
        found = self.lookup(number)
        if found is not None or self.registry is None:
            return found
        return self.register(number, self.planner.state_now(block_shuffle))

    def register(self, number: int, data: State) -> State:
        """Register the data of a pass. Returns `data`, or what another reader has registered before."""
        assert self.registry is not None
        self.planner.send_plan(data)
        return self.registry.setdefault(number, data)

    def is_stale(self, opened: OpenedPasses) -> bool:
        """Whether a pass that was opened ahead of time must be opened again.

        This is so if the data has changed meanwhile, or if another reader has registered other data. It is asked when
        the first batch of the pass is about to be delivered. Then the data of the pass is registered.
        """
        if self.pinned is not None or not opened:
            return False
        for number, data in opened:
            decided = self.lookup(number)
            if decided is None:
                is_current = self.planner.is_current(data)
                if self.registry is None:
                    if not is_current:
                        return True
                    continue
                fresh = data if is_current else self.planner.state_now(data.block_shuffle)
                decided = self.register(number, fresh)
            if plan_name(decided) != plan_name(data):
                return True
        return False

"""Opening: which data a pass goes over, when it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tensordb_data.stream.passes.registry import OpenedPasses, PassRegistry
from tensordb_data.stream.state import State

if TYPE_CHECKING:
    from tensordb_data.stream.passes.planner import Planner


@dataclass(frozen=True)
class PassResolver:
    """What fixes the data of a stream's passes: the data that it is pinned to, or what its readers agree on. With
    neither, a pass goes over what is there when it begins.
    """

    planner: Planner
    pinned: State | None
    registry: PassRegistry | None

    def lookup(self, number: int) -> State | None:
        """The data of a pass, where it is fixed."""
        if self.pinned is not None or self.registry is None:
            return self.pinned
        return self.registry.get(number)

    def resolve(self, number: int, block_shuffle: tuple[int, int] | None = None) -> State | None:
        """The data of a pass, which is fixed now if it was not; `None` where nothing fixes it."""
        return self.lookup(number) or (
            None if self.registry is None else self.register(number, self.planner.state_now(block_shuffle))
        )

    def register(self, number: int, data: State) -> State:
        """Fix the data of a pass for all who share the stream, if nobody else has."""
        assert self.registry is not None
        self.planner.send_plan(data)
        return self.registry.setdefault(number, data)

    def is_stale(self, opened_passes: OpenedPasses) -> bool:
        """Whether a pass that was opened ahead of time must be opened anew, since the data has changed meanwhile, or
        another reader has opened it on other data. Asked when its first batch is delivered, which fixes it.
        """
        if self.pinned is not None or not opened_passes:
            return False
        now = None
        for number, data in opened_passes:
            registered = None if self.registry is None else self.registry.get(number)
            if registered is None:
                now = now or self.planner.versions()
                if self.registry is None and now != data.versions:
                    return True
                if self.registry is None:
                    continue
                registered = self.register(
                    number, data if now == data.versions else self.planner.state_now(data.block_shuffle)
                )
            if (registered.versions, registered.ids) != (data.versions, data.ids):
                return True
        return False


class Begun:
    """The passes of a run that is resumed: those that had begun go over the data of then, the others over that of the
    opening.
    """

    def __init__(self, lookup: Mapping[int, State], resolver: PassResolver) -> None:
        self._known, self._resolver = lookup, resolver

    def get(self, number: int) -> State | None:
        """See `Passes`."""
        return self._known.get(number) or self._resolver.lookup(number)

    def setdefault(self, number: int, data: State) -> State:
        """See `Passes`."""
        assert self._resolver.registry is not None
        return self._known.get(number) or self._resolver.registry.setdefault(number, data)

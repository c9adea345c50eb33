"""Opening: which data a pass goes over, when it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tensordb_data.stream.passes.registry import Opened, Passes
from tensordb_data.stream.state import State

if TYPE_CHECKING:
    from tensordb_data.stream.passes.planner import Source


@dataclass(frozen=True)
class Opening:
    """What fixes the data of a stream's passes: the data that it is pinned to, or what its readers agree on. With
    neither, a pass goes over what is there when it begins.
    """

    source: Source
    pinned: State | None
    passes: Passes | None

    def known(self, number: int) -> State | None:
        """The data of a pass, where it is fixed."""
        if self.pinned is not None or self.passes is None:
            return self.pinned
        return self.passes.get(number)

    def fixed(self, number: int, blocks: tuple[int, int] | None = None) -> State | None:
        """The data of a pass, which is fixed now if it was not; `None` where nothing fixes it."""
        return self.known(number) or (None if self.passes is None else self.settle(number, self.source.begun(blocks)))

    def settle(self, number: int, data: State) -> State:
        """Fix the data of a pass for all who share the stream, if nobody else has."""
        assert self.passes is not None
        self.source.send(data)
        return self.passes.put(number, data)

    def stale(self, opens: Opened) -> bool:
        """Whether a pass that was opened ahead of time must be opened anew, since the data has changed meanwhile, or
        another reader has opened it on other data. Asked when its first batch is delivered, which fixes it.
        """
        if self.pinned is not None or not opens:
            return False
        now = None
        for number, data in opens:
            settled = None if self.passes is None else self.passes.get(number)
            if settled is None:
                now = now or self.source.versions()
                if self.passes is None and now != data.versions:
                    return True
                if self.passes is None:
                    continue
                settled = self.settle(number, data if now == data.versions else self.source.begun(data.blocks))
            if (settled.versions, settled.ids) != (data.versions, data.ids):
                return True
        return False


class Begun:
    """The passes of a run that is resumed: those that had begun go over the data of then, the others over that of the
    opening.
    """

    def __init__(self, known: Mapping[int, State], opening: Opening) -> None:
        self._known, self._opening = known, opening

    def get(self, number: int) -> State | None:
        """See `Passes`."""
        return self._known.get(number) or self._opening.known(number)

    def put(self, number: int, data: State) -> State:
        """See `Passes`."""
        assert self._opening.passes is not None
        return self._known.get(number) or self._opening.passes.put(number, data)

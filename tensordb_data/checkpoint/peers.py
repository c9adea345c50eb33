"""The other processes of a training."""

from __future__ import annotations

from typing import Protocol

from tensordb_data.params.shared import Share


class Peers(Protocol):
    """The processes that train together, each of which has a checkpointer of the same run."""

    rank: int
    """Of this process; 0 is the one that stores, or that commits."""
    share: Share | None
    """What this process stores of the state that was collected last; None if process 0 stores all of it."""

    def agree(self, due: bool, signal: int) -> tuple[bool, int]:
        """Whether a save is due on any process, and the highest signal that one has received, or 0."""
        ...

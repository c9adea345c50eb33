"""A state that is ready to be saved: its structure, its leaves, and their bytes on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tensordb_data.tensors.leaf import Leaf, host_bytes
from tensordb_data.tensors.tree import flatten


@dataclass(frozen=True)
class Snapshot:
    """A state at one instant, with the bytes of its tensors, that nothing changes any more.

    Attributes:
        structure: See `tree.Flat`.
        leaves: What the tensors are; their `value` is not to be used.
        data: The bytes of each leaf in C order.
    """

    structure: Any
    leaves: tuple[Leaf, ...]
    data: tuple[memoryview, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(leaf.nbytes for leaf in self.leaves)


def view(state: Any) -> Snapshot:
    """The bytes of a state without a copy where that is possible: for a caller who waits until they are stored."""
    flat = flatten(state)
    return Snapshot(flat.structure, flat.leaves, tuple(host_bytes(leaf) for leaf in flat.leaves))

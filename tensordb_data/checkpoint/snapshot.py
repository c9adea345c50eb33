"""Snapshots: every tensor of a state copied, at one instant, into host buffers that are used again. The only wait."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensordb_data.checkpoint.leaves import Leaf, copy_into, host_bytes, target_view
from tensordb_data.checkpoint.tree import Flat, flatten

_ALIGN = 16  # enough for any dtype, and mostly without gaps: neighbours here are neighbours in their object
_SMALL = 256  # bytes up to which a leaf lies behind the others, not between them


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


class Arena:
    """Host memory for one snapshot at a time. It grows to the largest one and stays: pages are touched once.

    For tensors on a CUDA device the memory is pinned, so that the copies run at the speed of the bus.
    """

    def __init__(self) -> None:
        self._memory: np.ndarray[Any, Any] = np.empty(0, np.uint8)
        self._pinned: Any = None
        self._signatures: list[Any] = []
        self._views: list[Any] = []
        self._offsets: list[int] = []

    @property
    def nbytes(self) -> int:
        """Bytes of host memory held."""
        return int(self._memory.nbytes)

    def reserve(self, flat: Flat) -> None:
        """Allocates, touches and lays out the memory that a state like this one needs."""
        self._lay_out(flat.leaves)

    def take(self, flat: Flat) -> Snapshot:
        """Copies the leaves. On return the state may change: the snapshot does not."""
        self._lay_out(flat.leaves)
        on_device = False
        for leaf, target in zip(flat.leaves, self._views, strict=True):
            if target is None:
                continue
            copy_into(leaf, target)
            on_device = on_device or (leaf.kind == "torch" and leaf.value.is_cuda)
        if on_device:
            sys.modules["torch"].cuda.synchronize()
        data = tuple(
            host_bytes(leaf) if target is None else self._memory.data[offset : offset + leaf.nbytes]
            for leaf, target, offset in zip(flat.leaves, self._views, self._offsets, strict=True)
        )
        return Snapshot(flat.structure, flat.leaves, data)

    def _lay_out(self, leaves: Sequence[Leaf]) -> None:
        signatures = [leaf.signature for leaf in leaves]
        pin = any(leaf.kind == "torch" and leaf.value.is_cuda for leaf in leaves)
        if signatures == self._signatures and pin == (self._pinned is not None):
            return
        self._offsets, end = [0] * len(leaves), 0
        for number, leaf in sorted(enumerate(leaves), key=lambda pair: pair[1].nbytes <= _SMALL):
            self._offsets[number] = end
            if not _stays(leaf):
                end += -(-leaf.nbytes // _ALIGN) * _ALIGN
        if end > self._memory.nbytes or pin != (self._pinned is not None):
            self._allocate(end, pin)
        self._views = [
            target_view(leaf, self._memory[offset : offset + leaf.nbytes]) if leaf.nbytes and not _stays(leaf) else None
            for leaf, offset in zip(leaves, self._offsets, strict=True)
        ]
        self._signatures = signatures

    def _allocate(self, nbytes: int, pin: bool) -> None:
        self._views, self._signatures = [], []  # let go of the old memory before asking for more
        self._memory, self._pinned = np.empty(0, np.uint8), None
        if pin:
            self._pinned = sys.modules["torch"].empty(nbytes, dtype=sys.modules["torch"].uint8, pin_memory=True)
            self._memory = self._pinned.numpy()
        else:
            self._memory = np.empty(nbytes, np.uint8)
        self._memory.fill(0)


def _stays(leaf: Leaf) -> bool:
    """Whether it never changes, so that it needs no copy."""
    return leaf.kind == "bytes" or leaf.fixed

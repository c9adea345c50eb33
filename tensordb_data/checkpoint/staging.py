"""Copy every tensor of a state into host memory at one instant. This is all that the training loop waits for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensordb_data.checkpoint.cuda_copy import DeviceCopy
from tensordb_data.tensors.leaf import Leaf, copy_into, host_bytes, target_view, torch_view
from tensordb_data.tensors.snapshot import Snapshot
from tensordb_data.tensors.tree import Flat

_ALIGN = 16  # enough for any dtype, and mostly without gaps: neighbours here are neighbours in their object
_SMALL = 256  # bytes up to which a leaf lies behind the others, not between them


class StagingBuffer:
    """Host memory for one snapshot at a time. It grows to the largest one and is reused, so pages are touched once.

    For tensors on CUDA devices the memory is pinned, and copies may still run when the loop goes on.
    """

    def __init__(self) -> None:
        self._memory: np.ndarray[Any, Any] = np.empty(0, np.uint8)
        self._pinned: Any = None
        self._signatures: list[Any] | None = None  # what the memory is laid out for
        self._views: list[Any] = []
        self._offsets: list[int] = []
        self._copies: list[tuple[DeviceCopy, list[int]]] = []  # of each device, and the numbers of its leaves

    @property
    def nbytes(self) -> int:
        """Bytes of host memory held."""
        return int(self._memory.nbytes)

    def reserve(self, flat: Flat) -> None:
        """Allocate, touch and lay out the memory for a state like this one."""
        self._lay_out(flat.leaves)

    def take(self, flat: Flat) -> Snapshot:
        """Copy the leaves. On return the state may change. The snapshot is complete after `wait`."""
        self._lay_out(flat.leaves)
        for copy, numbers in self._copies:
            copy.start([flat.leaves[number].value.detach() for number in numbers])
        for leaf, target in zip(flat.leaves, self._views, strict=True):
            if target is not None:
                copy_into(leaf, target)
        data = tuple(
            self._memory.data[offset : offset + leaf.nbytes] if leaf.nbytes and not _stays(leaf) else host_bytes(leaf)
            for leaf, offset in zip(flat.leaves, self._offsets, strict=True)
        )
        return Snapshot(flat.structure, flat.leaves, data)

    def wait(self) -> None:
        """Wait until the bytes of the last snapshot are there. May be called from any thread."""
        for copy, _ in self._copies:
            copy.wait()

    def _lay_out(self, leaves: Sequence[Leaf]) -> None:
        signatures = [leaf.signature for leaf in leaves]
        if signatures == self._signatures:
            return
        self.wait()
        self._signatures = None  # until all is laid out, whatever interrupts it
        torch = sys.modules.get("torch")
        # What is made in torch's inference mode cannot be written to outside of it.
        with contextlib.nullcontext() if torch is None else torch.inference_mode(False):
            self._place(leaves, signatures)

    def _place(self, leaves: Sequence[Leaf], signatures: list[Any]) -> None:
        devices = {leaf.device for leaf in leaves} - {None}
        self._offsets, end = [0] * len(leaves), 0
        spans: dict[Any, list[int]] = {device: [] for device in devices}
        for number, leaf in sorted(enumerate(leaves), key=lambda pair: (str(pair[1].device), pair[1].nbytes <= _SMALL)):
            self._offsets[number] = end
            if leaf.nbytes and not _stays(leaf):
                end += -(-leaf.nbytes // _ALIGN) * _ALIGN
                if leaf.device is not None:
                    spans[leaf.device].append(number)
        if end > self._memory.nbytes or bool(devices) != (self._pinned is not None):
            self._allocate(end, bool(devices))
        self._views = [
            target_view(leaf, self._memory[offset : offset + leaf.nbytes])
            if leaf.nbytes and leaf.device is None and not _stays(leaf)
            else None
            for leaf, offset in zip(leaves, self._offsets, strict=True)
        ]
        self._copies = [(self._copy(device, leaves, numbers), numbers) for device, numbers in spans.items() if numbers]
        self._signatures = signatures

    def _copy(self, device: Any, leaves: Sequence[Leaf], numbers: Sequence[int]) -> DeviceCopy:
        start, last = self._offsets[numbers[0]], numbers[-1]
        span = slice(start, self._offsets[last] + leaves[last].nbytes)

        def view(memory: Any) -> list[Any]:
            places = [(leaves[number], self._offsets[number] - start) for number in numbers]
            return [torch_view(leaf.dtype, leaf.shape, memory[at : at + leaf.nbytes]) for leaf, at in places]

        return DeviceCopy(device, self._pinned[span], view)

    def _allocate(self, nbytes: int, pin: bool) -> None:
        self._views, self._copies = [], []  # let go of the old memory before asking for more
        self._memory, self._pinned = np.empty(0, np.uint8), None
        if pin:
            self._pinned = sys.modules["torch"].empty(nbytes, dtype=sys.modules["torch"].uint8, pin_memory=True)
            self._memory = self._pinned.numpy()
        else:
            self._memory = np.empty(nbytes, np.uint8)
        self._memory.fill(0)


def _stays(leaf: Leaf) -> bool:
    """Whether the leaf never changes, so that it needs no copy."""
    return leaf.kind == "bytes" or leaf.fixed

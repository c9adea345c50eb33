"""Copy tensors from a CUDA device into pinned host memory, while the training loop goes on.

First the tensors are copied within the device, behind all work that is queued there. This fixes the instant, and runs
at the speed of the device's memory. From that copy they are copied to the host, on a CUDA stream of its own, beside the
next steps. The first copy takes device memory until the second one has ended. If there is too little, the loop waits
for a copy straight to the host instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

_SPARE = 2  # times its size that must be free for a copy within the device: the loop must find room, too


class DeviceCopy:
    """The copies of one CUDA device's tensors into one span of pinned host memory, one after the other.

    Args:
        device: The device.
        host: The span, a pinned uint8 tensor.
        view: Gives the tensors over memory like `host`, on any device, that the sources are copied into.
    """

    def __init__(self, device: Any, host: Any, view: Callable[[Any], Sequence[Any]]) -> None:
        torch = sys.modules["torch"]
        self._device, self._host, self._view = device, host, view
        self._on_host = view(host)
        self._stream = torch.cuda.Stream(device)
        self._within: Any = None  # once there was room for it
        self._on_device: Sequence[Any] = ()
        self._done: Any = None
        if self._take_room():  # so that the first copy finds it in the allocator's cache
            self._leave_room()

    def start(self, sources: Sequence[Any]) -> None:
        """Copies; what the loop queues from now on does not change what arrives. See `wait`."""
        torch = sys.modules["torch"]
        now = torch.cuda.current_stream(self._device)
        within = self._take_room()
        if within:
            with torch.cuda.device(self._device):
                torch._foreach_copy_(self._on_device, sources)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            if within:
                self._host.copy_(self._within, non_blocking=True)
            else:
                torch._foreach_copy_(self._on_host, sources, non_blocking=True)
        self._done = self._stream.record_event()
        if not within:
            self._done.synchronize()

    def wait(self) -> None:
        """Returns when the bytes are on the host, from any thread."""
        if self._done is not None:
            self._done.synchronize()
            self._done = None
            self._leave_room()

    def _take_room(self) -> bool:
        torch, needed = sys.modules["torch"], self._host.numel()
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        if torch.cuda.mem_get_info(self._device)[0] + cached < _SPARE * needed:
            return False
        try:
            if self._within is None:
                self._within = torch.empty(needed, dtype=torch.uint8, device=self._device)
                self._on_device = self._view(self._within)
            else:
                self._within.untyped_storage().resize_(needed)
        except torch.cuda.OutOfMemoryError:  # there is as much, but not in one piece
            return False
        return True

    def _leave_room(self) -> None:
        """Gives the room back, if it was taken, and keeps the views, of which there may be thousands."""
        if self._within is not None:
            self._within.untyped_storage().resize_(0)

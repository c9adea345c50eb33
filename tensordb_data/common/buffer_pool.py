"""Buffers: the memory of large batches, used again when nobody refers to a batch any more.

Of fresh memory the system clears each page at its first touch, which takes longer than to fill it with a batch; and the
allocator of C gives large blocks back to the system between two batches, all the more with many threads.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

WORTH = 1 << 20
"""Bytes from which on a buffer is worth to be kept; numpy and the allocator are good at smaller ones."""
_SPARE = 64 << 20  # bytes kept while nobody uses them: a loop gives back about one batch for each that it takes

Block = npt.NDArray[np.uint8]

_lock = threading.Lock()
_free: list[Block] = []


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array like that of `numpy.empty`. Its memory is used again once it is gone, and with it every view of it,
    whether of numpy, of torch or another library.
    """
    kind = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if nbytes < WORTH or kind.hasobject:
        return np.empty(shape, kind)
    block = _take(nbytes)
    # Of a memoryview, not of an array: numpy would have the views of the array refer to that one, past it.
    array = np.frombuffer(block.data, kind)
    weakref.finalize(array, _give_back, block).atexit = False
    return array.reshape(shape)


def _take(nbytes: int) -> Block:
    with _lock:
        for at, block in enumerate(_free):
            if block.nbytes == nbytes:
                del _free[at]
                return block
    return np.empty(nbytes, np.uint8)


def _give_back(block: Block) -> None:
    # Garbage is collected anywhere, in the middle of these functions too: then this one block is not kept.
    if not _lock.acquire(blocking=False):
        return
    try:
        _free.append(block)
        while sum(each.nbytes for each in _free) > max(_SPARE, 2 * block.nbytes):
            del _free[0]
    finally:
        _lock.release()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _free.clear()


os.register_at_fork(after_in_child=_after_fork)

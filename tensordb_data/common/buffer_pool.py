"""Reuse the memory of large batches when nothing refers to a batch any more.

The system clears each page of fresh memory at its first touch. This takes longer than to fill it with a batch. And the
allocator of C gives large blocks back to the system between two batches, above all with many threads.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from tensordb_data.common.system.fork import at_fork

WORTH = 1 << 20
"""Smaller buffers are not kept: numpy and the allocator handle them well."""
_SPARE = 64 << 20  # bytes kept while nobody uses them: a loop gives back about one batch for each that it takes

Block = npt.NDArray[np.uint8]

_lock = threading.Lock()
_free: list[Block] = []


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Make an array, as `numpy.empty` does.

    Its memory is reused when the array is gone, and every view of it: of numpy, of torch or of another library.
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


at_fork(after_in_child=_after_fork)

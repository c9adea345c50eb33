"""Files as memory, without holding their descriptors."""

from __future__ import annotations

import ctypes
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes1D = npt.NDArray[np.uint8]

_PROT_READ = 1
_MAP_SHARED = 1
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def map_file(path: Path, nbytes: int) -> Bytes1D:
    """The first `nbytes` (> 0) of a file as read-only memory, see `map_open_file`.

    Raises:
        OSError: the file cannot be opened or mapped.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return map_open_file(fd, nbytes, path)
    finally:
        os.close(fd)


def map_open_file(fd: int, nbytes: int, path: Path) -> Bytes1D:
    """The first `nbytes` (> 0) of an open file as read-only memory, unmapped when the last array over it goes.

    Python's own mmap keeps a descriptor for each mapping, so a warehouse of 1,000 segments would use up the
    descriptors of a process.

    Raises:
        OSError: the file cannot be mapped.
    """
    address = _mmap(None, nbytes, _PROT_READ, _MAP_SHARED, fd, 0)
    if address is None or address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    memory = (ctypes.c_uint8 * nbytes).from_address(address)
    # Not at exit: a daemon thread may still be reading, and the system unmaps anyway.
    weakref.finalize(memory, _munmap, address, nbytes).atexit = False
    array: Bytes1D = np.ctypeslib.as_array(memory)
    array.flags.writeable = False
    return array


def array_at(address: int, nbytes: int, owner: Any) -> Bytes1D:
    """Memory that `owner` keeps alive, as a writable array that keeps `owner` alive."""
    memory = (ctypes.c_uint8 * nbytes).from_address(address)
    weakref.finalize(memory, _let_go, owner).atexit = False
    array: Bytes1D = np.ctypeslib.as_array(memory)
    return array


def _let_go(owner: Any) -> None:
    """Being held by the finalizer until now was all that `owner` had to do."""

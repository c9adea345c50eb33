"""Files as memory, without holding their descriptors."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tensordb_data.common.system.files import PLAIN
from tensordb_data.common.system.modules import libc

Bytes1D = npt.NDArray[np.uint8]

_PROT_READ = 1
_MAP_SHARED = 1
_FAILED = ctypes.c_void_p(-1).value

if libc is not None:
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def map_file(path: Path, nbytes: int) -> Bytes1D:
    """The first `nbytes` (> 0) of a file as read-only memory, see `map_open_file`.

    Raises:
        OSError: the file cannot be opened or mapped.
    """
    fd = os.open(path, os.O_RDONLY | PLAIN)
    try:
        return map_open_file(fd, nbytes, path)
    finally:
        os.close(fd)


def map_open_file(fd: int, nbytes: int, path: Path) -> Bytes1D:
    """The first `nbytes` (> 0) of an open file as read-only memory, unmapped when the last array over it goes.

    Python's own mmap keeps a descriptor for each mapping, so a warehouse of 1,000 segments would use up the
    descriptors of a process. It serves on Windows, which has no such limit, and lets nobody cut a mapped file short.

    Raises:
        OSError: the file cannot be mapped.
    """
    if libc is None:
        try:
            return np.frombuffer(mmap.mmap(fd, nbytes, access=mmap.ACCESS_READ), np.uint8)
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error), str(path)) from error
    address = libc.mmap(None, nbytes, _PROT_READ, _MAP_SHARED, fd, 0)
    if address is None or address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    memory = (ctypes.c_uint8 * nbytes).from_address(address)
    # Not at exit: a daemon thread may still be reading, and the system unmaps anyway.
    weakref.finalize(memory, libc.munmap, address, nbytes).atexit = False
    array: Bytes1D = np.ctypeslib.as_array(memory)
    array.flags.writeable = False
    return array


class UnmappedError(Exception):
    """Mapped bytes are not there any more: their file was cut short, or its disk is full.

    Attributes:
        address: That of the first run that cannot be read.
    """

    def __init__(self, address: int) -> None:
        super().__init__(f"the mapped bytes at {address:#x} are not there")
        self.address = address


def copy_runs(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64] | int, out: Bytes1D) -> None:
    """Copy runs of mapped memory into `out`, back to back.

    The kernel copies: where it finds no bytes it says so. A read by this process would end it with SIGBUS.

    Args:
        starts: The addresses of the runs.
        lengths: Their bytes; a number for all.
        out: As many bytes as all runs have.

    Raises:
        UnmappedError: Some bytes are not there.
    """
    if not len(out):
        return
    runs = np.empty((len(starts), 2), np.int64)
    runs[:, 0], runs[:, 1] = starts, lengths
    ends = np.cumsum(runs[:, 1])
    target = np.empty(2, np.int64)
    done = first = 0
    while done < len(out):
        # A call takes so many runs, and gives up in the middle of nothing: it copies whole runs.
        some = runs[first : first + _RUNS]
        target[:] = out.ctypes.data + done, int(ends[first + len(some) - 1]) - done
        copied = _readv(os.getpid(), target.ctypes.data, 1, some.ctypes.data, len(some), 0)
        if copied != target[1]:
            bad = first if copied <= 0 else int(np.searchsorted(ends, done + copied, "right"))
            raise UnmappedError(int(runs[min(bad, len(runs) - 1), 0]))
        done, first = done + copied, first + len(some)


def copied(array: Bytes1D) -> memoryview:
    """A copy of mapped memory.

    Raises:
        UnmappedError: Some bytes are not there.
    """
    out = np.empty(len(array), np.uint8)
    copy_runs(np.array([array.ctypes.data]), len(array), out)
    return out.data


def _copy_here(pid: int, target: int, one: int, runs: int, count: int, flags: int) -> int:
    """What `process_vm_readv` does, by this process: where a system has no such call, or forbids it."""
    total = 0
    place = (ctypes.c_int64 * 2).from_address(target)[0]
    pairs = (ctypes.c_int64 * (2 * count)).from_address(runs)
    for start, length in zip(pairs[::2], pairs[1::2], strict=True):
        ctypes.memmove(place + total, start, length)
        total += length
    return total


def _find_readv() -> Any:
    call = getattr(libc, "process_vm_readv", None)
    if call is not None:
        call.restype = ctypes.c_ssize_t
        call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
        pair = np.zeros(8, np.int64)
        pair[:4] = pair.ctypes.data + 32, 8, pair.ctypes.data, 8
        if call(os.getpid(), pair.ctypes.data, 1, pair.ctypes.data + 16, 1, 0) == 8:
            return call
    return _copy_here


_readv = _find_readv()
_RUNS = 1024  # the kernel takes no more in a call


def array_at(address: int, nbytes: int, owner: Any) -> Bytes1D:
    """Memory that `owner` keeps alive, as a writable array that keeps `owner` alive."""
    memory = (ctypes.c_uint8 * nbytes).from_address(address)
    weakref.finalize(memory, _let_go, owner).atexit = False
    array: Bytes1D = np.ctypeslib.as_array(memory)
    return array


def _let_go(owner: Any) -> None:
    """Being held by the finalizer until now was all that `owner` had to do."""

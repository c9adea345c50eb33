"""One segment's file in the disk cache, as it lies on disk, is mapped, and is written to."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tensordb_data.common.system.files import OWN_NO_WAIT, reserve, write_at
from tensordb_data.common.system.fork import at_fork
from tensordb_data.common.system.mmap import Bytes1D, UnmappedError, copied
from tensordb_data.common.system.modules import optional

_MAGIC = b"TDBcache"
_VERSION = 1
HEAD = struct.Struct("<8sIQQQ")  # magic, version, bytes of the segment, its blobs, where it begins in the file
PAGE = 4096
_LARGE = 1 << 20  # bytes for which it pays to reserve their place on disk first

_SLICE = 256 << 10
"""Bytes written at once. For larger writes the kernel looks for larger pages, which a machine that has been up for a
while has to make first: there 800 MB then take 1.2 s of processor time instead of 0.1."""

_fcntl = optional("fcntl")
_FLOCK = struct.Struct("@hhqqi4x")
_CAN_CLAIM = sys.platform == "linux" and sys.maxsize > 2**32 and hasattr(_fcntl, "F_OFD_SETLK")

_claims: set[int] = set()
"""Descriptors that hold locks: a forked child closes its copies, or the locks would outlive their owner."""


def _close_claims() -> None:
    for fd in list(_claims):
        with contextlib.suppress(OSError):
            os.close(fd)
    _claims.clear()


at_fork(after_in_child=_close_claims)


class CachedFile:
    """One segment's file, mapped."""

    def __init__(self, path: Path, memory: Bytes1D, identity: tuple[int, int], begin: int, blobs: int) -> None:
        self.path = path
        self.identity = identity
        self.begin = begin
        self.data = memory[begin:]
        """The segment. What is not there reads as zeros."""
        self.marks = memory[PAGE : PAGE + blobs]
        """1 for each blob that is said to be there; changes as any process writes."""

    def marked(self, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Which of the blobs first..last-1 are said to be there; none where the file was cut short."""
        try:
            return np.frombuffer(copied(self.marks[first:last]), np.bool_)
        except UnmappedError:
            return np.zeros(last - first, np.bool_)

    def is_current(self) -> bool:
        """Whether the path still leads to this file."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self.identity


class Claim:
    """A cached file, open for writing. Ranges of blobs claimed through it are this claim's until it is closed."""

    def __init__(self, file: CachedFile, fd: int) -> None:
        self._file, self._fd = file, fd
        self.name = file.path.name
        _claims.add(fd)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exc: object) -> None:
        _claims.discard(self._fd)
        os.close(self._fd)

    def take(self, first: int, last: int) -> bool:
        """Claim blobs first..last-1, unless another one has claimed some of them."""
        if not _CAN_CLAIM:
            return True
        wanted = _FLOCK.pack(_fcntl.F_WRLCK, os.SEEK_SET, first, last - first, 0)
        try:
            _fcntl.fcntl(self._fd, _fcntl.F_OFD_SETLK, wanted)
        except OSError as error:
            # A file system without locks is no reason not to cache on it.
            return error.errno not in (errno.EAGAIN, errno.EACCES)
        return True

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes of the segment."""
        if len(data) >= _LARGE:
            reserve(self._fd, self._file.begin + offset, len(data))
        write_all(self._fd, self._file.begin + offset, data)

    def mark(self, first: int, last: int) -> None:
        """Say that blobs first..last-1 are there."""
        write_all(self._fd, PAGE + first, memoryview(b"\1" * (last - first)))


def begins(blobs: int) -> int:
    """Where the segment begins in the file: a page boundary after the marks."""
    return PAGE + -(-blobs // PAGE) * PAGE


def head_of(nbytes: int, blobs: int) -> bytes:
    """What the file of a segment begins with."""
    return HEAD.pack(_MAGIC, _VERSION, nbytes, blobs, begins(blobs))


def is_ours(path: Path) -> bool:
    """Whether a file is one of a cache."""
    try:
        fd = os.open(path, os.O_RDONLY | OWN_NO_WAIT)
    except OSError:
        return False
    try:
        return os.read(fd, len(_MAGIC)) == _MAGIC
    except OSError:
        return False
    finally:
        os.close(fd)


def write_all(fd: int, offset: int, data: memoryview) -> None:
    """Write all of some bytes at a place in a file."""
    view = data.cast("B")
    while len(view):
        written = write_at(fd, view[:_SLICE], offset)
        view, offset = view[written:], offset + written

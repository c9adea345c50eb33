"""Files by descriptor: flags and calls that not every operating system has."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tensordb_data.common.system.modules import libc

Memory = bytes | bytearray | memoryview

PLAIN = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
"""Flags for each `os.open`: bytes come as they are, and programs that are started do not get the file."""
OWN = PLAIN | getattr(os, "O_NOFOLLOW", 0)
"""`PLAIN`, and no link where the system can refuse one."""
OWN_NO_WAIT = OWN | getattr(os, "O_NONBLOCK", 0)
"""`OWN`, and nothing that has to be waited for, such as a pipe."""
FOLDER = PLAIN | getattr(os, "O_DIRECTORY", 0)
"""`PLAIN`, and a folder where the system can ask for one."""

_BLOCK = 512  # bytes in which the kernel counts what a file occupies

_seeking = threading.Lock()
"""Held while the position of a descriptor is ours: one for all, since a descriptor has no place for its own."""


@contextlib.contextmanager
def positioned(fd: int, offset: int) -> Iterator[None]:
    """Within this, the descriptor stands at `offset`, and no other thread is here; afterwards, where it stood."""
    with _seeking:
        before = os.lseek(fd, 0, os.SEEK_CUR)
        os.lseek(fd, offset, os.SEEK_SET)
        try:
            yield
        finally:
            os.lseek(fd, before, os.SEEK_SET)


def read_at(fd: int, nbytes: int, offset: int) -> bytes:
    """At most `nbytes` bytes of an open file from `offset` on; none at its end. Threads may share the descriptor."""
    if hasattr(os, "pread"):
        return os.pread(fd, nbytes, offset)
    with positioned(fd, offset):
        return os.read(fd, nbytes)


def read_into(fd: int, memory: memoryview, offset: int) -> int:
    """Fill memory from an open file, from `offset` on; returns how many bytes came, 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [memory], offset)
    with positioned(fd, offset), open(fd, "rb", buffering=0, closefd=False) as file:
        return file.readinto(memory) or 0


def write_at(fd: int, data: Memory, offset: int) -> int:
    """Write bytes into an open file at `offset`; returns how many were written."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with positioned(fd, offset):
        return os.write(fd, data)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system and its file system can.

    Raises:
        OSError: The folder is not there, or its disk fails.
    """
    if os.name == "nt":  # no folder can be opened there
        return
    fd = os.open(folder, os.O_RDONLY | FOLDER)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot sync a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def reserve(fd: int, offset: int, nbytes: int) -> None:
    """Take a place on disk in one piece: to write there costs half as much processor time as to a hole.

    Raises:
        OSError: The disk is full. Where the system has no such call, nothing happens.
    """
    # Not os.posix_fallocate, which writes zeros where the file system cannot do it.
    call = getattr(libc, "fallocate", None)
    if call is not None and call(fd, 0, ctypes.c_long(offset), ctypes.c_long(nbytes)) != 0:
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(code, os.strerror(code))


def occupied(status: os.stat_result) -> int:
    """Bytes that a file takes on disk: fewer than it has where it is sparse, if the system tells."""
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else _BLOCK * int(blocks)


def nameless_file(name: str) -> int:
    """Open a file without a name, which is gone when its last descriptor is closed; in memory where the system can.

    Args:
        name: What tools show of it.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    with tempfile.TemporaryFile(prefix=name, buffering=0) as file:
        return os.dup(file.fileno())

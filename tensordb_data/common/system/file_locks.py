"""Lock files. Every descriptor is known here, so that a forked child can close its copies and hold nothing.

A `flock` belongs to the open file, which a fork shares: a child that keeps its copy keeps the lock, and one that
unlocks its copy unlocks the parent's. So a child only ever closes, and does so at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from tensordb_data.common.system.files import PLAIN, positioned
from tensordb_data.common.system.fork import at_fork
from tensordb_data.common.system.modules import optional

LOCK_SH, LOCK_EX, LOCK_NB = 1, 2, 4
"""What a lock is: shared, or exclusive; and refused rather than waited for. The numbers of `flock` on all systems."""

_fcntl, _msvcrt = optional("fcntl"), optional("msvcrt")
_FAR = 1 << 30  # the byte that is locked on Windows, where nobody reads or writes a locked one

_guard = threading.Lock()  # held over a fork, so that no descriptor is open but not yet known
_open: set[int] = set()


def open_fd(path: Path, flags: int) -> int:
    """Open `path`; the descriptor is closed in forked children."""
    with _guard:
        fd = os.open(path, flags | PLAIN, 0o600)
        _open.add(fd)
    return fd


def pipe() -> tuple[int, int]:
    """Make a pipe whose ends are closed in forked children."""
    with _guard:
        ends = os.pipe()
        _open.update(ends)
    return ends


def close_fd(fd: int) -> None:
    """Close a descriptor that came from `open_fd` or `pipe`."""
    with _guard:
        _open.discard(fd)
        os.close(fd)


def lock(fd: int, operation: int) -> None:
    """Take a lock on an open file, which ends with its descriptor.

    Args:
        fd: The descriptor, open for writing.
        operation: `LOCK_EX` or `LOCK_SH`; with `LOCK_NB` it is not waited for. Windows has `LOCK_EX | LOCK_NB` alone.

    Raises:
        BlockingIOError: Another one holds it, and it was not to be waited for.
        OSError: The system, or the file system, has no such locks.
    """
    if _fcntl is not None:
        _fcntl.flock(fd, operation)
    elif _msvcrt is not None and operation == LOCK_EX | LOCK_NB:
        try:
            with positioned(fd, _FAR):
                _msvcrt.locking(fd, _msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
    else:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def acquire(path: Path, operation: int) -> int:
    """Open `path` and take a lock on it; blocks unless `operation` has LOCK_NB, then raises BlockingIOError."""
    fd = open_fd(path, os.O_RDWR | os.O_CREAT)
    try:
        lock(fd, operation)
    except BaseException:
        close_fd(fd)
        raise
    return fd


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the exclusive lock on `path`."""
    fd = acquire(path, LOCK_EX)
    try:
        yield
    finally:
        close_fd(fd)


def is_held(path: Path) -> bool:
    """Whether somebody holds `path` exclusively."""
    try:
        close_fd(acquire(path, LOCK_SH | LOCK_NB))
    except BlockingIOError:
        return True
    return False


def is_of(fd: int, path: Path) -> bool:
    """Whether `fd` is an open `path`, and not a file of that name that was removed."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def wait_released(path: Path) -> None:
    """Block until nobody holds `path` exclusively."""
    close_fd(acquire(path, LOCK_SH))


def holders(path: Path) -> list[int]:
    """The processes that hold a share of the lock on `path`, by pid; 0 for one in another pid namespace."""
    try:
        inode = str(path.stat().st_ino)
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        part = line.split()  # 12: FLOCK ADVISORY READ 4711 fe:00:131 0 EOF
        if len(part) >= 6 and part[1] == "FLOCK" and part[3] == "READ" and part[5].rpartition(":")[2] == inode:
            found.append(int(part[4]))
    return found


def _in_child() -> None:
    for fd in _open:
        with contextlib.suppress(OSError):
            os.close(fd)
    _open.clear()
    _guard.release()


at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_in_child)

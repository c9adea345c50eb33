"""Leases on files: while one is held, the mapped bytes of its file stay there.

Whoever cuts a leased file short, or opens it to write, waits in the kernel until the lease is given back, or for the
seconds of `/proc/sys/fs/lease-break-time` (45). A lease is held for one short read at a time, so nobody waits long.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import weakref
from pathlib import Path

from tensordb_data.common.system.files import PLAIN, occupied
from tensordb_data.common.system.fork import at_fork
from tensordb_data.common.system.modules import optional

_fcntl = optional("fcntl")
_MOST = 128  # descriptors that leases may keep open
_leases: weakref.WeakSet[Lease] = weakref.WeakSet()


class Lease:
    """A lease that can be held on a file of this user, by any number of threads at once. See `lease_on`.

    Args:
        fd: The open file. It is closed when this object goes.
        nbytes: Bytes that the file must have.
    """

    def __init__(self, fd: int, nbytes: int) -> None:
        self._nbytes = nbytes
        self._start(fd)
        _leases.add(self)

    def _start(self, fd: int) -> None:
        self._fd, self._lock, self._holders, self._inherited = fd, threading.Lock(), 0, False
        self._close = weakref.finalize(self, os.close, fd)
        self._close.atexit = False

    def hold(self) -> bool:
        """Hold the lease until `let_go`, if it is to be had, and if the file has its size."""
        if self._inherited and not self._open_again():
            return False
        with self._lock:
            if self._holders:
                free = _fcntl.fcntl(self._fd, _fcntl.F_GETLEASE) == _fcntl.F_RDLCK  # else somebody waits for the others
            else:
                free = self._take()
            self._holders += free
            return bool(free)

    def let_go(self) -> None:
        """End one `hold` that was granted."""
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._give_back()

    def _take(self) -> bool:
        try:
            _fcntl.fcntl(self._fd, _fcntl.F_SETLEASE, _fcntl.F_RDLCK)
        except OSError:  # somebody writes to it, or its file system has no leases
            return False
        if os.lseek(self._fd, 0, os.SEEK_END) >= self._nbytes:
            return True
        self._give_back()
        return False

    def _give_back(self) -> None:
        with contextlib.suppress(OSError):
            _fcntl.fcntl(self._fd, _fcntl.F_SETLEASE, _fcntl.F_UNLCK)

    def _open_again(self) -> bool:
        """Open the file anew in a forked process: with its parent's, each would give back the lease of the other."""
        try:
            fd = _open(f"/proc/self/fd/{self._fd}")
        except OSError:
            return False
        self._close()
        self._start(fd)
        return True


def lease_on(path: Path, nbytes: int) -> Lease | None:
    """A lease on a file of `nbytes` bytes; None if there is none for it, or if this process has as many as it may."""
    if not hasattr(_fcntl, "F_SETLEASE") or len(_leases) >= _MOST:
        return None
    try:
        fd = _open(path)
    except OSError:
        return None
    # Bytes that a sparse file does not have yet would need room on a disk that may be full.
    if occupied(os.fstat(fd)) >= nbytes:
        return Lease(fd, nbytes)
    os.close(fd)
    return None


def _open(path: Path | str) -> int:
    fd = os.open(path, os.O_RDONLY | PLAIN)
    # What says that somebody waits for a lease would end the process by default. This signal is ignored.
    _fcntl.fcntl(fd, _fcntl.F_SETSIG, signal.SIGURG)
    return fd


def _in_child() -> None:
    for lease in list(_leases):
        lease._inherited, lease._lock = True, threading.Lock()


at_fork(after_in_child=_in_child)

"""Open a file below a folder, and never one that a link or `..` leads to elsewhere."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator

from tensordb_data.common.system.files import FOLDER, OWN_NO_WAIT, PLAIN
from tensordb_data.common.system.modules import libc

_CALL = 437  # openat2 has this number on every machine
_BENEATH = 0x08
_NO_MAGIC_LINKS = 0x02
_UNKNOWN = (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG)
"""What a kernel says that has no such call, or a filter of calls. The file is opened otherwise."""


class LeadsOutError(OSError):
    """A path leads out of its folder, by a link."""


class _How(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


@contextlib.contextmanager
def opened_beneath(folder: str, key: str) -> Iterator[int]:
    """The descriptor of a regular file below a folder, for reading.

    Links are followed as long as they stay below the folder.

    Args:
        folder: The folder.
        key: The path below it, with slashes; no part of it is `..`.

    Raises:
        LeadsOutError: A link leads out of the folder.
        OSError: The file cannot be opened, or is no regular file.
    """
    fd = _open(folder, key)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", key)
        yield fd
    finally:
        os.close(fd)


def _open(folder: str, key: str) -> int:
    if _has_call:
        top = os.open(folder, os.O_RDONLY | FOLDER)
        try:
            how = _How(os.O_RDONLY | os.O_NONBLOCK | PLAIN, 0, _BENEATH | _NO_MAGIC_LINKS)
            while (fd := libc.syscall(_CALL, top, os.fsencode(key), ctypes.byref(how), ctypes.sizeof(how))) < 0:
                code = ctypes.get_errno()
                if code in (errno.EAGAIN, errno.EINTR):  # somebody has renamed a folder on the way
                    continue
                if code == errno.EXDEV:
                    raise LeadsOutError(code, "leads out of its folder, by a link", key)
                if code not in _UNKNOWN:
                    raise OSError(code, os.strerror(code), key)
                break
            else:
                return int(fd)
        finally:
            os.close(top)
    return _open_resolved(folder, key)


def _open_resolved(folder: str, key: str) -> int:
    """The same where the kernel cannot be asked: all links are resolved first, and the end must not be one."""
    top = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(top, *key.split("/")))
    if os.path.commonpath([top, path]) != top:
        raise LeadsOutError(errno.EXDEV, "leads out of its folder, by a link", key)
    return os.open(path, os.O_RDONLY | OWN_NO_WAIT)


def _find_call() -> bool:
    return getattr(libc, "syscall", None) is not None and os.uname().sysname == "Linux"


_has_call = libc is not None and _find_call()

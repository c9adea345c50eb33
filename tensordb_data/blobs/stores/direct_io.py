"""Files written past the page cache, for bytes that nobody on this machine reads soon.

A buffered write copies every byte once more into pages that the kernel has to find first: for a file of 400 MB that is
up to a second of processor time, taken from whoever computes meanwhile. A direct write lets the disk read the caller's
memory. It wants memory, offset and length in multiples of a block; what does not lie so goes through an aligned buffer.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tensordb_data.blobs.stores.base import Buffer
from tensordb_data.common.system.modules import optional
from tensordb_data.common.system.private import file_mode

_fcntl = optional("fcntl")

BLOCK = 4096
"""Bytes that offset, address and length are a multiple of; no disk wants more."""
_PIECE = 4 << 20
_WORTH = 1 << 20  # bytes from which on this pays


def open_direct(path: Path, nbytes: int) -> int | None:
    """A new file of `nbytes` to come, open for `write_direct`; None where the system cannot, or it would not pay."""
    flag = getattr(os, "O_DIRECT", 0)
    if not flag or nbytes < _WORTH:
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flag, file_mode())
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        path.unlink(missing_ok=True)  # some file systems refuse only after they have made it
        return None


def write_direct(fd: int, parts: Sequence[Buffer]) -> None:
    """Writes the parts, one after the other, into a new file; every call that waits leaves the GIL to others."""
    buffer = np.frombuffer(mmap.mmap(-1, _PIECE), np.uint8)
    total, filled = 0, 0
    for part in parts:
        rest = np.frombuffer(part, np.uint8) if len(part) else buffer[:0]
        total += len(rest)
        while len(rest):
            if filled % BLOCK == 0 and len(rest) >= BLOCK and rest.ctypes.data % BLOCK == 0:
                _write(fd, buffer[:filled])
                filled, whole = 0, len(rest) // BLOCK * BLOCK
                _write(fd, rest[:whole])
                rest = rest[whole:]
                continue
            n = min(_room(filled, rest), len(rest))
            np.copyto(buffer[filled : filled + n], rest[:n])
            filled, rest = filled + n, rest[n:]
            if filled == _PIECE:
                _write(fd, buffer)
                filled = 0
    _write(fd, buffer[: -(-filled // BLOCK) * BLOCK])
    os.ftruncate(fd, total)


def _room(filled: int, rest: NDArray[np.uint8]) -> int:
    """Bytes to copy into the buffer next: up to the next block, if memory and file agree from there on."""
    short = -filled % BLOCK
    if short and (rest.ctypes.data + short) % BLOCK == 0:
        return short
    return _PIECE - filled


def _write(fd: int, data: NDArray[np.uint8]) -> None:
    start = 0
    while start < len(data):
        try:
            written = os.write(fd, data[start : start + _PIECE].data)
        except OSError as error:
            if error.errno != errno.EINVAL or not _make_buffered(fd):
                raise
            continue
        start += written
        if written % BLOCK:  # the disk is all but full, or there is a limit: the last bytes do not fill a block
            _make_buffered(fd)


def _make_buffered(fd: int) -> bool:
    """Lets a file be written in the ordinary way from here on; False if it is."""
    flags = _fcntl.fcntl(fd, _fcntl.F_GETFL)
    _fcntl.fcntl(fd, _fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)

"""Files that an export writes: each is new, and its bytes and their checksum are counted while it is written."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from tensordb_data.common.system.files import FOLDER, OWN
from tensordb_data.common.system.modules import libc

_PIECE = 4 << 20
_MANY = 64
"""Files above which the whole file system is written out, rather than each file by itself."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file of an export."""

    path: str
    """Below the folder of the export, with `/` between the parts."""
    bytes: int
    xxh3: str
    """Of 64 bits, in hexadecimal digits."""


class Output(io.RawIOBase):
    """A new file below a folder. Folders that are missing are made.

    Args:
        folder: The folder.
        path: The file, relative to it.

    Raises:
        FileExistsError: There is one of that name, which also a link is.
    """

    def __init__(self, folder: Path, path: str) -> None:
        super().__init__()
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._nbytes, self._hash = path, 0, xxhash.xxh3_64()
        self._fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | OWN, 0o666)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._nbytes

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self._nbytes += view.nbytes
        rest = view
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        return view.nbytes

    def entry(self) -> Entry:
        """What was written so far."""
        return Entry(self.path, self._nbytes, self._hash.hexdigest())

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


def write_file(folder: Path, path: str, data: Any) -> Entry:
    """Write a file at once."""
    with Output(folder, path) as output:
        output.write(data)
        return output.entry()


def append_file(output: Output, source: Path) -> None:
    """Append the bytes of a file."""
    with open(source, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            output.write(piece)


def _sync_disk(folder: Path) -> bool:
    """Write out the whole file system of a folder, if the system has such a call."""
    call = getattr(libc, "syncfs", None)
    if call is None:
        return False
    fd = os.open(folder, os.O_RDONLY | FOLDER)
    try:
        return bool(call(fd) == 0)
    finally:
        os.close(fd)


def make_durable(folder: Path, paths: Sequence[str]) -> None:
    """Return when some files are on the disk.

    Raises:
        OSError: They are not, and will not be.
    """
    if len(paths) > _MANY and _sync_disk(folder):
        return
    for path in paths:
        fd = os.open(folder / path, os.O_RDWR | OWN)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

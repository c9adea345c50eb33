"""What the readers of other trackers share: a run, and files below a folder, of which no link is followed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tensordb_data.common.system.files import OWN_NO_WAIT
from tensordb_data.errors import CorruptBlobError, StorageError

_DEEP = 32  # folders in each other
_MOST = 1_000_000  # files below a folder
_SMALL = 1 << 20  # bytes of a file that is read at once


@dataclasses.dataclass
class Row:
    """A row of a run."""

    step: int
    values: dict[str, Any]
    """By the names that they have there."""
    time: float | None = None
    """Seconds since 1970."""
    kind: str = "train"


@dataclasses.dataclass
class SourceRun:
    """A run of another tracker. Its fields are complete when its rows have been read."""

    id: str
    """That of the tracker."""
    name: str
    state: str
    """By which it is seen whether the run has changed at its source."""
    read: Callable[[SourceRun], Iterator[Row]]
    """Reads its rows, and sets fields as they come."""
    where: str = ""
    """For messages."""
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    tags: list[str] = dataclasses.field(default_factory=list)
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What else is known of it: texts by names."""
    status: str = "ended"
    began: float | None = None
    ended: float | None = None
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)
    notes: list[str] = dataclasses.field(default_factory=list)

    def leave(self, what: str) -> None:
        """Count something that is left out."""
        self.left_out[what] += 1

    def spans(self, time: float | None) -> None:
        """Take in a time at which the run was alive."""
        if time is not None:
            self.began = time if self.began is None else min(self.began, time)
            self.ended = time if self.ended is None else max(self.ended, time)


@dataclasses.dataclass(frozen=True)
class File:
    """A file below the folder."""

    path: str
    name: str
    """Relative to the folder, with slashes."""
    size: int


Fail = Callable[[str, str], None]
"""Notes what does not come in: where, and why."""


def walk(folder: str, fail: Fail, skip: frozenset[str] = frozenset()) -> Iterator[File]:
    """The files below a folder, by name. A link is not followed: it may lead outside.

    Args:
        folder: The folder.
        fail: Is told of links, and of what cannot be read.
        skip: Names of folders that are left alone.

    Raises:
        StorageError: There are too many.
    """
    ahead, count = [("", 0)], 0
    while ahead:
        above, depth = ahead.pop()
        try:
            with os.scandir(os.path.join(folder, above)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            fail(above or folder, f"cannot be read: {error.strerror}")
            continue
        folders = []
        for entry in entries:
            name = f"{above}{entry.name}"
            count += 1
            if count > _MOST:
                raise StorageError(f"{folder}: expected at most {_MOST:,} files, found more: name a folder below it")
            try:
                if entry.is_symlink():
                    fail(name, "a link, which is not followed; name its target")
                elif entry.is_dir():
                    if depth >= _DEEP:
                        fail(name, f"more than {_DEEP} folders in each other")
                    elif entry.name not in skip:
                        folders.append((f"{name}/", depth + 1))
                elif entry.is_file():
                    yield File(entry.path, name, entry.stat().st_size)
            except OSError as error:
                fail(name, f"cannot be read: {error.strerror}")
        ahead += reversed(folders)


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """A file, for reading; no link, and nothing that is waited for.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | OWN_NO_WAIT)
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StorageError("expected a file, found something else")
        yield file


def read_small(path: str | Path) -> str:
    """The text of a small file.

    Raises:
        StorageError: It cannot be read.
        CorruptBlobError: It is large.
    """
    with opened(path) as file:
        data = file.read(_SMALL + 1)
    if len(data) > _SMALL:
        raise CorruptBlobError(f"expected at most {_SMALL:,} bytes, found more")
    return data.decode(errors="replace")


def digest(*parts: object) -> str:
    """A short name for some values."""
    return hashlib.blake2b(repr(parts).encode(errors="replace"), digest_size=12).hexdigest()

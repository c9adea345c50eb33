"""Files of others, which samples point into: they are read, and nothing here can write or delete them."""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tensordb_data.common.system.beneath import LeadsOutError, opened_beneath
from tensordb_data.common.system.files import read_at
from tensordb_data.common.system.mmap import Bytes1D, UnmappedError, copied, map_open_file
from tensordb_data.errors import CorruptBlobError, StorageError

_NAME = re.compile(r"\w[\w.-]{0,99}")

Range = tuple[int, int]
"""Offset and bytes."""


class ForeignFile(NamedTuple):
    """A file of others, as it was when a sample was made of it."""

    root: str
    """The name of the root that it is below."""
    key: str
    """Its path below the root, with slashes: any Unicode but NUL, and no `..`."""
    size: int
    """Bytes."""
    mtime_ns: int
    """When it was changed last, in nanoseconds since 1970."""

    @property
    def shown(self) -> str:
        """What messages call it."""
        return f"{self.root}/{self.key}"


class FileState(NamedTuple):
    """What a file is now."""

    size: int
    mtime_ns: int


class ChangedFileError(CorruptBlobError):
    """A file of others is not what it was when samples were made of it."""


class MissingFileError(CorruptBlobError):
    """A file of others is not there any more."""


@dataclass(frozen=True)
class Root:
    """A folder of files that samples point into, on this machine. The database knows only its name.

    `TensorDB(..., roots={"photos": Root("/mnt/photos")})` opens it. Its files are read, never written or deleted.

    Args:
        path: The folder.
        stable: Whether its files never change while they are read: then they are mapped into memory, and looked at
            once in a process. Otherwise each read opens the file, and compares its size and time.

    Raises:
        StorageError: The path is a URL, or no path.
    """

    path: Path
    stable: bool = False

    def __init__(self, path: str | os.PathLike[str], stable: bool = False) -> None:
        if not isinstance(path, (str, os.PathLike)) or not isinstance(stable, bool):
            raise StorageError(f"a root is a folder: Root(path, stable=False); found Root({path!r:.200}, {stable!r})")
        text = os.fsdecode(path)
        if "://" in text or not text or "\0" in text:
            raise StorageError(
                f"a root is a folder of this machine; found {text.split('?', 1)[0].rpartition('@')[2]!r:.200}: mount it"
                " as a folder, or ingest without in_place=True, which copies"
            )
        object.__setattr__(self, "path", Path(os.path.abspath(os.path.expanduser(text))))
        object.__setattr__(self, "stable", stable)

    def state(self, name: str, key: str) -> FileState:
        """What a file is now.

        Args:
            name: The name of this root, for messages.
            key: The path of the file below it.

        Raises:
            MissingFileError: There is no such file.
            StorageError: It cannot be read, or a link leads out of the root.
        """
        with self._opened(name, key) as fd:
            return _state(fd)

    def key_of(self, path: str | os.PathLike[str]) -> str | None:
        """The key of a file, by its path; "" for the root itself, None for what is not below it."""
        written, folder = os.path.abspath(path), str(self.path)
        # As it is written, first: links below the root are part of a key. Then by where links above it lead.
        for text, top in ((written, folder), (os.path.realpath(written), os.path.realpath(folder))):
            if text == top:
                return ""
            if text.startswith(top.rstrip(os.sep) + os.sep):
                return os.path.relpath(text, top).replace(os.sep, "/")
        return None

    def read(self, file: ForeignFile, ranges: Sequence[Range]) -> tuple[FileState, list[memoryview | None]]:
        """Some ranges of a file, and what the file is now. A range that it does not have any more is None.

        Raises:
            MissingFileError: There is no such file.
            StorageError: It cannot be read, or a link leads out of the root.
        """
        with self._opened(file.root, file.key) as fd:
            state = _state(fd)
            try:
                return state, [_read(fd, offset, length, state.size) for offset, length in ranges]
            except OSError as error:
                raise StorageError(f"{self.path / file.key}: cannot be read: {error.strerror or error}") from None

    def mapped(self, file: ForeignFile) -> tuple[FileState, Bytes1D]:
        """A file that never changes, as memory, and what it is now.

        Raises:
            MissingFileError: There is no such file.
            StorageError: It cannot be read, or a link leads out of the root.
        """
        with self._opened(file.root, file.key) as fd:
            state = _state(fd)
            try:
                return state, map_open_file(fd, state.size, self.path / file.key)
            except OSError as error:
                raise StorageError(f"{self.path / file.key}: cannot be mapped: {error.strerror or error}") from None

    @contextmanager
    def _opened(self, name: str, key: str) -> Iterator[int]:
        if not is_foreign_key(key):
            raise StorageError(f"root {name!r}: expected the path of a file below it, found {key!r:.200}")
        path = self.path / key
        try:
            with opened_beneath(str(self.path), key) as fd:
                yield fd
        except StorageError:
            raise
        except (FileNotFoundError, NotADirectoryError):
            if not self.path.is_dir():
                raise no_folder(name, self) from None
            raise MissingFileError(
                f"expected the file {name}/{key} at {path}, found none: it was moved or deleted; put it back, or"
                " ingest again"
            ) from None
        except LeadsOutError:
            raise StorageError(
                f"{path}: a link leads out of the root {name!r} ({self.path}), and is not followed; name a root that "
                "holds what it leads to"
            ) from None
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror or error}") from None


FindRoot = Callable[[str], Root]
"""The root of a name; raises StorageError if this client has not opened it."""


def is_root_name(name: object) -> bool:
    """Whether a value is the name of a root: letters, digits, `_`, `.` and `-`, at most 100 of them."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def is_foreign_key(key: str) -> bool:
    """Whether a text is a path below a root: relative, without `.`, `..`, empty parts and NUL."""
    if not key or "\0" in key or key.startswith("/") or (os.sep == "\\" and ("\\" in key or ":" in key)):
        return False
    return not any(part in ("", ".", "..") for part in key.split("/"))


def no_folder(name: str, root: Root) -> StorageError:
    """The error for a root whose folder is not on this machine."""
    return StorageError(
        f"this machine has no folder {root.path}, which was named as the root {name!r}: mount it, or say where it is: "
        f"`tensordb roots add --read-only {name} PATH`, or TensorDB(..., roots={{{name!r}: PATH}})"
    )


def changed(file: ForeignFile, now: FileState, what: str) -> ChangedFileError:
    """The error for a file that has changed.

    Args:
        file: The file, as it was.
        now: What it is.
        what: What was found of the sample's bytes.
    """
    return ChangedFileError(
        f"the file {file.shown} has changed since it was ingested: {what}; expected {file.size:,} bytes of "
        f"{_time(file.mtime_ns)}, found {now.size:,} bytes of {_time(now.mtime_ns)}: ingest again"
    )


def copy_of(memory: Bytes1D, offset: int, length: int) -> memoryview | None:
    """A copy of some mapped bytes; None if they are not there (any more)."""
    if offset + length > len(memory):
        return None
    try:
        return copied(memory[offset : offset + length])
    except UnmappedError:
        return None


def _state(fd: int) -> FileState:
    found = os.fstat(fd)
    return FileState(found.st_size, found.st_mtime_ns)


def _read(fd: int, offset: int, length: int, size: int) -> memoryview | None:
    if offset + length > size:  # before memory is asked for
        return None
    data = read_at(fd, length, offset)
    if len(data) == length:
        return memoryview(data)
    pieces = [data]  # large reads come in pieces
    got = len(data)
    while got < length:
        piece = read_at(fd, length - got, offset + got)
        if not piece:
            return None
        pieces.append(piece)
        got += len(piece)
    return memoryview(b"".join(pieces))


def _time(mtime_ns: int) -> str:
    try:
        return dt.datetime.fromtimestamp(mtime_ns / 1e9).isoformat(" ", "microseconds")
    except (OverflowError, ValueError, OSError):
        return f"time {mtime_ns}"

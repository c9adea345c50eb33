"""Blobs in a folder of this machine (or of a file system that it mounts)."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tensordb_data.blobs.keys import FOLDERS, is_temporary
from tensordb_data.blobs.stores.base import Buffer, check_key, check_range
from tensordb_data.blobs.stores.direct_io import open_direct, write_direct
from tensordb_data.common.folder_identity import FolderIdentity
from tensordb_data.common.system.files import PLAIN, read_at, sync_folder
from tensordb_data.common.system.private import file_mode, make_folder
from tensordb_data.errors import StorageError

_TEMPORARY = ".put-"


class FileStore:
    """Objects as files below a folder.

    An object appears by a rename after its bytes have reached the disk, so a reader sees all of it or nothing,
    and so does whoever looks after a power cut.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.url = self.folder.as_uri()
        self._place = FolderIdentity.nearest(self.folder)

    def __repr__(self) -> str:
        return f"FileStore({self.url!r})"

    def put(self, key: str, parts: Sequence[Buffer], *, cold: bool = False) -> None:
        path = self._path(key)
        self._check_place()
        temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}")
        try:
            self._make_folder(path.parent)
            try:
                nbytes = sum(memoryview(part).nbytes for part in parts)
                direct = open_direct(temporary, nbytes) if cold else None
                if (fd := direct) is None:
                    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN, file_mode())
                with open(fd, "wb", 0) as file:
                    if direct is not None:
                        write_direct(direct, parts)
                    else:
                        for part in parts:
                            _write(file.fileno(), part)
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
            sync_folder(path.parent)
        except OSError as error:
            raise self._error("write", path, error) from error
        self._check_place()

    def get(self, key: str) -> memoryview:
        path = self._path(key)
        try:
            return memoryview(path.read_bytes())
        except OSError as error:
            raise self._error("read", path, error) from error

    def get_ranges(self, key: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        path = self._path(key)
        try:
            with open(path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                return [_read(file.fileno(), key, size, int(o), int(n)) for o, n in zip(offsets, lengths, strict=False)]
        except StorageError:
            raise
        except OSError as error:
            raise self._error("read", path, error) from error

    def size(self, key: str) -> int:
        path = self._path(key)
        try:
            return path.stat().st_size
        except OSError as error:
            raise self._error("read", path, error) from error

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        base = os.fspath(self.folder)
        for entry in _walk(os.path.join(base, prefix.rpartition("/")[0])):
            key = os.path.relpath(entry.path, base).replace(os.sep, "/")
            if key.startswith(prefix) and not entry.name.startswith(_TEMPORARY):
                # A file may be deleted while the folder is walked.
                with contextlib.suppress(FileNotFoundError):
                    yield key, entry.stat().st_size

    def delete(self, key: str) -> None:
        path = self._path(key)
        for folder in itertools.takewhile(lambda folder: folder != self.folder, path.parents):
            if folder.is_symlink():
                raise StorageError(
                    f"cannot delete {path}: {folder} is a link, and nothing is deleted behind links; put a folder in "
                    "its place, or give the place that it leads to as blobs="
                )
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise self._error("delete", path, error) from error

    def sweep(self, silent: float, dry_run: bool = False) -> tuple[int, int]:
        count = nbytes = 0
        now: float | None = None
        for entry in self._unfinished():
            path = Path(entry.path)
            with contextlib.suppress(FileNotFoundError):  # it was renamed, or another has swept it
                if now is None:
                    now = self._clock()
                found = path.stat()
                if now - found.st_mtime < silent:
                    continue
                if not dry_run:
                    path.unlink()
                count, nbytes = count + 1, nbytes + found.st_size
        return count, nbytes

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    def close(self) -> None:
        """Nothing is held open."""

    def _path(self, key: str) -> Path:
        return self.folder / check_key(key)

    def _check_place(self) -> None:
        """Write nothing where the folder was moved away: it would be made again, and hold the newest blobs only."""
        self._place.check()
        if self._place.path != self.folder:  # it did not exist before
            self._place = FolderIdentity.nearest(self.folder)

    def _make_folder(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for made in reversed(missing):
            make_folder(made)
            sync_folder(made.parent)

    def _unfinished(self) -> Iterator[os.DirEntry[str]]:
        """Files of puts that have not ended, in the folders that are ours, and files that asked for the time."""
        places = [_files(os.fspath(self.folder)), *(_walk(os.path.join(self.folder, name)) for name in FOLDERS)]
        for entry in itertools.chain(*places):
            if is_temporary(entry.name) and entry.is_file(follow_symlinks=False):
                yield entry

    def _clock(self) -> float:
        """What the file system says is now: its clock may be that of another machine."""
        path = self.folder / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}"
        try:
            with open(path, "xb", 0) as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError as error:
            raise self._error("write", path, error) from error
        finally:
            path.unlink(missing_ok=True)

    def _error(self, action: str, path: Path, error: OSError) -> StorageError:
        if isinstance(error, FileNotFoundError) and action == "read":
            return StorageError(f"expected a blob file at {path}, found none: was it deleted or moved?")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = _free_bytes(path)
            return StorageError(f"cannot write {path}: no space left ({free} bytes free): make room and write again")
        return StorageError(f"cannot {action} {path}: {error.strerror or error}")


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    """The files in a folder itself."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.is_dir(follow_symlinks=False))


def _walk(folder: str) -> Iterator[os.DirEntry[str]]:
    """The files below a folder, without a list of them."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            else:
                yield entry


def _free_bytes(path: Path) -> str:
    for folder in path.parents:
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(folder).free:,}"
    return "unknown"


def _write(fd: int, part: Buffer) -> None:
    view = memoryview(part).cast("B")
    while view:
        view = view[os.write(fd, view) :]


def _read(fd: int, key: str, size: int, offset: int, length: int) -> memoryview:
    check_range(key, size, offset, length)
    pieces = []
    while length:
        piece = read_at(fd, length, offset)
        if not piece:
            raise StorageError(f"{key}: expected {length} more bytes at {offset}, found the end: the file has shrunk")
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    return memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))

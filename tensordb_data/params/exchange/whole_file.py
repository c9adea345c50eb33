"""A file that is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tensordb_data.common.system.file_locks import LOCK_EX, LOCK_NB, is_of, lock
from tensordb_data.common.system.files import PLAIN, sync_folder
from tensordb_data.errors import DuplicateError, StorageError

_BESIDE = re.compile(r"\..+\.\d+-[0-9a-f]{12}\.part")


@contextlib.contextmanager
def whole_file(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """Within it, a file beside `path` is written; afterwards it is durable, and takes its name.

    What writers that were killed have left in the folder is removed first.

    Raises:
        DuplicateError: The name is taken, and `overwrite` is false.
        StorageError: The file cannot be written.
    """
    if "\0" in str(path):
        raise StorageError(f"{str(path)!r} is no name of a file")
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(6)}.part")
    try:
        if path.is_dir():
            raise StorageError(f"{path} is a folder; expected the name of a file")
        if not overwrite:
            _refuse(path)
        _remove_left(path.parent)
        fd, held = _open(beside)
        try:
            with open(fd, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _name(beside, path, overwrite)
        finally:
            beside.unlink(missing_ok=True)
            if held is not None:
                os.close(held)
        sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error


def _open(beside: Path) -> tuple[int, int | None]:
    """Make the file and lock it, by which others see that its writer lives.

    Returns:
        The descriptor, and a second one that keeps the lock when the first is closed, where the system allows it.
    """
    while True:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks: then a file that is left stays
            lock(fd, LOCK_EX | LOCK_NB)
        if is_of(fd, beside):
            return fd, os.dup(fd) if os.name == "posix" else None
        os.close(fd)  # taken for one that was left, before it was locked


def _remove_left(folder: Path) -> None:
    """Remove the files of writers that were killed."""
    names: list[str] = []
    with contextlib.suppress(PermissionError):  # one may write into it, and not list it
        names = os.listdir(folder)
    for beside in (folder / name for name in names if _BESIDE.fullmatch(name)):
        with contextlib.suppress(OSError):  # its writer lives; or it is gone, or another user's
            fd = os.open(beside, os.O_WRONLY | PLAIN)
            try:
                lock(fd, LOCK_EX | LOCK_NB)
                if is_of(fd, beside) and os.name == "posix":
                    beside.unlink()
            finally:
                os.close(fd)


def _name(beside: Path, path: Path, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(beside, path)  # refuses a name that somebody has taken meanwhile
            return
        except FileExistsError:
            _refuse(path)
        except OSError:  # a file system without links
            _refuse(path)
    os.replace(beside, path)


def _refuse(path: Path) -> None:
    if os.path.lexists(path):
        raise DuplicateError(f"{path} is there already; overwrite=True replaces it")

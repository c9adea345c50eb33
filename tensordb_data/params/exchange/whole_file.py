"""A file that is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tensordb_data.common.system.files import PLAIN, sync_folder
from tensordb_data.errors import DuplicateError, StorageError


@contextlib.contextmanager
def whole_file(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """Within it, a file beside `path` is written; afterwards it is durable, and takes its name.

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
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN, 0o666)
        try:
            with open(fd, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _name(beside, path, overwrite)
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error


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

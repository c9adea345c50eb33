"""The commit lock: the writers of one host commit to a dataset one after the other.

Every commit to a dataset increments the same counter. If two transactions increment it at the same time, one of them is
aborted and done again. That costs both processes and the server far more than to wait; many writers would spend most of
their time on it. So a writer takes a file lock of its host before it commits.

The lock only saves work: the transaction keeps commits apart. If one writer holds the lock for too long, the others go
on without it. So a process that was stopped while it held the lock blocks nobody.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tensordb_data.common.system import file_locks
from tensordb_data.common.system.file_locks import LOCK_EX, LOCK_NB
from tensordb_data.common.system.files import read_at, write_at
from tensordb_data.common.system.private import make_folder

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

PATIENCE = 1.0
"""Seconds for which the others wait for one holder of the lock."""

_LOOK = (0.001, 0.008)  # seconds between two attempts: least, most
_LONG = 2.0  # seconds of waiting, after which attempts are as frequent as they get
_MARK = 8  # bytes in the file, which each holder changes, so that the others see that the holder is another one


@contextlib.contextmanager
def commit_lock(warehouse: Warehouse, dataset: str) -> Iterator[None]:
    """Hold the commit lock of a dataset during the block; after too long a wait, go on without it."""
    file = _opened(warehouse, dataset)
    if file is None:
        yield
        return
    try:
        _wait(file)
        yield
    finally:
        file_locks.close_fd(file)


def _opened(warehouse: Warehouse, dataset: str) -> int | None:
    if warehouse.cache_dir is None:
        return None
    folder = warehouse.cache_dir / "turns"
    name = hashlib.sha256(f"{warehouse.project}\0{dataset}".encode()).hexdigest()[:16]
    with contextlib.suppress(OSError):  # there is no place for the file: go on without the lock
        try:
            return file_locks.open_fd(folder / name, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            make_folder(folder)
            return file_locks.open_fd(folder / name, os.O_RDWR | os.O_CREAT)
    return None


def _wait(file: int) -> None:
    begin = since = time.monotonic()
    mark = b""
    with contextlib.suppress(OSError):  # a file system without locks, or a full disk: go on without the lock
        while (now := time.monotonic()) - since < PATIENCE:
            try:
                file_locks.lock(file, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                if (found := read_at(file, _MARK, 0)) != mark:
                    mark, since = found, now
                # A writer that has waited long tries more often, and so mostly gets the lock first.
                time.sleep(random.uniform(0.5, 1) * max(_LOOK[0], _LOOK[1] * (1 - (now - begin) / _LONG)))
            else:
                write_at(file, os.urandom(_MARK), 0)
                return

"""Turns: the writers of one host commit to a dataset one after the other.

Every commit to a dataset increments the one counter that its sequence comes from. Where two transactions meet there,
one is aborted and done again, which costs both processes and the server far more than a wait: with many writers, most
of their time. So whoever is about to commit asks for a lock first, that its host alone knows.

It is a courtesy. That commits do not mix is up to the transaction; where one writer has the lock for too long, the
others go ahead without it, so that a process that was stopped while it had it holds nobody up for good.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tensordb_data.common import file_locks

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

PATIENCE = 1.0
"""Seconds that one writer may have the lock."""

_LOOK = (0.001, 0.008)  # seconds between two looks: least, most
_LONG = 2.0  # seconds of waiting, after which the looks are as frequent as they get
_MARK = 8  # bytes in the file, by which the others see that the lock has gone to another


@contextlib.contextmanager
def commit_lock(warehouse: Warehouse, dataset: str) -> Iterator[None]:
    """Waits until no other writer of this host, or hardly any, is committing to the dataset."""
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
    with contextlib.suppress(OSError):  # nowhere to write: no turns
        try:
            return file_locks.open_fd(folder / name, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            folder.mkdir(parents=True, exist_ok=True)
            return file_locks.open_fd(folder / name, os.O_RDWR | os.O_CREAT)
    return None


def _wait(file: int) -> None:
    begin = since = time.monotonic()
    mark = b""
    with contextlib.suppress(OSError):  # a file system without locks, a full disk: no turn
        while (now := time.monotonic()) - since < PATIENCE:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if (found := os.pread(file, _MARK, 0)) != mark:
                    mark, since = found, now
                # Who has waited long looks more often, and so mostly comes first.
                time.sleep(random.uniform(0.5, 1) * max(_LOOK[0], _LOOK[1] * (1 - (now - begin) / _LONG)))
            else:
                os.pwrite(file, os.urandom(_MARK), 0)
                return

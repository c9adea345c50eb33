"""A store that answers late, so that what latency does can be seen on one machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tensordb_data.blobs.stores.base import Buffer, Store

PARALLEL = 10
"""Ranges that an object store's client asks for at the same time: so many cost the time of one request."""


class DelayedStore:
    """Another store, with a wait before each request. For tests and benchmarks.

    It also counts what is asked of it.

    Args:
        store: Does the work, and is closed with this one.
        seconds: The wait for every request; for each `PARALLEL` ranges of one call there is one.
    """

    def __init__(self, store: Store, seconds: float) -> None:
        self.store, self.seconds = store, seconds
        self.url = store.url
        self.requests = 0
        """Ranges and other requests so far."""
        self.nbytes = 0
        """Bytes read so far."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"DelayedStore({self.store!r}, {self.seconds})"

    def put(self, key: str, parts: Sequence[Buffer], *, cold: bool = False) -> None:
        self._wait(1)
        self.store.put(key, parts, cold=cold)

    def get(self, key: str) -> memoryview:
        self._wait(1)
        found = self.store.get(key)
        self._count(len(found))
        return found

    def get_ranges(self, key: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        self._wait(len(offsets))
        found = self.store.get_ranges(key, offsets, lengths)
        self._count(sum(map(len, found)))
        return found

    def size(self, key: str) -> int:
        self._wait(1)
        return self.store.size(key)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        self._wait(1)
        return self.store.list(prefix)

    def delete(self, key: str) -> None:
        self._wait(1)
        self.store.delete(key)

    def sweep(self, silent: float, dry_run: bool = False) -> tuple[int, int]:
        self._wait(1)
        return self.store.sweep(silent, dry_run)

    def local_path(self, key: str) -> Path | None:
        """None: a file would be read without any wait."""
        return None

    def close(self) -> None:
        self.store.close()

    def _wait(self, requests: int) -> None:
        with self._lock:
            self.requests += requests
        time.sleep(self.seconds * -(-requests // PARALLEL))

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self.nbytes += nbytes

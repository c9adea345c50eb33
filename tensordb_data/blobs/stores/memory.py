"""Blobs in the memory of this process: for tests."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

from tensordb_data.blobs.stores.base import Buffer, check_key, check_range
from tensordb_data.common.system.fork import at_fork
from tensordb_data.errors import StorageError


class MemoryStore:
    """Objects in a dict. They go when nobody holds the store any more."""

    def __init__(self, name: str = "") -> None:
        self.url = f"memory://{name}"
        self._objects: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"MemoryStore({self.url!r}, objects={len(self._objects)})"

    def put(self, key: str, parts: Sequence[Buffer], *, cold: bool = False) -> None:
        self._objects[check_key(key)] = b"".join(parts)

    def get(self, key: str) -> memoryview:
        data = self._objects.get(check_key(key))
        if data is None:
            raise StorageError(f"expected a blob {key!r} in {self.url}, found none")
        return memoryview(data)

    def get_ranges(self, key: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        data = self.get(key)
        for offset, length in zip(offsets, lengths, strict=False):
            check_range(key, len(data), int(offset), int(length))
        return [data[int(o) : int(o) + int(n)] for o, n in zip(offsets, lengths, strict=False)]

    def size(self, key: str) -> int:
        return len(self.get(key))

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        for key, data in list(self._objects.items()):
            if key.startswith(prefix):
                yield key, len(data)

    def delete(self, key: str) -> None:
        self._objects.pop(check_key(key), None)

    def sweep(self, silent: float, dry_run: bool = False) -> tuple[int, int]:
        """Nothing. Memory goes with its process."""
        return 0, 0

    def local_path(self, key: str) -> Path | None:
        return None

    def close(self) -> None:
        """This does nothing: others may use the same store, and keep its objects."""


_lock = threading.Lock()


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


# A thread of the parent may have held it at the fork.
at_fork(after_in_child=_new_lock)

_stores: weakref.WeakValueDictionary[str, MemoryStore] = weakref.WeakValueDictionary()


def memory_store(name: str) -> MemoryStore:
    """The one store of that name in this process, made when nobody holds it."""
    with _lock:
        store = _stores.get(name)
        if store is None:
            store = _stores[name] = MemoryStore(name)
        return store

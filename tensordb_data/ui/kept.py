"""Bytes that are kept in memory, up to so many of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable


class Kept:
    """Bytes by a key. Those that were not asked for longest go first. Threads may share it.

    Args:
        most: Bytes of all together.
    """

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._lock = threading.Lock()
        self._items: OrderedDict[Hashable, bytes] = OrderedDict()

    def get(self, key: Hashable) -> bytes | None:
        """The bytes of a key, or None."""
        with self._lock:
            found = self._items.get(key)
            if found is not None:
                self._items.move_to_end(key)
            return found

    def put(self, key: Hashable, value: bytes) -> None:
        """Keep some bytes; nothing that is larger than all together may be."""
        if len(value) > self._most:
            return
        with self._lock:
            self._size += len(value) - len(self._items.pop(key, b""))
            self._items[key] = value
            while self._size > self._most:
                _, old = self._items.popitem(last=False)
                self._size -= len(old)

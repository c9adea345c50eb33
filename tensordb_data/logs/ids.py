"""Ids of log rows: ObjectIds that ascend in the order of writing, made many at a time."""

from __future__ import annotations

import os
import threading
import time

from bson import ObjectId

from tensordb_data.common.system.fork import at_fork

_COUNTS = 1 << 24


class Ids:
    """Ids of one process. In the layout of an ObjectId: seconds, five random bytes of this process, a count.

    `ObjectId()` takes a lock and a few calls for each; at 50,000 rows a second that alone is a tenth of a core.
    """

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._random = os.urandom(5)
        self._second = 0
        self._count = 0

    def take(self, n: int) -> list[ObjectId]:
        """The next `n` ids, each greater than all before, whatever the clock does."""
        with self._lock:
            return self._take(n)

    def _take(self, n: int) -> list[ObjectId]:
        now = int(time.time())
        if now > self._second:
            self._second, self._count = now, 0
        found: list[ObjectId] = []
        while len(found) < n:
            if self._count == _COUNTS:
                self._second, self._count = self._second + 1, 0
            end = min(_COUNTS, self._count + n - len(found))
            front = self._second.to_bytes(4, "big") + self._random
            found += [ObjectId(front + count.to_bytes(3, "big")) for count in range(self._count, end)]
            self._count = end
        return found


IDS = Ids()
"""Those of all logs of this process: rows of one after the other come in that order."""
at_fork(after_in_child=IDS._renew)

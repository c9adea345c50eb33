"""What an endpoint of metrics tells of a warehouse: one look at its index serves all who ask within seconds."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from pymongo.errors import PyMongoError

from tensordb_data.common.telemetry.measures import Value
from tensordb_data.errors import TensorDBError
from tensordb_data.table.activity.facts import Facts, facts

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_SECONDS = 5.0


class Measured:
    """The values of one project.

    Args:
        warehouse: The warehouse, and the project.
        names: Whether names of datasets are told.
    """

    def __init__(self, warehouse: Warehouse, *, names: bool = True) -> None:
        self._warehouse, self._names = warehouse, names
        self._lock = threading.Lock()
        self._found: list[Value] = []
        self._at: float | None = None

    def values(self) -> list[Value]:
        """What the index tells, at most five seconds ago. Where the server is away, only that it is."""
        with self._lock:
            if self._at is None or time.monotonic() - self._at >= _SECONDS:
                try:
                    self._found = self._of(facts(self._warehouse))
                except (TensorDBError, PyMongoError):
                    self._found = [Value("tensordb.unknown", 1.0)]
                self._at = time.monotonic()
            return list(self._found)

    def _of(self, found: Facts) -> list[Value]:
        now = found.look
        values = [
            Value("tensordb.queue.workers", float(len(now.workers))),
            Value("tensordb.changes.open", float(len(now.open))),
            Value("tensordb.runs.held", float(sum(each.saver is not None for each in now.runs.values()))),
            Value("tensordb.log.rate", sum(each.rows_per_second for each in now.runs.values())),
            Value("tensordb.unknown", float(len(now.missing) + len(found.missing))),
        ]
        values += [Value("tensordb.queue.jobs", float(n), (("status", status),)) for status, n in now.jobs.items()]
        values += [Value("tensordb.blobs.size", float(n), (("of", of),)) for of, n in found.nbytes.items()]
        if now.saves and now.saves[0].seconds is not None:
            values.append(Value("tensordb.save.age", now.saves[0].seconds))
        for name, each in now.datasets.items() if self._names else ():
            values.append(Value("tensordb.dataset.written", float(each.written), (("dataset", name),)))
            values.append(Value("tensordb.dataset.changes", float(each.changes), (("dataset", name),)))
        return values

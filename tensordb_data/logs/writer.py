"""Write the rows of a run in bulk, in the background. The training thread waits only if the buffer is full."""

from __future__ import annotations

import datetime as dt
import sys
import time
import warnings
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pymongo.errors import BulkWriteError

from tensordb_data.common.background import BackgroundWorker
from tensordb_data.errors import SchemaError, StorageError
from tensordb_data.logs.ids import IDS
from tensordb_data.logs.system import SystemMetrics
from tensordb_data.mongo.errors import are_duplicates, first_line
from tensordb_data.query.tags import clean_tags
from tensordb_data.search.index import search_index
from tensordb_data.warehouse.metrics import check_names, scalar
from tensordb_data.warehouse.record import Record

if TYPE_CHECKING:
    from bson import ObjectId

    from tensordb_data.warehouse.context import Warehouse

RESERVED = frozenset(("_id", "_tdb", "run", "step", "kind", "tags", "time"))
CAPACITY = 200_000  # rows in memory
_BATCH = 2_000  # rows an insert
_INTERVAL = 1.0  # seconds that a row waits for company
_RETRY = (0.1, 5.0)  # seconds between attempts: first, most
_UTC = dt.timezone.utc


class RunLog:
    """Writes rows of a run. A background thread writes them in bulk, in order. Also a context manager.

    Rows become visible within about a second, at `flush()` and at `close()`. A process that ends without `close()`
    writes its rows at exit. A process that is killed loses the rows of the last second, at most 200,000.

    If a loop writes faster than the server accepts, `write` waits when 200,000 rows are pending, and no row is lost.
    While the server is away, `write` does not wait: the first 200,000 rows are kept, and further rows are dropped. A
    warning says so at once, `dropped` counts them, and `close()` raises.
    """

    def __init__(self, warehouse: Warehouse, name: str, tags: Sequence[str] = (), system: float | None = None) -> None:
        if not isinstance(name, str) or not name:
            raise SchemaError(f"a run is named by a non-empty string; found {name!r}")
        if isinstance(tags, str):
            raise SchemaError(f"tags is a list of strings; found the string {tags!r}")
        self.name = name
        self._names: set[str] = set()
        self._writer = _Writer(warehouse, {"run": name, "tags": clean_tags(tags) if tags else []})
        weakref.finalize(self, self._writer.retire).atexit = False  # the writer flushes at exit by itself
        self.last_step = 0
        """The step that was written last."""
        self._system = None if system is None else SystemMetrics(weakref.proxy(self), system)

    @property
    def dropped(self) -> int:
        """Rows that were lost because the server was away for too long."""
        return self._writer.dropped

    def write(self, step: int, kind: str = "train", **values: Any) -> None:
        """Adds a row. This takes a few microseconds. It waits for the server only when 200,000 rows are pending.

        Args:
            step: The step of the row.
            kind: `"train"`, `"valid"`, or any name of your own.
            values: Numbers (also NumPy, torch and TensorFlow scalars), texts, booleans, lists of those, and entities.
                An entity, such as a sample or a checkpoint, is stored as a reference; `row.entity(name)` reads it. A
                scalar on a GPU is fetched later, by another thread. NaN and infinite values are stored as they are;
                plots and means leave them out, and count them.

        Raises:
            SchemaError: A value or a name cannot be stored.
            StorageError: The log is closed.
        """
        if type(step) is not int:
            step = scalar("step", step)
            if type(step) is not int:
                raise SchemaError(f"a step is an integer; found {step!r}")
        if not isinstance(kind, str) or not kind:
            raise SchemaError(f"a kind is a non-empty string; found {kind!r}")
        if not self._names.issuperset(values):
            check_names(values, RESERVED)
            self._names.update(values)
        row = {"kind": kind, "step": step}
        for name, value in values.items():
            row[name] = value if type(value) is float else _value(name, value)
        self.last_step = step
        self._writer.add((time.time(), row))

    def flush(self) -> None:
        """Waits until all rows so far are visible.

        Raises:
            StorageError: The server did not accept the rows. They are kept, and written later.
        """
        self._writer.flush()

    def close(self) -> None:
        """Writes all rows and ends the log. A second call does nothing.

        Raises:
            StorageError: Rows were lost.
        """
        if self._system is not None:
            self._system.stop()
        self._writer.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except StorageError as lost:  # must not hide what went wrong first
            warnings.warn(str(lost), stacklevel=2)

    def __repr__(self) -> str:
        return f"<log of run {self.name!r}>"


class _Later:
    """A scalar on a device, read by the writer's thread: reading it here would wait for the device."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value.detach()


class _Writer(BackgroundWorker):
    """The buffer of a log and the thread that empties it."""

    _thread_name = "tensordb-log"

    def __init__(self, warehouse: Warehouse, common: Mapping[str, Any]) -> None:
        self._warehouse = warehouse
        self._common = common
        self._reset()

    def _reset(self) -> None:
        super().__init__()
        self._rows: deque[tuple[float, dict[str, Any]]] = deque()
        self._sent: list[dict[str, Any]] = []  # taken from the buffer, not acknowledged yet
        self._hurry = False
        self._failure: Exception | None = None  # of the newest attempt
        self._reason: Exception | None = None  # of the newest that failed
        self._attempts = 0
        self.dropped = 0
        self._texts: dict[tuple[str, str, str], ObjectId] = {}  # of the rows that were taken, to be searched

    def add(self, row: tuple[float, dict[str, Any]]) -> None:
        if self._is_forked:
            self._reset()  # a forked child has rows of its own; those of the parent are the parent's
        with self._changed:
            if self._closed:
                raise StorageError(f"the log of run {self._common['run']!r} is closed; db.logs.run(...) opens it again")
            if len(self._rows) >= CAPACITY and self._failure is None:
                self._changed.wait_for(lambda: len(self._rows) < CAPACITY or self._failure is not None)
            if len(self._rows) >= CAPACITY:
                self.dropped += 1
                first = self.dropped == 1
            else:
                first = False
                self._rows.append(row)
                if self._thread is None or len(self._rows) in (1, _full()):
                    self._wake()
        if first:
            warnings.warn(
                f"{self._what()}: {CAPACITY:,} rows wait for the server; further ones are dropped", stacklevel=4
            )

    def flush(self) -> None:
        with self._changed:
            if self._thread is None or self._is_forked:
                return
            self._hurry = True
            self._changed.notify_all()
            attempts = self._attempts
            self._changed.wait_for(
                lambda: self._empty() or (self._failure is not None and self._attempts > attempts + 1)
            )
            self._hurry = False
            if not self._empty():
                raise StorageError(
                    f"{self._what()}: the server does not take the rows yet: {first_line(self._failure)}"
                ) from self._failure

    def close(self) -> None:
        if self._is_forked:
            return
        self._end()
        lost, self.dropped = self.dropped, 0
        if lost:
            raise StorageError(f"{self._what()}: {lost:,} rows were lost: {first_line(self._reason)}") from self._reason

    def _close_at_exit(self) -> None:
        try:
            self.close()
        except StorageError as error:
            sys.stderr.write(f"tensordb: {error}\n")

    def _empty(self) -> bool:
        return not self._rows and not self._sent

    def _what(self) -> str:
        return f"the log of run {self._common['run']!r}"

    def _run(self) -> None:
        wait = _RETRY[0]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._rows) or bool(self._sent) or self._closed)
                if self._failure is not None:
                    self._changed.wait_for(lambda: self._closed or self._hurry, timeout=wait)
                else:
                    self._changed.wait_for(
                        lambda: self._closed or self._hurry or len(self._rows) >= _full(), timeout=_INTERVAL
                    )
                popleft = self._rows.popleft
                taken = [popleft() for _ in range(min(len(self._rows), _BATCH - len(self._sent)))]
                last = self._closed
                self._changed.notify_all()
            failure: Exception | None = None
            try:
                self._sent += self._documents(taken)
                if self._sent:
                    self._insert()
            except Exception as error:  # of any kind: a thread that dies would leave close() waiting
                failure = error
            with self._changed:
                self._failure = failure
                self._reason = failure or self._reason
                self._attempts += 1
                if failure is None:
                    self._sent = []
                    wait = _RETRY[0]
                else:
                    wait = min(_RETRY[1], wait * 2)
                if last and failure is not None:  # leaving, and nobody takes them
                    self.dropped += len(self._rows) + len(self._sent)
                    self._rows.clear()
                    self._sent = []
                self._changed.notify_all()
                if last and self._empty():
                    return

    def _documents(self, rows: list[tuple[float, dict[str, Any]]]) -> list[dict[str, Any]]:
        common, internal, ids = self._common, {"p": self._warehouse.project}, IDS.take(len(rows))
        at = dt.datetime.fromtimestamp
        for id, (_, row) in zip(ids, rows, strict=True):
            for name, value in row.items():
                if type(value) is _Later:
                    row[name] = scalar(name, value.value)
                elif type(value) is str and name != "kind":
                    self._texts[common["run"], name, value] = id
        return [
            {"_id": id, **common, **row, "time": at(when, _UTC), "_tdb": internal}
            for id, (when, row) in zip(ids, rows, strict=True)
        ]

    def _insert(self) -> None:
        common = self._common
        group = (common["run"], tuple(common["tags"]))
        search_index(self._warehouse, "logs").add_groups({group: self._sent[0]["_id"]}, self._texts)
        self._texts.clear()
        try:
            self._warehouse.index["logs"].insert_many(self._sent, ordered=False)
        except BulkWriteError as error:
            # the ids are ours: a row that is there already arrived at an attempt whose answer was lost
            if not are_duplicates(error):
                raise


def _full() -> int:
    """How many rows are sent at once, and at the latest when nothing more fits."""
    return min(_BATCH, CAPACITY)


def _value(name: str, value: Any) -> Any:
    if getattr(value, "is_cuda", False) is True and value.numel() == 1:
        return _Later(value)
    if isinstance(value, Record):
        return {"collection": value.collection, "id": value.id}
    return scalar(name, value)

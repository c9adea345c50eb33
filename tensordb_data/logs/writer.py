"""Write the rows of a run in bulk, in the background. The training thread waits only if the buffer is full."""

from __future__ import annotations

import datetime as dt
import sys
import time
import warnings
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from tensordb_data.common.background import Outbox
from tensordb_data.errors import SchemaError, StorageError
from tensordb_data.logs.arrays import Logged, logged, stored
from tensordb_data.logs.ids import IDS
from tensordb_data.logs.insert import RowInserter
from tensordb_data.logs.system import SystemMetrics
from tensordb_data.mongo.errors import first_line
from tensordb_data.query.tags import clean_tags
from tensordb_data.runs.open_runs import note_closed, note_open
from tensordb_data.warehouse.metrics import check_names, is_text, scalar
from tensordb_data.warehouse.record import Record

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

RESERVED = frozenset(("_id", "_tdb", "run", "step", "kind", "tags", "time", "superseded"))
CAPACITY = 200_000  # rows in memory
_BATCH = 2_000  # rows an insert
_INTERVAL = 1.0  # seconds that a row waits for company
_SEARCHED = 1_000_000  # characters of the longest text that a search finds
_NO_STEP: Any = object()
_PLAIN = frozenset((int, str, bool, list, type(None)))
_ROOM = 256 << 20  # bytes of arrays in memory
_AT_ONCE = 64 << 20  # of those that are written at once

_Row = tuple[float, dict[str, Any], int]
"""When it was written, its values, and the bytes of its arrays."""
_RETRY = (0.1, 5.0)  # seconds between attempts: first, most
_UTC = dt.timezone.utc


class RunLog:
    """Writes rows of a run. A background thread writes them in bulk, in order. Also a context manager.

    Rows become visible within about a second, at `flush()` and at `close()`. A process that ends without `close()`
    writes its rows at exit. A process that is killed loses the rows of the last second, at most 200,000.

    If a loop writes faster than the server accepts, `write` waits when 200,000 rows are pending, and no row is lost.
    While the server is away, `write` does not wait: the first 200,000 rows are kept, and further rows are dropped. A
    row that cannot be stored, of more than 16 MB say, is left out alone. A warning says so at once, `dropped` counts
    these rows, and `close()` raises.

    Anybody may write rows of a run. They belong to the attempt that a saver of the run has under way, if one has.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        name: str,
        tags: Sequence[str] = (),
        system: float | None = None,
        *,
        attempt: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(name, str) or not name or not is_text(name):
            raise SchemaError(f"a run is named by a non-empty string; found {name!r:.200}")
        if isinstance(tags, str):
            raise SchemaError(f"tags is a list of strings; found the string {tags!r}")
        self.name = name
        self._names: set[str] = set()
        self._kinds: set[str] = set()
        self._writer = _Writer(warehouse, {"run": name, "tags": clean_tags(tags) if tags else []}, attempt)
        weakref.finalize(self, self._writer.retire).atexit = False  # the writer flushes at exit by itself
        note_open(self, warehouse, name)
        self.last_step = 0
        """The step that was written last."""
        self._system = None if system is None else SystemMetrics(weakref.proxy(self), system)

    @property
    def dropped(self) -> int:
        """Rows that were lost because the server was away for too long, or refused them."""
        return self._writer.dropped

    @overload
    def write(self, step: int, /, kind: str = ..., **values: Any) -> None: ...

    @overload
    def write(self, *, step: int, kind: str = ..., **values: Any) -> None: ...

    def write(  # type: ignore[misc]  # step= comes among the values
        self, step: Any = _NO_STEP, /, kind: str = "train", **values: Any
    ) -> None:
        """Adds a row. This takes a few microseconds. It waits for the server only when 200,000 rows are pending.

        Args:
            step: The step of the row.
            kind: `"train"`, `"valid"`, or any name of your own.
            values: Numbers (also NumPy, torch and TensorFlow scalars), texts, booleans, lists of those, arrays, and
                entities. An array of two or more dimensions, such as a picture, is stored as a blob. One of one
                dimension is stored as a histogram of its numbers, and so is what `np.histogram` returns. Arrays are
                copied. `row.array(name)` and `row.histogram(name)` read them. An entity, such as a sample or a
                checkpoint, is stored as a reference; `row.entity(name)` reads it. A scalar on a GPU is fetched later,
                by another thread. NaN and infinite values are stored as they are; plots and means leave them out, and
                count them.

        Raises:
            SchemaError: A value or a name cannot be stored, or the step is missing or given twice.
            StorageError: The log is closed.
        """
        if step is _NO_STEP:
            if "step" not in values:
                raise SchemaError("a row has a step: log.write(step, loss=0.5)")
            step = values.pop("step")
        if type(step) is not int:
            step = scalar("step", step)
        if type(step) is not int or not -(2**63) <= step < 2**63:
            raise SchemaError(f"a step is an integer of 64 bits; found {step!r:.200}")
        if kind not in self._kinds:
            if not isinstance(kind, str) or not kind or not is_text(kind):
                raise SchemaError(f"a kind is a non-empty string; found {kind!r:.200}")
            self._kinds.add(kind)
        if not self._names.issuperset(values):
            if "step" in values:
                raise SchemaError(f"the step is given twice: {step} and step={values['step']!r:.200}")
            check_names(values, RESERVED)
            self._names.update(values)
        row = {"kind": kind, "step": step}
        nbytes = 0
        for name, value in values.items():
            row[name] = found = value if type(value) is float else _value(name, value)
            if type(found) is Logged:
                nbytes += found.nbytes
        self.last_step = step
        self._writer.add((time.time(), row, nbytes))

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
        note_closed(self)
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


class _Writer(Outbox):
    """The buffer of a log and the thread that empties it."""

    _thread_name = "tensordb-log"

    def __init__(
        self, warehouse: Warehouse, common: Mapping[str, Any], attempt: Mapping[str, Any] | None = None
    ) -> None:
        self._warehouse = warehouse
        self._common = common
        self._attempt = attempt  # of the saver that writes these rows; None to ask which one is under way
        self._reset()

    def _reset(self) -> None:
        super().__init__()
        self._rows: deque[_Row] = deque()
        self._bytes = 0  # of the arrays of these rows
        self._sent: list[dict[str, Any]] = []  # taken from the buffer, not acknowledged yet
        self._busy = False  # whether rows are taken that may not be in `_sent` yet
        self._reason: Exception | None = None  # of the newest that failed
        self._inserter = RowInserter(self._warehouse, self._common, self._attempt)
        self.dropped = 0

    def add(self, row: _Row) -> None:
        if self._is_forked:
            self._reset()  # a forked child has rows of its own; those of the parent are the parent's
        self._changed.recover()
        with self._changed:
            if self._closed:
                raise StorageError(f"the log of run {self._common['run']!r} is closed; db.logs.run(...) opens it again")
            if self._is_full() and self._failure is None:
                self._wake()
                self._changed.wait_for(lambda: not self._is_full() or self._failure is not None)
            if self._is_full():
                self.dropped += 1
                first = self.dropped == 1
            else:
                first = False
                if self._thread is None or len(self._rows) in (0, _full() - 1):
                    self._wake()
                self._rows.append(row)
                self._bytes += row[2]
        if first:
            warnings.warn(
                f"{self._what()}: {len(self._rows):,} rows wait for the server; further ones are dropped", stacklevel=4
            )

    def flush(self) -> None:
        if not self._sent_all():
            failure = self._failure
            raise StorageError(
                f"{self._what()}: the server does not take the rows yet: {first_line(failure)}"
            ) from failure

    def close(self) -> None:
        if self._is_forked:
            return
        self._changed.recover()
        with self._changed:
            if not self._empty():  # an interrupt may have come as the thread was started
                self._wake()
        self._end()
        lost, self.dropped = self.dropped, 0
        if lost:
            raise StorageError(f"{self._what()}: {lost:,} rows were lost: {first_line(self._reason)}") from self._reason

    def _close_at_exit(self) -> None:
        try:
            self.close()
        except StorageError as error:
            sys.stderr.write(f"tensordb: {error}\n")

    def _is_full(self) -> bool:
        return len(self._rows) >= CAPACITY or self._bytes >= _ROOM

    def _empty(self) -> bool:
        return not self._rows and not self._sent and not self._busy

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
                        lambda: self._closed or self._hurry or len(self._rows) >= _full() or self._is_full(),
                        timeout=_INTERVAL,
                    )
                taken = self._take()
                last, self._busy = self._closed, True
                self._changed.notify_all()
            failure: Exception | None = None
            try:
                self._sent += self._documents(taken)
                if self._sent:
                    self._inserter.insert(self._sent)
            except Exception as error:  # of any kind: a thread that dies would leave close() waiting
                failure = error
            refused, self._inserter.refused = self._inserter.refused, []
            self._name(refused)
            with self._changed:
                self.dropped += len(refused)
                self._failure, self._busy = failure, False
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
                    self._bytes = 0
                    self._sent = []
                self._changed.notify_all()
                if last and self._empty():
                    return

    def _take(self) -> list[_Row]:
        """The next rows to write, of which the arrays are not too large together. None while those of before wait."""
        if self._inserter.tensors:
            return []
        taken: list[_Row] = []
        size = 0
        while self._rows and len(taken) < _BATCH - len(self._sent) and size < _AT_ONCE:
            taken.append(self._rows.popleft())
            size += taken[-1][2]
        self._bytes -= size
        return taken

    def _name(self, refused: list[tuple[Any, str]]) -> None:
        """Say at once which rows are left out."""
        for step, why in refused:
            line = f"{self._what()}: the row of step {step} is left out: {why:.1000}"
            self._reason = StorageError(line)
            try:
                warnings.warn(line, stacklevel=2)
            except UserWarning:  # where warnings are errors, in a thread in which nobody sees one
                sys.stderr.write(f"tensordb: {line}\n")

    def _documents(self, rows: list[_Row]) -> list[dict[str, Any]]:
        common, ids = self._common, IDS.take(len(rows))
        at = dt.datetime.fromtimestamp
        documents = []
        for id, (when, row, _) in zip(ids, rows, strict=True):
            try:
                for name, value in row.items():
                    if type(value) is _Later:
                        row[name] = scalar(name, value.value)
                    elif type(value) is Logged:
                        row[name], tensors = stored(name, value)
                        if tensors:
                            self._inserter.tensors.setdefault(id, {}).update(tensors)
                    elif type(value) is str and name != "kind" and len(value) <= _SEARCHED:
                        self._inserter.texts[common["run"], name, value] = id
            except Exception as error:  # of the device, or a value that is no number: the other rows are not to blame
                self._inserter.tensors.pop(id, None)
                self._inserter.refused.append((row["step"], str(error)))
                continue
            documents.append({"_id": id, **common, **row, "time": at(when, _UTC), "_tdb": {}})
        return documents


def _full() -> int:
    """How many rows are sent at once, and at the latest when nothing more fits."""
    return min(_BATCH, CAPACITY)


def _value(name: str, value: Any) -> Any:
    if getattr(value, "is_cuda", False) is True and value.numel() == 1:
        return _Later(value)
    if isinstance(value, Record):
        return {"collection": value.collection, "id": value.id}
    found = logged(name, value) if type(value) not in _PLAIN else None
    return scalar(name, value) if found is None else found

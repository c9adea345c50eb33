"""FeedbackBuffer: takes numbers from the training loop, and a thread stores them."""

from __future__ import annotations

import logging
import sys
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from bson import ObjectId

from tensordb_data.common.background import Outbox
from tensordb_data.errors import QueryError, ReadOnlyError, StorageError
from tensordb_data.feedback.moments import Moments, merged, moments_of
from tensordb_data.feedback.numbers import Numbers, sample_ids, sample_numbers
from tensordb_data.feedback.store import chunk_documents, insert_chunk, merge_if_due
from tensordb_data.feedback.value import number_name, run_name
from tensordb_data.mongo.errors import first_line
from tensordb_data.runs.documents import make_run

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

log = logging.getLogger("tensordb_data.feedback")

_INTERVAL = 1.0  # seconds that numbers wait for company
_IDLE = 5.0  # seconds without work, after which the thread ends
_FULL = 2_000_000  # numbers that wait as they were given; more are put together, which takes less memory
_RETRY = (0.1, 5.0)  # seconds between attempts: first, most

_Entry = tuple[str, list[ObjectId], dict[str, Numbers]]
_Key = tuple[str, str]
"""The run, and the name of a number."""


class FeedbackBuffer(Outbox):
    """The feedback of one process for a warehouse. A thread stores it each second, at `flush` and at `close`.

    If the server is away, what was given is kept, put together by sample, and stored when it is back.
    """

    _thread_name = "tensordb-feedback"

    def __init__(self, warehouse: Warehouse) -> None:
        self.warehouse = warehouse
        self.fed: set[_Key] = set()
        """The numbers that this process has given."""
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        super().__init__()
        self._entries: deque[_Entry] = deque()
        self._waiting = 0  # numbers in these entries
        self._together: dict[_Key, Moments] = {}  # those that were put together
        self._sending: list[dict[str, Any]] = []  # documents, not acknowledged yet
        self._busy = False
        self._told: set[_Key] = set()

    def add(self, run: str, ids: Any, numbers: Mapping[str, Any]) -> None:
        """Take numbers of some samples.

        Raises:
            QueryError: They are malformed.
            StorageError: The warehouse is closed.
        """
        if not numbers:
            raise QueryError("feedback needs numbers, one for each sample: db.data.feedback(run, ids, loss=losses)")
        keys = [(run, name) for name in numbers]
        if not self.fed.issuperset(keys):
            run_name(run)
            for name in numbers:
                number_name(name)
            if self.warehouse.address.read_only:
                raise ReadOnlyError(f"{self.warehouse} takes no feedback: it was opened with read_only=True")
        found = sample_ids(ids)
        entry = (run, found, {name: sample_numbers(name, value, len(found)) for name, value in numbers.items()})
        if self._is_forked:
            self._reset()  # a forked child has numbers of its own; those of the parent are the parent's
        self._changed.recover()
        with self._changed:
            if self._closed:
                raise StorageError(f"{self.warehouse} is closed, and takes no feedback any more")
            if self._thread is None or not self._entries:
                self._wake()
            self._entries.append(entry)
            self._waiting += len(found) * len(numbers)
            self.fed.update(keys)
            if self._waiting > _FULL:
                self._put_together()

    def flush(self) -> None:
        """Wait until all numbers so far are stored.

        Raises:
            StorageError: The server does not take them. They are kept, and stored later.
        """
        if not self._sent_all():
            failure = self._failure
            raise StorageError(f"the server does not take the feedback yet: {first_line(failure)}") from failure

    def close(self) -> None:
        """Store all numbers, and end.

        Raises:
            StorageError: The server did not take them: they are lost.
        """
        if self._is_forked:
            return
        self._changed.recover()
        with self._changed:
            if not self._empty():
                self._wake()
        self._end()
        if not self._empty():
            runs = sorted({run for run, _ in self._together} | {doc["r"] for doc in self._sending})
            failure, self._together, self._sending = self._failure, {}, []
            raise StorageError(f"feedback of {', '.join(map(repr, runs))} was lost: {first_line(failure)}") from failure

    def _close_at_exit(self) -> None:
        try:
            self.close()
        except StorageError as error:
            sys.stderr.write(f"tensordb: {error}\n")

    def _empty(self) -> bool:
        return not (self._entries or self._together or self._sending or self._busy)

    def _run(self) -> None:
        wait = _RETRY[0]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._empty() or self._closed, timeout=_IDLE)
                if self._empty():  # nothing to do, and nobody may be left to give anything
                    self._thread = None
                    return
                pause = _INTERVAL if self._failure is None else wait
                self._changed.wait_for(lambda: self._closed or self._hurry, timeout=pause)
                taken, self._entries, self._waiting = self._entries, deque(), 0
                before, self._together = self._together, {}
                last, self._busy = self._closed, True
            failure: Exception | None = None
            try:
                before = self._joined(before, taken)
                taken = deque()
                self._store(before)
                before = {}
            except Exception as error:  # of any kind: a thread that dies would leave close() waiting
                failure = error
            with self._changed:
                for key, moments in self._together.items():  # put together meanwhile, so they are newer
                    before[key] = merged([before[key], moments]) if key in before else moments
                self._together = before
                self._entries.extendleft(reversed(taken))
                self._waiting += sum(len(some) * len(given) for _, some, given in taken)
                is_new = failure is not None and self._failure is None
                self._failure, self._busy = failure, False
                self._attempts += 1
                wait = _RETRY[0] if failure is None else min(_RETRY[1], wait * 2)
                self._changed.notify_all()
                if last and (failure is not None or self._empty()):
                    return
            if is_new:
                log.warning("feedback is kept in memory, since the server does not take it: %s", first_line(failure))

    def _put_together(self) -> None:
        taken, self._entries, self._waiting = self._entries, deque(), 0
        self._together = self._joined(self._together, taken)

    def _joined(self, before: Mapping[_Key, Moments], entries: Sequence[_Entry] | deque[_Entry]) -> dict[_Key, Moments]:
        """What was put together before, with the numbers of entries that came later."""
        ids: dict[_Key, list[bytes]] = {}
        numbers: dict[_Key, list[Any]] = {}
        for run, some, given in entries:
            content = b"".join([id.binary for id in some])
            for name, value in given.items():
                try:
                    found = value() if callable(value) else value
                    found = np.asarray(found).astype(np.float64)
                except Exception as error:  # of the device: other numbers are not to blame
                    log.warning("feedback %r of run %r: %d numbers are left out: %s", name, run, len(some), error)
                    continue
                ids.setdefault((run, name), []).append(content)
                numbers.setdefault((run, name), []).append(found)
        together = dict(before)
        for key, parts in ids.items():
            all_ids = np.frombuffer(b"".join(parts), "S12")
            found = np.concatenate(numbers[key])
            finite = np.isfinite(found)
            if not finite.all():
                self._tell_left_out(key, int(len(found) - np.count_nonzero(finite)))
                all_ids, found = all_ids[finite], found[finite]
            if len(found):
                new = moments_of(all_ids, found)
                together[key] = merged([together[key], new]) if key in together else new
        return together

    def _tell_left_out(self, key: _Key, count: int) -> None:
        if key not in self._told:
            self._told.add(key)
            log.warning(
                "feedback %r of run %r: %d numbers are NaN or infinite; such numbers are not counted", *reversed(key),
                count,
            )  # fmt: skip

    def _store(self, together: dict[_Key, Moments]) -> None:
        for run, name in list(together):
            self._sending += chunk_documents(self.warehouse, run, name, together.pop((run, name)))
        if self.warehouse.index.is_server:
            for run in sorted({doc["r"] for doc in self._sending}):
                make_run(self.warehouse, run)
        keys = {(doc["r"], doc["m"]) for doc in self._sending}
        while self._sending:
            insert_chunk(self.warehouse, self._sending[0])
            del self._sending[0]
        for run, name in sorted(keys):
            try:
                merge_if_due(self.warehouse, run, name)
            except Exception as error:  # the numbers are stored, and the next flush tries again
                log.warning("feedback %r of run %r is not merged yet: %s", name, run, error)


_all: weakref.WeakSet[FeedbackBuffer] = weakref.WeakSet()


def feedback_buffer(warehouse: Warehouse) -> FeedbackBuffer:
    """The buffer of this process for a warehouse."""
    return warehouse.memo(FeedbackBuffer, lambda: FeedbackBuffer(warehouse))


def flush_feedback(warehouse: Warehouse) -> None:
    """Store all that this process has given for a warehouse, by whichever connection.

    Raises:
        StorageError: See `FeedbackBuffer.flush`.
    """
    for buffer in _buffers(warehouse):
        buffer.flush()


def has_fed(warehouse: Warehouse, run: str) -> set[str]:
    """The names of the numbers that this process has given of a run."""
    return {name for buffer in _buffers(warehouse) for of, name in list(buffer.fed) if of == run}


def _buffers(warehouse: Warehouse) -> list[FeedbackBuffer]:
    while True:
        try:
            return [buffer for buffer in list(_all) if buffer.warehouse == warehouse]
        except RuntimeError:  # another thread has opened a warehouse meanwhile
            continue

"""The samples of a writer on their way into a dataset: a batch that fills, and one in a commit."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tensordb_data.common.interruptible import InterruptibleCondition
from tensordb_data.errors import DuplicateError, SchemaError, TensorDBError
from tensordb_data.samples.commit import TooLarge, commit, was_committed
from tensordb_data.samples.commit_lock import commit_lock
from tensordb_data.samples.write_batch import BATCH_SAMPLES, WriteBatch
from tensordb_data.schema.schema import Schema

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_NOW = -1.0
_GRACE = 0.4
"""Seconds for which an interrupted call waits for the outcome of a commit, to say it."""

_log = logging.getLogger("tensordb_data")


class WriteBuffer:
    """Takes encoded samples, and commits them in a thread of its own, one batch after the other.

    The thread begins with the first sample. It commits without the lock, so that samples are added meanwhile. And no
    other thread calls the driver, which an interrupt could leave with a lock that nobody gives back.

    Args:
        warehouse: The warehouse.
        dataset: The dataset.
        schema: Its schema, as far as there is one.
        level: The zstd level of its blobs; None for no compression.
        flush_every: Seconds after which a sample is committed at the latest; None for no limit.
        live: Whether the batches are small, and have small blobs in the documents.
        skip_existing: Whether samples whose `_id` exists are left out.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        dataset: str,
        schema: Schema | None,
        level: int | None,
        *,
        flush_every: float | None,
        live: bool,
        skip_existing: bool = False,
    ) -> None:
        self.changed = InterruptibleCondition()
        self.schema = schema
        self.written = self.skipped = 0
        self.closed = False
        self.failure: BaseException | None = None
        """Of a commit, for the next call."""
        self._warehouse, self._dataset, self._level = warehouse, dataset, level
        self._flush_every, self._live, self._most = flush_every, live, BATCH_SAMPLES
        self._skip_existing = skip_existing
        self._pid = os.getpid()
        self._batch: WriteBatch | None = None
        self._since = 0.0
        self._due = self._busy = False
        self._taken = self._settled = 0  # samples given to commits, and those whose commit has ended
        self._learned: Schema | None = None
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Samples that no commit has taken yet."""
        batch = self._batch
        return 0 if batch is None else len(batch)

    @property
    def pending(self) -> int:
        """Samples whose commit has not ended."""
        return self.waiting + self._taken - self._settled

    @property
    def named(self) -> str:
        """The writer, for messages."""
        return f"writer of dataset {self._dataset!r}"

    # The caller of these methods holds the lock `changed`

    def ready(self) -> None:
        """Raise the error of an earlier commit, or that the writer is closed."""
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if self.closed:
            raise TensorDBError(f"this writer of dataset {self._dataset!r} is closed; open a new one")

    def room(self, schema: Schema) -> WriteBatch:
        """The batch that fills, for samples of a schema."""
        if self._batch is None:
            project = self._warehouse.project
            self._batch = WriteBatch(project, self._dataset, schema, self._level, self._live, self._most)
        self._batch.grow(schema)
        return self._batch

    def added(self, batch: WriteBatch) -> None:
        """Have the buffer committed when it is time; wait if it is full."""
        if self._since == 0.0:
            self._wake()
            self._since = time.monotonic()
        if not batch.due:
            return
        if not self._behind:
            self.flush()
            return
        if not self._due or batch.full:
            self._wake()
            self._due = True
        if batch.full:
            self._wait(lambda: self._batch is not batch)

    @property
    def _behind(self) -> bool:
        """Whether `add` does not wait for the commits that it causes."""
        return self._live and self._flush_every is not None

    def flush(self) -> None:
        """Have all that is pending committed, and wait until it is."""
        until = self._taken + self.waiting
        if self._settled >= until:
            return
        self._wake()
        self._due = True
        self._wait(lambda: self._settled >= until)

    def _wait(self, done: Callable[[], bool]) -> None:
        try:
            while not (done() or self.failure is not None or self.closed):
                self.changed.wait()
        except BaseException as error:
            note(error, f"{self.named}: {self.outcome(error)} so far")
            raise
        if self.failure is not None or not done():
            self.ready()

    def outcome(self, error: BaseException) -> str:
        """How many samples were committed, for a note on an error; after an interrupt, without waiting for long."""
        deadline = None if isinstance(error, Exception) else time.monotonic() + _GRACE
        while self._busy:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            self.changed.wait(left)
        under_way = self._taken - self._settled
        more = f", {under_way} are in a commit that goes on, or is lost if the program ends now" if under_way else ""
        return f"{self.written} samples were committed{more}"

    def _take(self) -> tuple[WriteBatch, Schema] | None:
        """What is in the buffer, and the schema with which it was encoded."""
        batch, self._batch, self._since, self._due = self._batch, None, 0.0, False
        if batch is None or not len(batch) or self.schema is None:
            return None
        schema = self.schema
        self._taken += len(batch)
        self._learn()
        return batch, schema

    def _learn(self) -> None:
        """Encode with the schema that the last commit has found; the buffer is empty."""
        learned, self._learned = self._learned, None
        if learned is not None and self.schema is not None:
            with contextlib.suppress(SchemaError):  # the next commit says so
                self.schema = Schema({**learned, **learned.missing(self.schema, self._dataset, older=True)})

    def end(self) -> None:
        """Drop what no commit has taken, and take no more."""
        self._batch = None
        self.closed = True
        self.changed.notify_all()

    def abandon(self) -> None:
        """Let the thread end, now that nobody adds samples. It does by itself later, if the lock is held just now."""
        if self.changed.acquire(blocking=False):
            try:
                self.end()
            finally:
                self.changed.release()

    def _wake(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=_commit_in_time, args=(weakref.ref(self), self.changed), name="tensordb-writer", daemon=True
            )
            self._thread.start()
        else:
            self.changed.notify_all()

    def _seconds_left(self) -> float | None:
        """Seconds until it may be time to commit.

        Returns:
            0 if it will never be; None if nothing is pending; `_NOW` if it is, and the caller has to release the lock
            and call `_commit_due`.
        """
        if self.closed or os.getpid() != self._pid:
            return 0.0
        if self._busy:  # an interrupt as the thread was started has made a second one
            return None
        left: float | None = None
        if self._since and self._flush_every is not None:
            left = self._since + self._flush_every - time.monotonic()
        if not self._due and (left is None or left > 0):
            return left
        self._busy = True
        return _NOW

    # In the thread

    def _commit_due(self) -> None:
        """Commit what is in the buffer. An error is for the next call."""
        failure: BaseException | None = None
        try:
            with self._commit_lock() as holds_lock:
                with self.changed:
                    taken = self._take()
                if taken is not None:
                    self._commit(*taken, holds_lock)
        except BaseException as error:
            failure = error
        with self.changed:
            self._settled, self._busy = self._taken, False
            if not self.waiting:
                self._learn()
            if self.failure is None:
                self.failure = failure
            elif failure is not None:
                note(self.failure, f"{self.named}: a later flush failed, too: {failure}")
            self.changed.notify_all()

    @contextlib.contextmanager
    def _commit_lock(self) -> Iterator[bool]:
        """Of a live writer, the commit lock, before the batch is taken: meanwhile samples are added to it."""
        batch = self._batch
        if self._behind and batch is not None and len(batch) and not batch.has_segment:  # which is put before the lock
            with commit_lock(self._warehouse, self._dataset):
                yield True
        else:
            yield False

    def _commit(self, batch: WriteBatch, schema: Schema, holds_lock: bool) -> None:
        parts = [batch]
        while parts:
            part = parts.pop()
            given = len(part) + part.skipped
            try:
                learned = commit(
                    self._warehouse, self._dataset, schema, part, holds_lock=holds_lock,
                    skip_existing=self._skip_existing,
                )  # fmt: skip
            except TooLarge:
                parts += reversed(part.halves())
                self._most = max(1, len(part) // 2)
                continue
            except BaseException as error:
                self._failed(error, part, sum(map(len, parts)))
                raise
            with self.changed:
                self.written += given - part.skipped
                self.skipped += part.skipped
                self._settled += given
                self._learned = learned

    def _failed(self, error: BaseException, batch: WriteBatch, behind: int) -> None:
        """Note on an error whether its batch was committed, and how many samples behind it were dropped."""
        done = False if isinstance(error, (SchemaError, DuplicateError)) else was_committed(self._warehouse, batch)
        before = self.written
        self.written += len(batch) if done else 0
        outcome = "may have been committed" if done is None else "was committed" if done else "was not committed"
        rest = f", and {behind} behind it were dropped" if behind else ""
        note(error, f"{self.named}: {before} samples were committed before; this flush of {len(batch)} {outcome}{rest}")


def _commit_in_time(buffer: weakref.ref[WriteBuffer], changed: InterruptibleCondition) -> None:
    """The thread of a writer."""
    while True:
        with changed:
            alive = buffer()
            wait = 0.0 if alive is None else alive._seconds_left()
            if wait == 0.0:
                return
            if wait != _NOW:
                del alive
                changed.wait(wait)  # for a second at most, so that the thread of a writer that was dropped ends too
                continue
        if alive is not None:
            alive._commit_due()
        del alive


def note(error: BaseException, text: str) -> None:
    """Add a note to an error."""
    add = getattr(error, "add_note", None)
    if add is not None:
        add(text)
    else:  # Python 3.10
        _log.warning("%s", text)

"""Write samples into a dataset."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.common.bson_values import member_value
from tensordb_data.common.interruptible import InterruptibleCondition
from tensordb_data.errors import DuplicateError, QueryError, SchemaError, TensorDBError
from tensordb_data.samples.arguments import check_dataset_name, compression_level, sample_tags, tags_of_samples
from tensordb_data.samples.columns import count_rows, encode_columns, make_ids
from tensordb_data.samples.commit import TooLarge, commit, merge_schema, register, was_committed
from tensordb_data.samples.commit_lock import commit_lock
from tensordb_data.samples.inference import WaitingFields
from tensordb_data.samples.write_batch import BATCH_SAMPLES, WriteBatch
from tensordb_data.schema.schema import Schema
from tensordb_data.warehouse.record import new_id

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

FLUSH, LIVE_FLUSH = 10.0, 0.05
"""Seconds after which pending samples are committed, by default."""

_NOW = -1.0

_log = logging.getLogger("tensordb_data")


class Writer:
    """Writes samples into one dataset. Use it as a context manager. `db.data.writer(...)` makes one.

    Samples are checked and encoded when they are added. A commit makes them visible to readers, together. The writer
    commits at `flush()`, every `flush_every` seconds, when about 32 MB or 50,000 samples are pending, and at the end of
    the `with` block. A commit takes place whole or not at all. If the cache of the server is too small for so many
    samples, the writer splits the commit into several, each of which takes place whole, and makes later ones smaller.
    After an exception in the block, or Ctrl-C, committed samples stay and pending samples are dropped. A note on the
    exception says how many.

    A live writer is for low latency. It commits in a thread of its own, 50 ms after a sample was added or when 400 are
    pending. It puts blobs of at most 4 KiB into the documents, which saves a segment for each commit. `db.data.compact`
    moves them into segments later.

    Threads may share a writer. Processes may write to one dataset at the same time, each with its own writer.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        dataset: str,
        *,
        schema: Mapping[str, Any] | None = None,
        compression: str | None = None,
        flush_every: float | EllipsisType | None = ...,
        live: bool = False,
    ) -> None:
        dataset = member_value(dataset)
        check_dataset_name(dataset)
        self._warehouse, self._dataset = warehouse, dataset
        self._level = compression_level(compression)
        if isinstance(flush_every, EllipsisType):
            flush_every = LIVE_FLUSH if live else FLUSH
        number = isinstance(flush_every, (int, float)) and not isinstance(flush_every, bool)
        if flush_every is not None and not (number and flush_every > 0):
            raise QueryError(f"flush_every is a positive number of seconds, or None; found {flush_every!r}")
        self._flush_every, self._live, self._most = flush_every, live, BATCH_SAMPLES
        self._pid = os.getpid()
        self._changed = InterruptibleCondition()
        self._closed = False
        self._written = 0
        self._batch: WriteBatch | None = None
        self._since = 0.0
        self._due = False
        self._failure: BaseException | None = None
        self._timer: threading.Thread | None = None
        register(warehouse, dataset)
        stored = warehouse.datasets.schemas([dataset]).get(dataset)
        given = None if schema is None else Schema.declared(dataset, schema)
        self._fields = WaitingFields(dataset)
        self._schema = stored if given is None else merge_schema(warehouse, dataset, stored, given)

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return self._dataset

    @property
    def schema(self) -> Schema | None:
        """The dataset's schema; None for a new dataset without a first sample."""
        return self._schema

    @property
    def written(self) -> int:
        """Samples committed by this writer."""
        return self._written

    @property
    def pending(self) -> int:
        """Samples added and not yet committed."""
        batch = self._batch
        return 0 if batch is None else len(batch)

    def add(self, /, *, tags: str | Sequence[str] = (), _id: ObjectId | None = None, **fields: Any) -> ObjectId:
        """Add one sample.

        Args:
            tags: The tags of the sample.
            _id: The identity of the sample; with None, a new one.
            **fields: The fields of the sample. Arrays, encoded images and bytes become blobs; other values can be
                queried. Give names that are not Python identifiers as `add(**{"größe (mm)": 3})`.

        Returns:
            The sample's `_id`.

        Raises:
            SchemaError: A field does not fit the dataset's schema. The sample is not added; the writer goes on.
            DuplicateError: An `_id` exists already. The call that causes the commit raises this; with a live writer,
                the next call.
        """
        self._own()
        id, tags = new_id(_id), sample_tags(tags)
        with self._changed:
            self._ready()
            schema = self._fields.of_sample(self._schema, fields)
            batch = self._room(schema)
            batch.add(id, tags, fields)
            self._schema = schema
            self._added(batch)
        return id

    def add_many(
        self,
        /,
        *,
        tags: str | Sequence[str] | Sequence[Sequence[str]] = (),
        _id: Iterable[ObjectId] | None = None,
        **columns: Any,
    ) -> list[ObjectId]:
        """Add n samples, given as columns. This is the fastest way to add samples.

        Args:
            tags: Tags of all samples, or a list of n lists.
            _id: The n identities; with None, new ones.
            **columns: For each field an array of shape (n, ...) or a list of n values. A number or a string is the
                value of all samples.

        Returns:
            The `_id` of each sample.

        Raises:
            SchemaError: A column does not fit; the message names field and row. Some of the samples before that row
                may have been added; see `written` and `pending`.
        """
        self._own()
        n = count_rows(self._dataset, columns)
        ids = make_ids(n, _id)
        each = tags_of_samples(tags, n)
        if n == 0:
            return ids
        with self._changed:
            self._ready()
            schema = self._fields.of_columns(self._schema, columns)
            encoded = encode_columns(self._dataset, schema, n, columns)
            start = 0
            while start < n:
                batch = self._room(schema)
                rows = slice(start, min(n, start + batch.room(encoded)))
                run = {name: column[rows] for name, column in encoded.items()}
                batch.add_columns(ids[rows], itertools.islice(each, rows.stop - rows.start), run)
                self._schema = schema
                self._added(batch)
                start = rows.stop
        return ids

    def flush(self) -> None:
        """Commit all pending samples. On return they are durable and visible to readers."""
        self._own()
        with self._commit_lock() as holds_lock, self._changed:
            self._ready()
            self._commit(holds_lock)

    def close(self) -> None:
        """Commit all pending samples and end the writer. A second call does nothing."""
        self._own()
        with self._commit_lock() as holds_lock, self._changed:
            if self._closed:
                return
            try:
                self._ready()
                self._commit(holds_lock)
            except BaseException as error:
                if self.pending:
                    _note(error, f"{self._named}: {self.pending} pending samples were dropped")
                raise
            finally:
                self._batch = None
                self._end()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        if os.getpid() != self._pid:
            return
        self._changed.recover()
        with self._changed:
            dropped = self.pending
            self._batch = None
            self._end()
        _note(
            error,
            f"{self._named}: {self._written} samples were committed and stay, {dropped} pending ones were dropped",
        )
        if self._failure is not None:
            _note(error, f"{self._named}: an earlier flush had failed: {self._failure}")

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.pending} pending"
        return f"<Writer of dataset {self._dataset!r}: {self._written} written, {state}>"

    def __del__(self) -> None:
        if getattr(self, "_batch", None) is not None and not self._closed and self.pending and os.getpid() == self._pid:
            _log.warning("a writer of dataset %r was dropped with %d samples pending; use it in a with block",
                         self._dataset, self.pending)  # fmt: skip

    @property
    def _named(self) -> str:
        return f"writer of dataset {self._dataset!r}"

    def _own(self) -> None:
        """Refuse a forked process, and recover from an interrupt. This comes before the lock."""
        if os.getpid() != self._pid:
            raise TensorDBError("a writer cannot be used in a forked process; open one there")
        self._changed.recover()

    @contextlib.contextmanager
    def _commit_lock(self) -> Iterator[bool]:
        """Waits for the commit lock of a live writer before its own lock, so that samples are added meanwhile."""
        batch = self._batch
        if self._behind and batch is not None and len(batch) and not batch.has_segment:  # which is put before the lock
            with commit_lock(self._warehouse, self._dataset):
                yield True
        else:
            yield False

    @property
    def _behind(self) -> bool:
        """Whether the thread commits, and not the caller of `add`."""
        return self._live and self._flush_every is not None

    def _commit_behind(self) -> None:
        with self._commit_lock() as holds_lock, self._changed:
            try:
                self._commit(holds_lock)
            except BaseException as error:
                self._failure = error  # for the next call
            self._changed.notify_all()

    # The caller of these methods holds the lock

    def _ready(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if self._closed:
            raise TensorDBError(f"this writer of dataset {self._dataset!r} is closed; open a new one")

    def _room(self, schema: Schema) -> WriteBatch:
        if self._batch is None:
            project = self._warehouse.project
            self._batch = WriteBatch(project, self._dataset, schema, self._level, self._live, self._most)
        self._batch.grow(schema)
        return self._batch

    def _added(self, batch: WriteBatch) -> None:
        now = time.monotonic()
        if self._since == 0.0:
            self._since = now
            if self._flush_every is not None:
                self._start_timer()
        late = self._flush_every is not None and now - self._since >= self._flush_every
        if not (batch.full or late):
            return
        if not self._behind:
            self._commit()
            return
        self._due = True
        self._changed.notify_all()
        while batch.full and self._batch is batch and not self._closed:
            self._changed.wait()
        if self._failure is not None:
            self._ready()

    def _commit(self, holds_lock: bool = False) -> None:
        self._due = False
        batch, self._batch, self._since = self._batch, None, 0.0
        if batch is None or not len(batch) or self._schema is None:
            return
        parts = [batch]
        while parts:
            part = parts.pop()
            try:
                self._schema = commit(self._warehouse, self._dataset, self._schema, part, holds_lock=holds_lock)
            except TooLarge:
                parts += reversed(part.halves())
                self._most = max(1, len(part) // 2)
                continue
            except BaseException as error:
                self._failed(error, part, sum(map(len, parts)))
                raise
            self._written += len(part)

    def _failed(self, error: BaseException, batch: WriteBatch, behind: int) -> None:
        """Note on an error whether its batch was committed, and how many samples behind it were dropped."""
        done = False if isinstance(error, (SchemaError, DuplicateError)) else was_committed(self._warehouse, batch)
        before = self._written
        self._written += len(batch) if done else 0
        outcome = "may have been committed" if done is None else "was committed" if done else "was not committed"
        rest = f", and {behind} behind it were dropped" if behind else ""
        _note(
            error, f"{self._named}: {before} samples were committed before; this flush of {len(batch)} {outcome}{rest}"
        )

    def _end(self) -> None:
        self._closed = True
        self._changed.notify_all()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = threading.Thread(
                target=_flush_in_time, args=(weakref.ref(self), self._changed), name="tensordb-writer", daemon=True
            )
            self._timer.start()
        else:
            self._changed.notify_all()

    def _flush_if_late(self) -> float | None:
        """Commit if it is time.

        Returns:
            Seconds until it may be time; None if nothing is pending; `_NOW` if it is time, and the caller has to
            release the lock and call `_commit_behind`.
        """
        if self._closed or self._flush_every is None or os.getpid() != self._pid:
            return 0.0
        if not self._since:
            return None
        wait = self._since + self._flush_every - time.monotonic()
        if wait > 0 and not self._due:
            return wait
        if self._behind:
            return _NOW
        try:
            self._commit()
        except BaseException as error:
            self._failure = error  # for the next call
        return None


def _flush_in_time(writer: weakref.ref[Writer], changed: threading.Condition) -> None:
    while True:
        with changed:
            alive = writer()
            wait = 0.0 if alive is None else alive._flush_if_late()
            if wait == 0.0:
                return
            if wait != _NOW:
                del alive
                # Bounded, so that the thread of a writer that was dropped ends too.
                changed.wait(60.0 if wait is None else min(wait, 60.0))
                continue
        if alive is not None:
            alive._commit_behind()
        del alive


def _note(error: BaseException, text: str) -> None:
    add = getattr(error, "add_note", None)
    if add is not None:
        add(text)
    else:  # Python 3.10
        _log.warning("%s", text)

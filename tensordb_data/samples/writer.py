"""Write samples into a dataset."""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

from bson import ObjectId

from tensordb_data.common.bson_values import member_value
from tensordb_data.errors import QueryError, TensorDBError
from tensordb_data.mongo.object_ids import new_object_id
from tensordb_data.samples.arguments import check_dataset_name, compression_level, sample_tags, tags_of_samples
from tensordb_data.samples.columns import count_rows, encode_columns, keyed, make_ids
from tensordb_data.samples.commit import merge_schema, register
from tensordb_data.samples.inference import WaitingFields
from tensordb_data.samples.write_buffer import WriteBuffer, note
from tensordb_data.schema.schema import Schema
from tensordb_data.warehouse.identity import Identities, identity_name
from tensordb_data.warehouse.record import new_id

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

Existing = Literal["error", "skip"]

FLUSH, LIVE_FLUSH = 10.0, 0.05
"""Seconds after which pending samples are committed, by default."""

_log = logging.getLogger("tensordb_data")


class Writer:
    """Writes samples into one dataset. Use it as a context manager. `db.data.writer(...)` makes one.

    Samples are checked and encoded when they are added. A commit makes them visible to readers, together. The writer
    commits at `flush()`, every `flush_every` seconds, when about 32 MB or 50,000 samples are pending, and at the end of
    the `with` block. A commit takes place whole or not at all. If the cache of the server is too small for so many
    samples, the writer splits the commit into several, each of which takes place whole, and makes later ones smaller.
    After an exception in the block, or Ctrl-C, committed samples stay and pending samples are dropped. A note on the
    exception says how many. Ctrl-C does not wait for a commit that takes long: the note says that it goes on.

    A thread of the writer commits. Others may add samples meanwhile. A call waits for a commit if it is `flush()`,
    `close()`, or an `add` that fills the buffer.

    A live writer is for low latency. It commits 50 ms after a sample was added or when 400 are pending, and `add` does
    not wait for it. If the server is slow or away, `add` waits only when 32 MB or 50,000 samples are pending. A live
    writer puts blobs of at most 4 KiB into the documents, which saves a segment for each commit. `db.data.compact`
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
        existing: Existing = "error",
    ) -> None:
        dataset = member_value(dataset)
        check_dataset_name(dataset)
        self._dataset = dataset
        level = compression_level(compression)
        if isinstance(flush_every, EllipsisType):
            flush_every = LIVE_FLUSH if live else FLUSH
        number = isinstance(flush_every, (int, float)) and not isinstance(flush_every, bool)
        if flush_every is not None and not (number and flush_every > 0):
            raise QueryError(f"flush_every is a positive number of seconds, or None; found {flush_every!r}")
        if existing not in get_args(Existing):
            raise QueryError(f'existing is "error" or "skip"; found {existing!r:.100}')
        self._pid = os.getpid()
        register(warehouse, dataset)
        stored = warehouse.datasets.schemas([dataset]).get(dataset)
        given = None if schema is None else Schema.declared(dataset, schema)
        self._fields = WaitingFields(dataset)
        merged = stored if given is None else merge_schema(warehouse, dataset, stored, given)
        self._buffer = WriteBuffer(
            warehouse, dataset, merged, level, flush_every=flush_every, live=live, skip_existing=existing == "skip"
        )
        self._warehouse = warehouse

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return self._dataset

    @property
    def schema(self) -> Schema | None:
        """The dataset's schema; None for a new dataset without a first sample."""
        return self._buffer.schema

    @property
    def written(self) -> int:
        """Samples committed by this writer."""
        return self._buffer.written

    @property
    def skipped(self) -> int:
        """Samples that this writer has left out because they existed; see `existing="skip"`."""
        return self._buffer.skipped

    @functools.cached_property
    def _identities(self) -> Identities:
        return Identities(self._warehouse.project, identity_name(self._warehouse, self._dataset))

    @property
    def pending(self) -> int:
        """Samples added and not yet committed."""
        return self._buffer.pending

    def add(
        self, /, *, tags: str | Sequence[str] = (), _id: ObjectId | None = None, _key: Any = None, **fields: Any
    ) -> ObjectId:
        """Add one sample.

        Args:
            tags: The tags of the sample.
            _id: The identity of the sample; with None, a new one.
            _key: What identifies the sample in this dataset, in place of `_id`: a value, or a tuple of several. The
                same key is the same `_id`, in any process, and in an `ingest` with `key=`.
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
        if _key is not None:
            _id = keyed(self._identities, [_key], 1, _id)[0]
        id, tags = new_object_id() if _id is None else new_id(_id), sample_tags(tags)
        buffer = self._buffer
        with buffer.changed:
            buffer.ready()
            schema = self._fields.of_sample(buffer.schema, fields)
            batch = buffer.room(schema)
            batch.add(id, tags, fields)
            buffer.schema = schema
            buffer.added(batch)
        return id

    def add_many(
        self,
        /,
        *,
        tags: str | Sequence[str] | Sequence[Sequence[str]] = (),
        _id: Iterable[ObjectId] | None = None,
        _key: Iterable[Any] | None = None,
        **columns: Any,
    ) -> list[ObjectId]:
        """Add n samples, given as columns. This is the fastest way to add samples.

        Args:
            tags: Tags of all samples, or a list of n lists.
            _id: The n identities; with None, new ones.
            _key: What identifies the n samples, in place of `_id`; see `add`.
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
        ids = make_ids(n, _id) if _key is None else keyed(self._identities, _key, n, _id)
        each = tags_of_samples(tags, n)
        if n == 0:
            return ids
        buffer = self._buffer
        with buffer.changed:
            buffer.ready()
            schema = self._fields.of_columns(buffer.schema, columns)
            encoded = encode_columns(self._dataset, schema, n, columns)
            start = 0
            while start < n:
                if start and buffer.schema is not None:  # another thread may have grown it meanwhile
                    schema = Schema({**buffer.schema, **schema})
                batch = buffer.room(schema)
                rows = slice(start, min(n, start + batch.room(encoded)))
                run = {name: column[rows] for name, column in encoded.items()}
                batch.add_columns(ids[rows], itertools.islice(each, rows.stop - rows.start), run)
                buffer.schema = schema
                buffer.added(batch)
                start = rows.stop
        return ids

    def flush(self) -> None:
        """Commit all pending samples. On return they are durable and visible to readers."""
        self._own()
        with self._buffer.changed:
            self._buffer.ready()
            self._buffer.flush()

    def close(self) -> None:
        """Commit all pending samples and end the writer. A second call does nothing."""
        self._own()
        buffer = self._buffer
        with buffer.changed:
            if buffer.closed:
                return
            try:
                buffer.ready()
                buffer.flush()
            except BaseException as error:
                if buffer.waiting:
                    note(error, f"{buffer.named}: {buffer.waiting} pending samples were dropped")
                raise
            finally:
                buffer.end()

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
        buffer = self._buffer
        buffer.changed.recover()
        with buffer.changed:
            dropped = buffer.waiting
            buffer.end()
            outcome = buffer.outcome(error)
        note(error, f"{buffer.named}: {outcome} and stay, {dropped} pending ones were dropped")
        if buffer.failure is not None:
            note(error, f"{buffer.named}: an earlier flush had failed: {buffer.failure}")

    def __repr__(self) -> str:
        state = "closed" if self._buffer.closed else f"{self.pending} pending"
        return f"<Writer of dataset {self._dataset!r}: {self.written} written, {state}>"

    def __del__(self) -> None:
        buffer: WriteBuffer | None = getattr(self, "_buffer", None)
        if buffer is not None and not buffer.closed and buffer.pending and os.getpid() == self._pid:
            _log.warning("a writer of dataset %r was dropped with %d samples pending; use it in a with block",
                         self._dataset, buffer.pending)  # fmt: skip
        if buffer is not None and os.getpid() == self._pid:
            buffer.abandon()

    def _own(self) -> None:
        """Refuse a forked process, and recover from an interrupt. This comes before the lock."""
        if os.getpid() != self._pid:
            raise TensorDBError("a writer cannot be used in a forked process; open one there")
        self._buffer.changed.recover()

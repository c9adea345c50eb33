"""The samples of one commit: checked and encoded, their blobs in one segment, their documents ready to insert."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import bson
import numpy as np
from bson import ObjectId

from tensordb_data.blobs.segments.format import SegmentBuilder
from tensordb_data.blobs.segments.inline import MAX_INLINE, MAX_INLINE_TOTAL, checksum, inline_reference
from tensordb_data.common.bson_values import MAX_DOCUMENT
from tensordb_data.errors import SchemaError
from tensordb_data.samples.columns import Column
from tensordb_data.schema import Array, BlobField, Bytes, Text
from tensordb_data.schema.missing import is_missing
from tensordb_data.schema.schema import Schema, located, missing_field

SEGMENT_BYTES = 32 * 2**20
BATCH_SAMPLES = 50_000
DOCUMENT_BYTES = 32 * 2**20
LIVE_SAMPLES = 400
"""Samples at which a live writer commits: enough to make a transaction pay, and few enough to be quick."""

_SLACK = 64 * 1024  # what the sequence and later tags may add to a document
_PLAIN_DOCUMENT = 300
_COMPRESSED = (Array, Bytes, Text)


class WriteBatch:
    """The samples of one commit.

    Args:
        project: The project that they belong to.
        dataset: Their dataset.
        schema: Its schema.
        level: The zstd level for arrays, bytes and text; None for no compression.
        live: Whether small blobs go into the documents, and the batch is due at `LIVE_SAMPLES`.
        most: The number of samples at which the batch is full in any case.
        builder: What collects the blobs: a `ReferenceBuilder` takes some that stay in files of others.
    """

    stored = False
    """Whether its segment is durable."""
    skipped = 0
    """Samples that were left out of it, because they exist."""
    first = True
    """Whether this is the whole batch, or the first half of one that was split."""

    def __init__(
        self,
        project: str,
        dataset: str,
        schema: Schema,
        level: int | None,
        live: bool = False,
        most: int = BATCH_SAMPLES,
        builder: type[SegmentBuilder] = SegmentBuilder,
    ) -> None:
        self.segment_id = ObjectId()
        self.docs: list[dict[str, Any]] = []
        self.replaced: list[dict[str, Any]] = []
        """Samples that exist and get other values in the same commit, as they are then. The segment has their blobs."""
        self.numbers: set[int] = set()
        """The first sequence number of each attempt to commit it."""
        self.builder = builder(project, dataset, schema.to_doc())
        self._project, self._dataset, self._schema, self._level = project, dataset, schema, level
        self._document_bytes = 0
        self._live, self._limit = live, min(BATCH_SAMPLES, most)
        self._due = min(LIVE_SAMPLES if live else BATCH_SAMPLES, most)
        self._in_segment = False
        self._fields = [(name, field, field.is_blob) for name, field in schema.items()]

    def __len__(self) -> int:
        return len(self.docs)

    @property
    def has_segment(self) -> bool:
        """Whether any sample has a blob outside its document, empty ones included."""
        return self._in_segment

    @property
    def due(self) -> bool:
        """Whether it is time to commit."""
        return len(self.docs) >= self._due or self.full

    @property
    def full(self) -> bool:
        """Whether it has no room for more."""
        return (
            len(self.docs) >= self._limit
            or self.builder.nbytes >= SEGMENT_BYTES
            or self._document_bytes >= DOCUMENT_BYTES
        )

    def grow(self, schema: Schema) -> None:
        """Take the optional fields that the schema has got since the first samples were added."""
        if schema is not self._schema:
            self._schema = schema
            self.builder.set_schema(schema.to_doc())
            self._fields = [(name, field, field.is_blob) for name, field in schema.items()]

    def halves(self) -> tuple[WriteBatch, WriteBatch]:
        """Split a batch of two samples or more into two, to be committed one after the other.

        They share the segment.
        """
        one, two = copy.copy(self), copy.copy(self)
        middle = len(self.docs) // 2
        one.docs, two.docs, two.first = self.docs[:middle], self.docs[middle:], False
        one.numbers, two.numbers, two.skipped = set(), set(), 0
        return one, two

    def add(self, id: ObjectId, tags: Sequence[str], sample: Mapping[str, Any]) -> None:
        """Add one sample, whose names were checked. After an error, nothing of it was added."""
        doc: dict[str, Any] = {"_id": id, "dataset": self._dataset, "tags": list(tags)}
        blobs: list[tuple[str, BlobField, Any]] = []
        for name, field, is_blob in self._fields:
            value = sample.get(name)
            if field.optional and is_missing(value):
                continue
            if name not in sample:
                raise missing_field(self._dataset, name, field)
            try:
                encoded = cast(Any, field).encode(value)
            except SchemaError as error:
                raise SchemaError(located(self._dataset, name, field, error)) from None
            if is_blob:
                blobs.append((name, cast(BlobField, field), encoded))
            else:
                doc[name] = encoded
        self._document_bytes += self._measured(doc)
        room = MAX_INLINE_TOTAL if self._live else -1
        references: dict[str, Any] = {}
        for name, field, data in blobs:
            references[name] = reference = self._put(field, data, room)
            if "d" in reference:
                room -= reference["n"]
        doc["_tdb"] = self._internal(references)
        self.docs.append(doc)

    def add_columns(self, ids: Sequence[ObjectId], tags: Iterable[list[str]], columns: Mapping[str, Column]) -> None:
        """Add samples whose columns were encoded by `encode_columns`."""
        n = len(ids)
        scalars = {name: column for name, column in columns.items() if not isinstance(column.field, BlobField)}
        keys = ("_id", "dataset", "tags", *scalars)
        rows = zip(ids, itertools.repeat(self._dataset), tags, *(c.values for c in scalars.values()), strict=False)
        docs = [dict(zip(keys, row, strict=True)) for row in rows]
        for name, column in scalars.items():
            if column.field.optional:
                for doc in docs:
                    if doc[name] is None:
                        del doc[name]
        if any(column.varies for column in scalars.values()):
            self._document_bytes += sum(map(self._measured, docs))
        else:
            self._document_bytes += _PLAIN_DOCUMENT * n
        names = [name for name in columns if name not in scalars]
        room = MAX_INLINE_TOTAL // max(1, len(names)) if self._live else -1
        references = [self._put_column(columns[name], room) for name in names]
        if not names:
            internals: Iterable[dict[str, Any]] = (self._internal({}) for _ in range(n))
        elif any(columns[name].field.optional for name in names):
            internals = (
                self._internal({k: v for k, v in zip(names, row, strict=True) if v is not None})
                for row in zip(*references, strict=True)
            )
        else:
            rows = zip(*references, strict=True)
            internals = [{"p": self._project, "s": 0, "b": dict(zip(names, row, strict=True))} for row in rows]
        for doc, internal in zip(docs, internals, strict=True):
            doc["_tdb"] = internal
        self.docs += docs

    def room(self, columns: Mapping[str, Column]) -> int:
        """How many rows of these columns still fit, at most as many as one commit should have."""
        fields = [column.field for column in columns.values() if isinstance(column.field, BlobField)]
        sizes = [field.fixed_nbytes for field in fields]
        rows = min(self._due, self._limit - len(self.docs))
        if any(size is None for size in sizes):
            return min(rows, 256)
        each = sum(size for size in sizes if size is not None)
        return max(1, min(rows, (SEGMENT_BYTES - self.builder.nbytes) // each + 1)) if each else rows

    def _put(self, field: BlobField, data: Any, room: int) -> dict[str, Any]:
        """Put a blob into the document, if it is small and fits into `room` bytes, and otherwise into the segment.

        Returns:
            The reference.
        """
        level = self._level if isinstance(field, _COMPRESSED) else None
        if room >= 0:
            stored = bytes(data)
            if len(stored) <= min(MAX_INLINE, room):
                packed, compressed = self.builder.pack(stored, level)
                self._document_bytes += len(packed)
                return inline_reference(packed, compressed)
        self._in_segment = True
        offset, length, compressed = self.builder.add(data, level)
        reference: dict[str, Any] = {"k": self.segment_id, "o": offset, "n": length}
        if compressed:
            reference["z"] = True
        return reference

    def _put_column(self, column: Column, room: int) -> list[dict[str, Any] | None]:
        field = cast(BlobField, column.field)
        values = column.values
        if isinstance(values, np.ndarray) and self._level is None:
            segment, size = self.segment_id, values.shape[1]
            if size <= min(MAX_INLINE, room):
                self._document_bytes += values.size
                return [{"d": row, "n": size, "x": checksum(row)} for row in map(bytes, values)]
            self._in_segment = True
            return [{"k": segment, "o": offset, "n": size} for offset in self.builder.add_rows(values).tolist()]
        if isinstance(values, np.ndarray):
            return [self._put(field, row.data, room) for row in values]
        return [None if value is None else self._put(field, value, room) for value in values]

    def _internal(self, references: Mapping[str, Any]) -> dict[str, Any]:
        return {"p": self._project, "s": 0, "b": dict(references)} if references else {"p": self._project, "s": 0}

    def _measured(self, doc: Mapping[str, Any]) -> int:
        try:
            size = len(bson.encode(doc))
        except (bson.errors.InvalidDocument, bson.errors.InvalidStringData, OverflowError) as error:
            raise SchemaError(
                f"dataset {self._dataset!r}: this sample cannot be stored in the index: {error}"
            ) from None
        if size > MAX_DOCUMENT - _SLACK:
            name, bytes_ = max(
                ((name, len(bson.encode({"": value}))) for name, value in doc.items()), key=lambda pair: pair[1]
            )
            raise SchemaError(
                f"dataset {self._dataset!r}, field {name!r}: expected at most 16 MB a sample in the index, found "
                f"{size / 2**20:.1f} MB, {bytes_ / 2**20:.1f} of them in this field; store it as a blob: declare it as "
                "Text(), Bytes() or Array(...) in schema="
            )
        return size

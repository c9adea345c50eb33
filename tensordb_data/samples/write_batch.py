"""The samples of one commit: checked and encoded, their blobs in one segment, their documents ready to insert."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from bson import ObjectId

from tensordb_data.blobs.segments.format import SegmentBuilder
from tensordb_data.blobs.segments.inline import MAX_INLINE, MAX_INLINE_TOTAL
from tensordb_data.errors import SchemaError
from tensordb_data.samples.columns import Column
from tensordb_data.samples.encode.measure import Measures
from tensordb_data.samples.encode.references import MISSING, Place, References, in_document, in_segment
from tensordb_data.samples.encode.rows import SampleRows, number
from tensordb_data.schema import Array, BlobField, Bytes, Text
from tensordb_data.schema.missing import is_missing
from tensordb_data.schema.schema import Schema, located, missing_field
from tensordb_data.search.index import Groups, Texts, words_of

SEGMENT_BYTES = 32 * 2**20
BATCH_SAMPLES = 50_000
DOCUMENT_BYTES = 32 * 2**20
LIVE_SAMPLES = 400
"""Samples at which a live writer commits: enough to make a transaction pay, and few enough to be quick."""

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
        self.replaced: list[dict[str, Any]] = []
        """Samples that exist and get other values in the same commit, as they are then. The segment has their blobs."""
        self.numbers: set[int] = set()
        """The first sequence number of each attempt to commit it."""
        self.builder = builder(project, dataset, schema.to_doc())
        self._project, self._dataset, self._level = project, dataset, level
        self._document_bytes = 0
        self._live, self._limit = live, min(BATCH_SAMPLES, most)
        self._due = min(LIVE_SAMPLES if live else BATCH_SAMPLES, most)
        self._in_segment = False
        # The first samples as documents, if anyone has asked for them, then those that are settled, then the others.
        # What is added is added by one call, so that an interrupt leaves all of a sample here, or nothing.
        self._docs: list[dict[str, Any]] = []
        self._settled: list[SampleRows] = []
        self._added: list[SampleRows] = []
        self._singles: SampleRows | None = None  # the last of those, if it takes single samples
        self._count = 0  # about as many as there are
        self._fit(schema)

    def _fit(self, schema: Schema) -> None:
        self._schema = schema
        self._fields = [(name, field, cast(Any, field).encode, field.is_blob) for name, field in schema.items()]
        self._measures = Measures(self._dataset, schema)
        self._singles = None

    def __len__(self) -> int:
        return len(self._docs) + sum(map(len, self._settled)) + sum(map(len, self._added))

    @property
    def has_segment(self) -> bool:
        """Whether any sample has a blob outside its document, empty ones included."""
        return self._in_segment

    @property
    def due(self) -> bool:
        """Whether it is time to commit."""
        return self._count >= self._due or self.full

    @property
    def full(self) -> bool:
        """Whether it has no room for more."""
        return (
            self._count >= self._limit or self.builder.nbytes >= SEGMENT_BYTES or self._document_bytes >= DOCUMENT_BYTES
        )

    @property
    def docs(self) -> list[dict[str, Any]]:
        """The documents one by one, which may be changed. Who only writes them uses `encoded` and `numbered`."""
        self._docs += itertools.chain.from_iterable(rows.documents() for rows in self._rows())
        self._settled = []
        return self._docs

    @docs.setter
    def docs(self, docs: list[dict[str, Any]]) -> None:
        self._docs, self._settled, self._added, self._singles = docs, [], [], None
        self._count = len(docs)

    @property
    def ids(self) -> list[ObjectId]:
        """The `_id`s of the samples, in order."""
        return [doc["_id"] for doc in self._docs] + [id for rows in self._rows() for id in rows.ids]

    def first_references(self) -> dict[str, Any] | None:
        """The references of the first sample, by field; None if it has none."""
        if self._docs:
            found: dict[str, Any] | None = self._docs[0]["_tdb"].get("b")
            return found
        return self._rows()[0].references(0) or None

    def encoded(self) -> list[dict[str, Any] | bytes]:
        """The documents for the segment: as they are, or in BSON, many of them one after the other."""
        return [*self._docs, *(rows.encode() for rows in self._rows()), *self.replaced]

    def numbered(self, first: int, *, plain: bool = False) -> list[Mapping[str, Any]]:
        """The documents to be inserted, with consecutive sequence numbers.

        Args:
            first: That of the first.
            plain: Whether they must be dicts, for a driver that takes no other ones.
        """
        docs = self.docs if plain else self._docs
        number(docs, first)
        out: list[Mapping[str, Any]] = list(docs)
        for rows in self._rows():
            out += rows.numbered(first + len(out))
        return out

    def words(self) -> Callable[[], tuple[Groups, Texts]]:
        """What tells the groups and texts of its present samples, for the search index. A thread may call it."""
        docs, settled = [*self._docs, *self.replaced], list(self._rows())

        def find() -> tuple[Groups, Texts]:
            groups, texts = words_of("data", docs)
            for rows in settled:
                groups.update(rows.groups())
                texts.update(rows.texts())
            return groups, texts

        return find

    def grow(self, schema: Schema) -> None:
        """Take the optional fields that the schema has got since the first samples were added."""
        if schema is not self._schema:
            self._fit(schema)
            self.builder.set_schema(schema.to_doc())

    def halves(self) -> tuple[WriteBatch, WriteBatch]:
        """Split a batch of two samples or more into two, to be committed one after the other.

        They share the segment.
        """
        docs = self.docs
        one, two = copy.copy(self), copy.copy(self)
        middle = len(docs) // 2
        one.docs, two.docs, two.first = docs[:middle], docs[middle:], False
        one.numbers, two.numbers, two.skipped = set(), set(), 0
        return one, two

    def add(self, id: ObjectId, tags: Sequence[str], sample: Mapping[str, Any]) -> None:
        """Add one sample, whose names were checked. After an error, nothing of it was added."""
        values: dict[str, Any] = {}
        for name, field, encode, _ in self._fields:
            value = sample.get(name)
            if value is None and name not in sample and not field.optional:
                raise missing_field(self._dataset, name, field)
            try:
                values[name] = None if field.optional and is_missing(value) else encode(value)
            except SchemaError as error:
                raise SchemaError(located(self._dataset, name, field, error)) from None
        self._document_bytes += self._measures.one(tags, values)
        room = MAX_INLINE_TOTAL if self._live else -1
        for name, field, _, is_blob in self._fields:
            if is_blob:
                values[name] = place = self._put(cast(BlobField, field), values[name], room)
                _, _, length, stored = place
                room -= 0 if stored is None else length
        if self._singles is None:
            self._singles = SampleRows(self._project, self._dataset, self._schema, self.segment_id)
            self._added.append(self._singles)
        self._singles.keep((id, list(tags), *values.values()))
        self._count += 1

    def add_columns(self, ids: Sequence[ObjectId], tags: Iterable[list[str]], columns: Mapping[str, Column]) -> None:
        """Add samples whose columns were encoded by `encode_columns`."""
        rows = SampleRows(self._project, self._dataset, self._schema, self.segment_id)
        n = len(ids)
        rows.ids += ids
        rows.tags += itertools.islice(tags, n)
        scalars = {name: column for name, column in columns.items() if name in rows.scalars}
        self._document_bytes += self._measures.many(rows.tags, scalars)
        for name, values in rows.scalars.items():
            values += scalars[name].values if name in scalars else itertools.repeat(None, n)
        room = MAX_INLINE_TOTAL // max(1, len(columns) - len(scalars)) if self._live else -1
        for name, references in rows.blobs.items():
            if name in columns:
                self._put_column(references, columns[name], room)
            else:
                references.add_missing(n)
        self._singles = None
        self._added.append(rows)
        self._count += n

    def _rows(self) -> list[SampleRows]:
        """All samples that are not documents, as columns."""
        for part in self._added:
            rows = part.settle()
            if self._settled and self._settled[-1].schema is rows.schema:
                self._settled[-1].extend(rows)
            else:
                self._settled.append(rows)
        self._added, self._singles = [], None
        return self._settled

    def room(self, columns: Mapping[str, Column]) -> int:
        """How many rows of these columns still fit, at most as many as one commit should have."""
        fields = [column.field for column in columns.values() if isinstance(column.field, BlobField)]
        sizes = [field.fixed_nbytes for field in fields]
        rows = min(self._due, self._limit - self._count)
        if any(size is None for size in sizes):
            return min(rows, 256)
        each = sum(size for size in sizes if size is not None)
        return max(1, min(rows, (SEGMENT_BYTES - self.builder.nbytes) // each + 1)) if each else rows

    def _put(self, field: BlobField, data: Any, room: int) -> Place:
        """Put a blob into the document, if it is small and fits into `room` bytes, and otherwise into the segment."""
        if data is None:
            return MISSING
        level = self._level if isinstance(field, _COMPRESSED) else None
        if room >= 0:
            stored = bytes(data)
            if len(stored) <= min(MAX_INLINE, room):
                packed, compressed = self.builder.pack(stored, level)
                self._document_bytes += len(packed)
                return in_document(packed, compressed)
        self._in_segment = True
        return in_segment(*self.builder.add(data, level))

    def _put_column(self, references: References, column: Column, room: int) -> None:
        field, values = cast(BlobField, column.field), column.values
        table = isinstance(values, np.ndarray)
        if table and self._level is None and not values.shape[1] <= min(MAX_INLINE, room):
            self._in_segment = True
            references.add_run(self.builder.add_rows(values).tolist(), values.shape[1])
        elif len(values):
            references.add(self._put(field, value.data if table else value, room) for value in values)

"""SampleTable: the references and index values of some samples, as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from bson import Int64, ObjectId
from numpy.typing import NDArray

from tensordb_data.blobs.segments.inline import INLINE
from tensordb_data.blobs.segments.references import MALFORMED, BlobRefs, is_reference, joined_refs, references_of
from tensordb_data.errors import QueryError
from tensordb_data.schema import Field
from tensordb_data.schema.schema import Schema
from tensordb_data.schema.views.view import Views
from tensordb_data.stream.plan.inline import InlineBlobs, inline_from_docs

INTERNAL = ("_id", "dataset", "tags")
"""What every sample has besides the fields of its schema; delivered when named in `fields`."""

_DTYPES = {"int": np.int64, "float": np.float64, "bool": np.bool_}
_TYPES: dict[str, set[type]] = {"int": {int, Int64}, "float": {float}, "bool": {bool}}
_MALFORMED = {"k": INLINE, "o": 0, "n": MALFORMED}


@dataclass(frozen=True)
class FieldLayout:
    """The fields to deliver, and the schemas of the datasets that store them."""

    fields: tuple[str, ...]
    schemas: Mapping[str, Schema]

    @classmethod
    def choose(cls, fields: tuple[str, ...] | None, schemas: Mapping[str, Schema]) -> FieldLayout:
        """Check `fields` against the schemas. `None` means every field that all samples have.

        Raises:
            QueryError: No dataset has one of the fields, or it is a blob in one dataset and a value in another.
        """
        known = {name: field for schema in schemas.values() for name, field in schema.items()}
        if fields is None:
            required = [{name for name, field in schema.items() if not field.optional} for schema in schemas.values()]
            common = set.intersection(*required) if required else set()
            fields = tuple(name for name in known if name in common)
        for name in fields:
            if name in INTERNAL or not schemas:
                continue
            if name not in known:
                raise QueryError(
                    f"no field {name!r} in {_names(schemas)}; known fields: {', '.join([*known, *INTERNAL])}"
                )
            kinds = {schema[name].is_blob for schema in schemas.values() if name in schema}
            if len(kinds) > 1:
                raise QueryError(
                    f"field {name!r} is stored as a blob in one dataset and as a value in another of {_names(schemas)};"
                    " narrow the query to one dataset"
                )
        return cls(fields, schemas)

    def decoded(self, views: Views) -> FieldLayout:
        """The layout with what is needed to decode fields in other ways.

        Raises:
            QueryError: A field is not delivered, or cannot be decoded so.
        """
        fields = list(self.fields)
        for name, view in views.items():
            if name not in fields and self.schemas:
                raise QueryError(f"`decode` names the field {name!r}, which is not delivered: {', '.join(fields)}")
            for found in self._all(name):
                view.check(name, found)
            if (beside := view.beside(name)) is not None and beside not in fields and self.is_blob(beside):
                fields.append(beside)
        return FieldLayout(tuple(fields), self.schemas)

    def delivered(self, views: Views, fields: tuple[str, ...] | None) -> FieldLayout:
        """The layout of what is delivered, of one that `decoded` gave: as if fields were stored as they are delivered.

        Args:
            views: How fields are decoded.
            fields: Those that were asked for; None for every required one.
        """
        if not views:
            return self
        added = {beside for name, view in views.items() if (beside := view.beside(name)) is not None}
        wanted = [n for n in self.fields if n not in added or (n in fields if fields else self.is_required(n))]
        schemas = {
            dataset: Schema({name: views[name].gives(f) if name in views else f for name, f in schema.items()})
            for dataset, schema in self.schemas.items()
        }
        return FieldLayout(tuple(wanted), schemas)

    def _all(self, name: str) -> list[Field]:
        return [schema[name] for schema in self.schemas.values() if name in schema]

    def index_fields(self) -> FieldLayout:
        """The layout of all fields in the index, those included that some samples may lack."""
        known = dict.fromkeys(name for schema in self.schemas.values() for name in schema)
        return FieldLayout(tuple(name for name in known if not self.is_blob(name)), self.schemas)

    def is_required(self, name: str) -> bool:
        """Whether every sample has the field."""
        return all(name in schema and not schema[name].optional for schema in self.schemas.values())

    def is_blob(self, name: str) -> bool:
        """Whether the field's bytes live in a segment."""
        return any(name in schema and schema[name].is_blob for schema in self.schemas.values())

    def projection(self, inline: bool = True) -> dict[str, int]:
        """The projection of a query for these fields, with or without the bytes of inline blobs."""
        wanted = {"dataset": 1, "_tdb.s": 1}
        for name in self.fields:
            if not self.is_blob(name):
                wanted[name] = 1
            elif inline:
                wanted[f"_tdb.b.{name}"] = 1
            else:
                wanted.update((f"_tdb.b.{name}.{part}", 1) for part in "konz")
        return wanted


@dataclass(frozen=True)
class SampleTable:
    """References and values of m samples.

    Attributes:
        layout: The fields.
        all_ids: uint8 [n, 12]: the `_id`s of the samples from which these were taken. Most batches need no ids, so
            `take` does not copy them.
        datasets: The names of the datasets.
        dataset: uint16 [m]: the index of each sample's dataset in `datasets`.
        refs: For each blob field, m references.
        values: For each other field, an int64, float64, bool or object array [m].
        inline: The blob fields of which some blobs are in the documents of the samples.
        rows: int64 [m]: which of the n samples these are; None if they are all.
        sequence: int64 or uint32 [m]: the sequence number of each sample; None where nobody needs them, as in a batch.
    """

    layout: FieldLayout
    all_ids: NDArray[np.uint8]
    datasets: tuple[str, ...]
    dataset: NDArray[np.uint16]
    refs: Mapping[str, BlobRefs]
    values: Mapping[str, NDArray[Any]]
    inline: Mapping[str, InlineBlobs] = field(default_factory=dict)
    rows: NDArray[np.int64] | None = None
    sequence: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def ids(self) -> NDArray[np.uint8]:
        """uint8 [m, 12]: the `_id` of each sample."""
        return self.all_ids if self.rows is None else self.all_ids[self.rows]

    def take(self, rows: NDArray[np.int64]) -> SampleTable:
        """The samples at `rows`, in that order."""
        return SampleTable(
            self.layout,
            self.all_ids,
            self.datasets,
            self.dataset[rows],
            {name: _taken(refs, rows) for name, refs in self.refs.items()},
            {name: column[rows] for name, column in self.values.items()},
            {name: inline.take(rows) for name, inline in self.inline.items()},
            rows if self.rows is None else self.rows[rows],
        )

    def missing(self, name: str) -> int:
        """The number of samples in which a field is None. A blob never is: without it, a sample is a bad one."""
        column = self.values.get(name)
        if column is None or column.dtype != object or self.layout.is_required(name):
            return 0
        return sum(value is None for value in column)

    def id(self, row: int) -> ObjectId:
        """The `_id` of the sample in `row`."""
        return ObjectId(self.all_ids[row if self.rows is None else self.rows[row]].tobytes())

    def name(self, row: int) -> str:
        """How errors speak of the sample in `row`."""
        return f"dataset {self.datasets[self.dataset[row]]!r}, sample {self.id(row)}"

    @property
    def nbytes(self) -> int:
        """Memory held by the columns."""
        columns: list[NDArray[Any]] = [self.ids, self.dataset, *self.values.values()]
        columns += [] if self.sequence is None else [self.sequence]
        for refs in self.refs.values():
            columns += [refs.segment, refs.offset, refs.length]
        return sum(column.nbytes for column in columns if 0 not in column.strides)


def table_from_docs(layout: FieldLayout, docs: Sequence[Mapping[str, Any]]) -> SampleTable:
    """Make a table of documents, as projected by `FieldLayout.projection`."""
    numbers: dict[str, int] = {}
    dataset = np.fromiter((numbers.setdefault(doc["dataset"], len(numbers)) for doc in docs), np.uint16, len(docs))
    ids = np.frombuffer(b"".join([doc["_id"].binary for doc in docs]), np.uint8).reshape(-1, 12)
    refs: dict[str, BlobRefs] = {}
    values: dict[str, NDArray[Any]] = {}
    inline: dict[str, InlineBlobs] = {}
    for name in layout.fields:
        if layout.is_blob(name):
            # If there is no blob, a projection of its parts leaves an empty document.
            parts = [references_of(doc).get(name) or None for doc in docs]
            parts = [part if part is None or is_reference(part) else _MALFORMED for part in parts]
            refs[name] = _refs(parts)
            if (found := inline_from_docs(parts)) is not None:
                inline[name] = found
        elif name == "_id":
            values[name] = objects([doc["_id"] for doc in docs])
        else:
            values[name] = column_of(layout, name, [doc.get(name) for doc in docs])
    return SampleTable(layout, ids, tuple(numbers), dataset, refs, values, inline, None, _sequence(docs))


def _sequence(docs: Sequence[Mapping[str, Any]]) -> NDArray[np.int64] | None:
    found = [internals.get("s") if isinstance(internals := doc.get("_tdb"), Mapping) else None for doc in docs]
    return None if set(map(type, found)) - {int, Int64} else np.array(found, np.int64)


def compact(table: SampleTable) -> SampleTable:
    """The same table in as little memory as possible.

    A sample with one number and one blob of fixed size takes about 32 bytes.
    """
    refs = {}
    for name, found in table.refs.items():
        offset, length = found.offset, found.length
        if len(offset) and offset.max() < 2**32:
            offset = offset.astype(np.uint32)
        if len(length) and (length == length[0]).all():
            length = np.broadcast_to(length[0], length.shape)
        refs[name] = BlobRefs(found.segments, found.segment, offset, length, found.compressed)
    dataset = np.broadcast_to(np.uint16(0), table.dataset.shape) if len(table.datasets) == 1 else table.dataset
    without = dict.fromkeys(table.inline, InlineBlobs())
    sequence = table.sequence
    if sequence is not None and len(sequence) and sequence.min() >= 0 and sequence.max() < 2**32:
        sequence = sequence.astype(np.uint32)
    return SampleTable(table.layout, table.ids, table.datasets, dataset, refs, table.values, without, None, sequence)


def _taken(refs: BlobRefs, rows: NDArray[np.int64]) -> BlobRefs:
    taken = refs.take(rows)
    return taken if taken.offset.dtype == np.int64 else replace(taken, offset=taken.offset.astype(np.int64))


def objects(items: Sequence[Any]) -> NDArray[Any]:
    """A one-dimensional object array, whatever the items are."""
    column = np.empty(len(items), dtype=object)
    column[:] = items
    return column


def _refs(found: Sequence[Mapping[str, Any] | None]) -> BlobRefs:
    """References to the blobs of a field. A sample without the blob has the length -1."""
    if None not in found:
        return BlobRefs.from_docs(found)  # type: ignore[arg-type]
    some = next((doc["k"] for doc in found if doc is not None and "k" in doc), INLINE)
    return BlobRefs.from_docs([doc or {"k": some, "o": 0, "n": -1} for doc in found])


def column_of(layout: FieldLayout, name: str, items: list[Any]) -> NDArray[Any]:
    """The values of a field as a column, of numbers if all of them are as the schema says."""
    kinds = {getattr(schema[name], "kind", None) for schema in layout.schemas.values() if name in schema}
    kind = str(kinds.pop()) if len(kinds) == 1 else ""
    # What is missing, or was written by another tool as something else, is told when its sample is loaded.
    if kind not in _DTYPES or not set(map(type, items)) <= _TYPES[kind]:
        return objects(items)
    return np.array(items, dtype=_DTYPES[kind])


def _names(schemas: Mapping[str, Schema]) -> str:
    return "dataset " + ", ".join(repr(name) for name in sorted(schemas))


def concatenate(layout: FieldLayout, tables: Sequence[SampleTable]) -> SampleTable:
    """One table of the samples of all tables, in order."""
    if not tables:
        return table_from_docs(layout, [])
    if len(tables) == 1:
        return tables[0]
    names: dict[str, int] = {}
    dataset = [
        np.array([names.setdefault(name, len(names)) for name in table.datasets], np.uint16)[table.dataset]
        for table in tables
    ]
    values = {}
    for name in tables[0].values:
        columns = [table.values[name] for table in tables]
        same = len({column.dtype for column in columns}) == 1
        values[name] = np.concatenate(columns if same else [column.astype(object) for column in columns])
    sequences = [table.sequence for table in tables if table.sequence is not None]
    return SampleTable(
        layout,
        np.concatenate([table.ids for table in tables]),
        tuple(names),
        np.concatenate(dataset),
        {name: joined_refs([table.refs[name] for table in tables]) for name in tables[0].refs},
        values,
        {name: InlineBlobs() for table in tables for name in table.inline},
        None,
        np.concatenate([numbers.astype(np.int64) for numbers in sequences]) if len(sequences) == len(tables) else None,
    )

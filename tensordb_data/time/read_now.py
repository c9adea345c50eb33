"""Read the samples that a query selects now, of one state of the data, as blocks of columns with all fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import bson
import numpy as np
from numpy.typing import NDArray
from pymongo.errors import OperationFailure

from tensordb_data.blobs.segments.inline import INLINE
from tensordb_data.blobs.segments.references import BlobRefs, is_reference, references_of
from tensordb_data.errors import BusyError, CorruptBlobError, NotFoundError, QueryError, TensorDBError
from tensordb_data.frozen.columns import MISSING, PROVENANCE, TAGS, Block, Values, no_refs
from tensordb_data.frozen.frozen_set import codec_of
from tensordb_data.query.datasets import selected_datasets
from tensordb_data.schema.schema import Schema
from tensordb_data.stream.plan.bson_columns import table_from_bson
from tensordb_data.stream.plan.index_reader import IndexReader
from tensordb_data.stream.plan.index_snapshot import DataMoved, IndexSnapshot, lacks_snapshot, open_snapshot
from tensordb_data.stream.plan.inline import InlineBlobs, inline_from_docs, inline_rows
from tensordb_data.stream.plan.plan import PAGE
from tensordb_data.stream.plan.sample_table import FieldLayout, SampleTable, objects
from tensordb_data.warehouse.bound_query import BoundQuery, reported

if TYPE_CHECKING:
    from tensordb_data.frozen.codec import Codec
    from tensordb_data.stream.state import Versions

T = TypeVar("T")
Doc = Mapping[str, Any]

_ATTEMPTS, _SNAPSHOTS = 6, 3
"""Attempts to read one state of the data, and how many of them are made under a snapshot."""

_DECODED = 256
"""Documents that are decoded at a time."""

Place = Callable[[str, SampleTable, NDArray[np.int64]], BlobRefs]
"""Called with a field, some samples, and the rows whose blobs are in their documents; returns references for all."""


class Reading:
    """The samples of a query, in one state of the data.

    Args:
        bound: The query.
        now: The state.
    """

    def __init__(self, bound: BoundQuery, now: IndexSnapshot) -> None:
        self._bound, self._now = bound, now
        wanted = bound.query.fields
        roots = None if wanted is None else {name.split(".")[0] for name in wanted}
        self.schemas: dict[str, Schema] = {
            name: schema if roots is None else Schema({n: field for n, field in schema.items() if n in roots})
            for name, schema in now.schemas(sorted(now.versions)).items()
        }
        """The schemas of the datasets, with the fields that the query names."""
        if roots is not None:
            known = {*(name for schema in self.schemas.values() for name in schema), "_id", "dataset", "tags"}
            if unknown := roots - known - {PROVENANCE}:
                raise QueryError(f"no field {min(unknown)!r}; the fields are {', '.join(sorted(known))}")
        self.versions: Versions = {name: now.versions[name] for name in self.schemas}
        """The versions of the datasets."""

    @property
    def layout(self) -> FieldLayout:
        """All fields of all samples."""
        names = dict.fromkeys(name for schema in self.schemas.values() for name in schema)
        return _Whole(tuple(names), self.schemas)

    def blocks(self, place: Place) -> Iterator[Block]:
        """The samples, in order.

        Args:
            place: Says where the blobs are that are in documents.

        Raises:
            CorruptBlobError: A reference to a blob is none.
        """
        layout = self.layout
        reader = _Reader(
            self._bound, layout, self.versions, PAGE, limit=self._bound.query.limit, session=self._now.session
        )
        for table in reader.parts():
            yield _block(layout, table, place)


def read_samples(bound: BoundQuery, read: Callable[[Reading], T]) -> T:
    """What `read` makes of the samples of a query, in one state of the data.

    Args:
        bound: The query.
        read: Called with the reading; perhaps again, if the data moves meanwhile on a server without snapshots.

    Raises:
        NotFoundError: The query names no dataset that exists.
        BusyError: The data changes all the time, or see `open_snapshot`.
    """
    warehouse = bound.warehouse
    named = selected_datasets(bound.query.filter)
    for attempt in range(_ATTEMPTS):
        snapshot = attempt < _SNAPSHOTS
        try:
            with reported(bound.query), open_snapshot(warehouse, named, use_snapshot=snapshot) as now:
                if not now.versions:
                    what = "no dataset " + ", ".join(map(repr, named)) if named else "no dataset at all"
                    raise NotFoundError(f"there is {what} in project {warehouse.project!r}")
                found = read(Reading(bound, now))
                now.check()
                return found
        except DataMoved:
            continue
        except (OperationFailure, TensorDBError) as error:
            if not (snapshot and lacks_snapshot(error)):
                raise
    raise BusyError(
        f"the samples of {bound.query.brief} changed each time that they were read, and the server keeps no snapshot"
        " for so long: stop the updates for a while"
    )


class _Whole(FieldLayout):
    """A layout that also reads tags and provenance, and the bytes of blobs in documents."""

    def projection(self, inline: bool = True) -> dict[str, int]:
        wanted = {"dataset": 1, "_tdb.s": 1, TAGS: 1, PROVENANCE: 1}
        for name in self.fields:
            if _kinds(self, name) != {True}:
                wanted[name] = 1
            if True in _kinds(self, name):
                wanted[f"_tdb.b.{name}"] = 1
        return wanted


def _kinds(layout: FieldLayout, name: str) -> set[bool]:
    """Whether a field is a blob, in the datasets that have it."""
    return {schema[name].is_blob for schema in layout.schemas.values() if name in schema}


class _Reader(IndexReader):
    """Reads tables with all that the samples have. In a column of objects, MISSING stands where there is nothing."""

    def parts(self) -> Iterator[SampleTable]:
        """The samples, in order."""
        bound = self._bound_query
        if bound.warehouse.index.is_server and bound.query.split is None:
            yield from self.tables()
        else:
            for docs, _ in self:
                yield _table_from_docs(self._layout, docs)

    def _tables(self, reply: bytes) -> Iterator[SampleTable]:
        codec, layout = codec_of(self._bound_query.warehouse), self._layout
        mixed = any(len(_kinds(layout, name)) > 1 for name in layout.fields)
        found = None if mixed else table_from_bson(layout, reply)
        if found is not None:
            table, self._after = found
            self._read += len(table)
            yield _with_tags(table, reply, codec)
            return
        for docs in _decoded(reply, codec):
            self._after = docs[-1]["dataset"], docs[-1]["_tdb"]["s"]
            self._read += len(docs)
            yield _table_from_docs(layout, docs)


def _decoded(reply: bytes, codec: Codec) -> Iterator[list[dict[str, Any]]]:
    """The documents of a reply, some at a time.

    All at once are so many objects that Python's garbage collector takes longer to look through them, again and again,
    than they take to decode. Of some, it finds few that have lived for long.
    """
    low = high = 0
    while high < len(reply):
        for _ in range(_DECODED):
            if high == len(reply):
                break
            high += int.from_bytes(reply[high : high + 4], "little")
        yield bson.decode_all(reply[low:high], codec)
        low = high


def _with_tags(table: SampleTable, reply: bytes, codec: Codec) -> SampleTable:
    """The same table with the tags, which all of its documents have in common: otherwise they had not the same form."""
    first = bson.decode(reply[: int.from_bytes(reply[:4], "little")], codec)
    same = {name: objects([first.get(name, MISSING)] * len(table)) for name in (TAGS, PROVENANCE)}
    return SampleTable(
        table.layout, table.all_ids, table.datasets, table.dataset, table.refs, {**table.values, **same}, table.inline
    )


def _table_from_docs(layout: FieldLayout, docs: Sequence[Doc]) -> SampleTable:
    numbers: dict[str, int] = {}
    dataset = np.fromiter((numbers.setdefault(doc["dataset"], len(numbers)) for doc in docs), np.uint16, len(docs))
    ids = np.frombuffer(b"".join([doc["_id"].binary for doc in docs]), np.uint8).reshape(-1, 12)
    refs: dict[str, BlobRefs] = {}
    values: dict[str, NDArray[Any]] = {}
    inline: dict[str, InlineBlobs] = {}
    for name in layout.fields:
        kinds = _kinds(layout, name)
        if True in kinds:
            parts = [references_of(doc).get(name) for doc in docs]
            for doc, part in zip(docs, parts, strict=True):
                if part is not None and not is_reference(part):
                    raise CorruptBlobError(
                        f"sample {doc['_id']} of {doc['dataset']!r}, field {name!r}: expected a reference to a blob,"
                        " found something else, as another tool has written it; run fsck"
                    )
            refs[name] = _refs(parts)
            if (found := inline_from_docs(parts)) is not None:
                inline[name] = found
        if False in kinds:
            values[name] = objects([doc.get(name, MISSING) for doc in docs])
    for name in (TAGS, PROVENANCE):
        values[name] = objects([doc.get(name, MISSING) for doc in docs])
    return SampleTable(layout, ids, tuple(numbers), dataset, refs, values, inline)


def _refs(parts: Sequence[Doc | None]) -> BlobRefs:
    if not any(part is not None for part in parts):
        return no_refs(len(parts))
    some = next((part["k"] for part in parts if part is not None and "k" in part), INLINE)
    return BlobRefs.from_docs([part if part is not None else {"k": some, "o": 0, "n": -1} for part in parts])


def _block(layout: FieldLayout, table: SampleTable, place: Place) -> Block:
    refs = {}
    for name, found in table.refs.items():
        rows = np.flatnonzero(inline_rows(found)) if name in table.inline else np.zeros(0, np.int64)
        refs[name] = place(name, table, rows) if len(rows) else found
    values = {
        name: Values.of(column.tolist()) if column.dtype == object else Values(column)
        for name, column in table.values.items()
    }
    m = len(table)
    for name in layout.fields:  # a page may lack what others have
        if False in _kinds(layout, name) and name not in values:
            values[name] = Values.nothing(m)
    return Block(table.ids, table.datasets, table.dataset, values, refs)

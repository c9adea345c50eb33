"""Freeze: give a name to samples with their values, for ever.

The samples are read under one snapshot, and cut into chunks. Each column of a chunk is a piece, stored by its content,
so that what another set has already is not stored again. The segments of the blobs stay where they are. One transaction
at the end inserts the document of the set, names its segments, and makes them live: before it nothing is visible, and
after it a gc keeps all. Until then, a lease holds off every gc. A thread renews it, so that it is short: a freeze that
is killed holds no gc off for long. One that was silent for longer, in a suspended machine say, ends with an error.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import getpass
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray
from pymongo.errors import DuplicateKeyError, OperationFailure

from tensordb_data.blobs.segments.format import SegmentBuilder
from tensordb_data.blobs.segments.inline import check_inline
from tensordb_data.errors import (
    CheckpointError,
    CorruptBlobError,
    DuplicateError,
    QueryError,
    ReadOnlyError,
    StorageError,
)
from tensordb_data.frozen.codec import encode_datasets, encode_ids, encode_refs, encode_values
from tensordb_data.frozen.columns import Block
from tensordb_data.frozen.frozen_set import codec_of
from tensordb_data.frozen.holds import counted, hold_segments
from tensordb_data.frozen.structure import (
    BLOB,
    DATASET,
    FOLDER,
    IDS,
    SMALL,
    STRUCTURE,
    VALUE,
    Piece,
    Structure,
    inline,
)
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.query.frozen_set import Frozen, check_set_name
from tensordb_data.query.tags import clean_tags
from tensordb_data.samples.encode.segment import put_segment
from tensordb_data.stream.plan.inline import replace_references
from tensordb_data.tensors.leaf import Leaf
from tensordb_data.tensors.lease import Lease, LeaseLost
from tensordb_data.tensors.write import digest, store_tensors
from tensordb_data.time.chunks import cut
from tensordb_data.time.read_now import Reading, read_samples

if TYPE_CHECKING:
    from tensordb_data.blobs.segments.references import BlobRefs
    from tensordb_data.stream.plan.sample_table import SampleTable
    from tensordb_data.warehouse.bound_query import BoundQuery
    from tensordb_data.warehouse.context import Warehouse

_ROUND = 64 << 20  # bytes of pieces that are stored at once
_SEGMENT = 32 << 20
_SILENT = 20.0  # seconds for which a freeze may be silent


def freeze(bound: BoundQuery, name: str, tags: Sequence[str]) -> Frozen:
    """See `Selection.freeze`."""
    check_set_name(name)
    if isinstance(tags, str):
        raise QueryError(f"tags is a list of strings; found the string {tags!r}")
    cleaned = clean_tags(tags) if tags else []
    if bound.query.collection != "data":
        raise QueryError(f"only samples can be frozen: db.data.find(...); this is db.{bound.query.collection}")
    if bound.query.frozen is not None:
        raise QueryError(
            f"these samples are frozen already, as {bound.query.frozen.name!r}: a set has one name, and no part of one"
            " is frozen again"
        )
    warehouse = bound.warehouse
    if warehouse.address.read_only:
        raise ReadOnlyError(f"{name!r} cannot be frozen: this TensorDB was opened with read_only=True")
    _check_free(warehouse, name)
    warehouse.index.make("frozen", "frozen_segments", "tensors", "segments")
    with Lease(warehouse, ObjectId(), backup=True, seconds=_SILENT) as lease, lease.kept_alive():
        freezing = read_samples(bound, lambda reading: _Freezing(bound, reading, lease).store())
        return freezing.commit(name, cleaned)


def _check_free(warehouse: Warehouse, name: str) -> None:
    named = {"_tdb.p": warehouse.project, "name": name}
    found = retry_while_unavailable(lambda: warehouse.index["frozen"].find_one(named, {"created": 1}), reads=True)
    if found is not None:
        raise _taken(name)


def _taken(name: str) -> DuplicateError:
    return DuplicateError(
        f"there is a frozen set {name!r} already, and it stays as it is: choose another name, or drop it first,"
        f" db.data.frozen({name!r}).drop()"
    )


class _Freezing:
    """Stores the samples of one reading; nothing is visible before `commit`."""

    def __init__(self, bound: BoundQuery, reading: Reading, lease: Lease) -> None:
        self._bound, self._warehouse, self._reading, self._lease = bound, bound.warehouse, reading, lease
        self._tensors: dict[bytes, tuple[Leaf, memoryview]] = {}
        self._bytes = 0
        self._total = 0
        self._columns: dict[str, list[Piece]] = {}
        self._rows: list[int] = []
        self._counts: dict[str, int] = {}
        self._segments: set[ObjectId] = set()
        self._copies = _Copies(self._warehouse, reading)

    def store(self) -> _Freezing:
        """Store all pieces."""
        for chunk in cut(self._reading.blocks(self._copies.place)):
            self._add(chunk)
            if self._bytes > _ROUND:
                self._flush()
        self._copies.flush()
        self._flush()
        return self

    def _add(self, chunk: Block) -> None:
        codec, number = codec_of(self._warehouse), len(self._rows)
        found: dict[str, bytes | None] = {
            IDS: encode_ids(chunk.ids), DATASET: encode_datasets(chunk.datasets, chunk.dataset),
        }  # fmt: skip
        for name, values in chunk.values.items():
            empty = values.absent is not None and values.absent.all()
            found[VALUE + name] = None if empty else encode_values(values, codec)
        for name, refs in chunk.refs.items():
            there = refs.length >= 0
            found[BLOB + name] = encode_refs(refs) if there.any() else None
            self._segments.update(refs.segments[at] for at in np.unique(refs.segment[there]).tolist())
        for name, piece in found.items():
            pieces = self._columns.setdefault(name, [])
            pieces += [None] * (number - len(pieces))
            pieces.append(self._piece(f"{name} {number}", piece))
        for at, count in zip(*np.unique(chunk.dataset, return_counts=True), strict=True):
            dataset = chunk.datasets[int(at)]
            self._counts[dataset] = self._counts.get(dataset, 0) + int(count)
        self._rows.append(len(chunk))

    def _piece(self, name: str, data: bytes | None) -> Piece:
        if data is None:
            return None
        self._total += len(data)
        if len(data) <= SMALL:
            return inline(data)
        content = digest(memoryview(data))
        if content not in self._tensors:
            self._tensors[content] = _leaf(name, data)
            self._bytes += len(data)
        return content

    def _flush(self) -> None:
        if self._tensors:
            store_tensors(self._warehouse, FOLDER, ObjectId(), self._tensors, self._hold)
        self._tensors, self._bytes = {}, 0

    def _hold(self, session: Any) -> None:
        """Make sure, within a transaction if there is one, that no gc has removed what was read or stored so far."""
        try:
            self._lease.hold(session)
        except LeaseLost:
            raise StorageError(
                f"this freeze was silent for {_SILENT:g} s, and a gc has gone on; nothing was frozen: freeze it again"
            ) from None

    def commit(self, name: str, tags: Sequence[str]) -> Frozen:
        """Make the set visible."""
        id = ObjectId()
        structure = self._structure(id, name, tags)
        document = {**structure.set, **counted(structure, self._total)}
        data = structure.to_json()
        content = digest(memoryview(data))
        contents = structure.contents
        document["_tdb"] = {"p": self._warehouse.project, "structure": content, "tensors": [*contents, content]}
        segments = sorted(self._segments)

        def insert(session: Any) -> None:
            self._hold(session)
            hold_segments(self._warehouse, id, segments, session)
            self._warehouse.index["frozen"].insert_one(document, session=session)

        try:
            store_tensors(self._warehouse, FOLDER, id, {content: _leaf(STRUCTURE, data)}, insert, also=contents)
        except CheckpointError:
            self._hold(None)  # the likely reason why its tensors are gone
            raise
        except (DuplicateKeyError, OperationFailure) as error:
            if isinstance(error, DuplicateKeyError) or error.code == 11000:
                raise _taken(name) from None
            raise
        return Frozen(name, id)

    def _structure(self, id: ObjectId, name: str, tags: Sequence[str]) -> Structure:
        reading, named = self._reading, self._counts or dict.fromkeys(self._reading.schemas, 0)
        schemas = {dataset: schema for dataset, schema in reading.schemas.items() if dataset in named}
        fields = {field for schema in schemas.values() for field in schema}
        columns = {
            column: pieces + [None] * (len(self._rows) - len(pieces))
            for column, pieces in self._columns.items()
            if not column.startswith((VALUE, BLOB))
            or column.split(" ", 1)[1] in fields
            or (any(piece is not None for piece in pieces))
        }
        if not self._rows:
            columns = {IDS: [], DATASET: [], VALUE + "tags": []}
            for schema in schemas.values():
                columns.update({(BLOB if schema[n].is_blob else VALUE) + n: [] for n in schema})
        structure = Structure(schemas, {dataset: reading.versions[dataset] for dataset in schemas}, self._rows, columns)
        about = {
            "_id": id, "name": name, "tags": list(tags),
            "created": dt.datetime.now(dt.timezone.utc).replace(microsecond=0),
            "by": {"user": _user(), "host": socket.gethostname()}, "query": self._bound.query.to_json(),
            "datasets": [{"name": dataset, "count": count} for dataset, count in self._counts.items()],
        }  # fmt: skip
        return Structure(schemas, structure.versions, self._rows, columns, set=about)


class _Copies:
    """Copies blobs that are in documents into segments, which documents of samples need not outlive."""

    def __init__(self, warehouse: Warehouse, reading: Reading) -> None:
        self._warehouse, self._reading = warehouse, reading
        self._open: dict[str, tuple[ObjectId, SegmentBuilder]] = {}

    def place(self, name: str, table: SampleTable, rows: NDArray[np.int64]) -> BlobRefs:
        """References to copies of the blobs at those rows. See `read_now.Place`."""
        refs, found = table.refs[name], table.inline[name]
        parts: list[Mapping[str, Any]] = []
        for row in rows.tolist():
            dataset = table.datasets[table.dataset[row]]
            if found.data is None or found.checksum is None:
                raise CorruptBlobError(f"{table.name(row)}, field {name!r}: its document has no bytes of it; run fsck")
            data = found.data[row]
            try:
                check_inline(data, int(found.checksum[row]))
            except CorruptBlobError as error:
                raise CorruptBlobError(f"{table.name(row)}, field {name!r}: {error}") from error
            packed = refs.compressed is not None and bool(refs.compressed[row])
            stored = bytes(data)
            id, builder = self._builder(dataset)
            part = {"k": id, "o": builder.copy(stored, packed), "n": len(stored)}
            parts.append({**part, "z": True} if packed else part)
            if builder.nbytes > _SEGMENT:
                self._put(dataset)
        return replace_references(refs, rows, parts)[0]

    def _builder(self, dataset: str) -> tuple[ObjectId, SegmentBuilder]:
        if dataset not in self._open:
            schema = self._reading.schemas[dataset].to_doc()
            self._open[dataset] = ObjectId(), SegmentBuilder(self._warehouse.project, dataset, schema)
        return self._open[dataset]

    def _put(self, dataset: str) -> None:
        id, builder = self._open.pop(dataset)
        put_segment(self._warehouse, dataset, id, builder, [], 0)

    def flush(self) -> None:
        """Store what is left."""
        for dataset in list(self._open):
            self._put(dataset)


def _leaf(name: str, data: bytes) -> tuple[Leaf, memoryview]:
    return Leaf(name, "bytes", "|u1", (len(data),), len(data), data), memoryview(data)


def _user() -> str:
    with contextlib.suppress(KeyError, OSError, ImportError):
        return getpass.getuser()
    return ""

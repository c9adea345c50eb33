"""FrozenSet: a frozen set that is read: its schemas, and its samples in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from bson import ObjectId

from tensordb_data.common.bson_values import LENIENT
from tensordb_data.common.options import nearest
from tensordb_data.errors import CheckpointError, CorruptBlobError, NotFoundError, StorageError
from tensordb_data.frozen.codec import MALFORMED, Codec, decode_datasets, decode_ids, decode_refs, decode_values
from tensordb_data.frozen.columns import Block, Values, no_refs
from tensordb_data.frozen.structure import BLOB, DATASET, HOLES, IDS, VALUE, Structure, fields_in, small
from tensordb_data.mongo.retry import read_all, retry_while_unavailable
from tensordb_data.query.frozen_set import Frozen
from tensordb_data.tensors.read import read_leaves

if TYPE_CHECKING:
    from tensordb_data.schema.schema import Schema
    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents.frozen import FrozenSetDocument

_KEPT = 8
"""Structures that a process keeps."""
_AT_ONCE = 4
"""Chunks that are read at once."""


class FrozenSet:
    """A frozen set of a warehouse.

    Args:
        warehouse: The warehouse.
        doc: The document of the set.
        structure: Its structure.
    """

    def __init__(self, warehouse: Warehouse, doc: FrozenSetDocument, structure: Structure) -> None:
        self.warehouse, self.doc, self.structure = warehouse, doc, structure
        self.label = label_of(doc)
        """What errors call it."""

    def __len__(self) -> int:
        return self.structure.count

    @property
    def id(self) -> ObjectId:
        """Its `_id`."""
        return self.doc["_id"]

    @property
    def schemas(self) -> Mapping[str, Schema]:
        """The schemas of its datasets, as they were."""
        return self.structure.schemas

    @property
    def values(self) -> list[str]:
        """The index fields of its samples, `tags` and `provenance` among them."""
        return list(fields_in(self.structure.columns, VALUE))

    @property
    def blobs(self) -> list[str]:
        """The fields of its samples that are blobs."""
        return list(fields_in(self.structure.columns, BLOB))

    def blocks(
        self,
        values: Sequence[str] | None = None,
        blobs: Sequence[str] | None = None,
        *,
        limit: int | None = None,
        chunks: Sequence[int] | None = None,
        at_once: int = _AT_ONCE,
    ) -> Iterator[Block]:
        """The samples in order, in blocks of one chunk.

        Args:
            values: The index fields to read; None for all.
            blobs: The fields whose references are read; None for all.
            limit: Only so many samples, the first ones.
            chunks: Only these chunks, in this order; None for all.
            at_once: How many chunks are read at once.

        Raises:
            CorruptBlobError: The set is damaged.
            StorageError: A piece of it is gone, or the blob store failed.
        """
        wanted = list(range(len(self.structure.rows)) if chunks is None else chunks)
        names = self.values if values is None else [name for name in values if name in set(self.values)]
        fields = self.blobs if blobs is None else [name for name in blobs if name in set(self.blobs)]
        left = len(self) if limit is None else limit
        while wanted and left > 0:
            some, wanted = wanted[:at_once], wanted[at_once:]
            pieces = self._read(some, names, fields)
            for chunk in some:
                if left <= 0:
                    return
                block = self._block(chunk, pieces, names, fields)
                if len(block) > left:
                    block = block.take(np.arange(left))
                left -= len(block)
                yield block

    def _read(self, chunks: Sequence[int], values: Sequence[str], blobs: Sequence[str]) -> dict[tuple[str, int], Any]:
        columns = [IDS, DATASET, HOLES, *(VALUE + name for name in values), *(BLOB + name for name in blobs)]
        found: dict[tuple[str, int], Any] = {}
        stored: dict[int, tuple[str, bytes]] = {}
        where: dict[int, list[tuple[str, int]]] = {}
        numbers: dict[bytes, int] = {}
        for column in columns:
            pieces = self.structure.columns.get(column)
            for chunk in chunks if pieces is not None else ():
                piece = pieces[chunk] if pieces is not None else None
                if (own := small(piece)) is not None:
                    found[column, chunk] = own
                elif isinstance(piece, bytes):
                    number = numbers.setdefault(piece, len(numbers))
                    stored[number] = f"{column} of chunk {chunk}", piece
                    where.setdefault(number, []).append((column, chunk))
        for number, data in read_pieces(self.warehouse, stored, self.label).items():
            found.update(dict.fromkeys(where[number], data))
        return found

    def _block(
        self, chunk: int, pieces: Mapping[tuple[str, int], Any], values: Sequence[str], blobs: Sequence[str]
    ) -> Block:
        m, codec, column = self.structure.rows[chunk], codec_of(self.warehouse), IDS
        try:
            ids = decode_ids(pieces[IDS, chunk], m)
            column = DATASET
            datasets, dataset = decode_datasets(pieces[DATASET, chunk], m)
            if not set(datasets) <= self.schemas.keys():
                raise ValueError(f"it is of {datasets}, and the set has {sorted(self.schemas)}")
            found: dict[str, Values] = {}
            for name in values:
                column, piece = VALUE + name, pieces.get((VALUE + name, chunk))
                found[name] = Values.nothing(m) if piece is None else decode_values(piece, m, codec)
            refs = {}
            for name in blobs:
                column, piece = BLOB + name, pieces.get((BLOB + name, chunk))
                refs[name] = no_refs(m) if piece is None else decode_refs(piece, m)
            block = Block(ids, datasets, dataset, found, refs)
            column, piece = HOLES, pieces.get((HOLES, chunk))
            if piece is not None:
                block = block.take(~decode_values(piece, m, codec).data.astype(np.bool_))
            return block
        except MALFORMED as error:
            raise CorruptBlobError(
                f"{self.label} is damaged: chunk {chunk} of {m} samples, column {column!r}: {error!s:.200}"
            ) from None


def codec_of(warehouse: Warehouse) -> Codec:
    """How values are read: as the driver reads them from the index."""
    codec: Codec = warehouse.index.database.codec_options if warehouse.index.is_server else LENIENT
    return codec


def read_pieces(
    warehouse: Warehouse, stored: Mapping[int, tuple[str, bytes]], label: str
) -> Mapping[int, np.ndarray[Any, Any]]:
    """The bytes of pieces, by their numbers.

    Args:
        warehouse: The warehouse.
        stored: Name and digest of each, by its number.
        label: Of what, for messages.

    Raises:
        StorageError: One is gone.
    """
    if not stored:
        return {}
    try:
        return read_leaves(warehouse, stored, label)
    except CheckpointError as error:
        raise StorageError(f"{label} is not complete: {error}") from error


def find_set(warehouse: Warehouse, frozen: Frozen) -> FrozenSetDocument:
    """The document of a frozen set.

    Raises:
        NotFoundError: There is none of that name, or it is another one.
    """
    sets = warehouse.index["frozen"]
    named = {"_tdb.p": warehouse.project, "name": frozen.name}
    doc: FrozenSetDocument | None = retry_while_unavailable(lambda: sets.find_one(named), reads=True)
    if doc is None:
        known = [one["name"] for one in read_all(sets.find({"_tdb.p": warehouse.project}, {"name": 1}))]
        raise NotFoundError(
            f"there is no frozen set {frozen.name!r} in project {warehouse.project!r}{nearest(frozen.name, known)};"
            " db.data.frozen() lists them"
        )
    if frozen.id is not None and doc["_id"] != frozen.id:
        raise NotFoundError(
            f"the frozen set {frozen.name!r} of this query was dropped, and another set has its name now, which was"
            f" frozen at {doc['created']:%Y-%m-%d %H:%M}: select that one by db.data.frozen({frozen.name!r})"
        )
    return doc


def open_set(warehouse: Warehouse, frozen: Frozen) -> FrozenSet:
    """A frozen set, by its name.

    Raises:
        NotFoundError: See `find_set`.
        CorruptBlobError: It is damaged.
        StorageError: The blob store failed.
    """
    return of_doc(warehouse, find_set(warehouse, frozen))


def set_by_id(warehouse: Warehouse, id: Any) -> FrozenSet:
    """A frozen set by its `_id`, as documents of its samples name it.

    Raises:
        NotFoundError: There is no such set.
        CorruptBlobError: It is damaged.
        StorageError: The blob store failed.
    """
    kept = _kept(warehouse)
    for found in list(kept.values()):
        if found.id == id:
            return found
    named = {"_id": id, "_tdb.p": warehouse.project}
    doc = retry_while_unavailable(lambda: warehouse.index["frozen"].find_one(named), reads=True)
    if doc is None:
        raise NotFoundError(f"the frozen set {id} of these samples was dropped")
    return of_doc(warehouse, doc)


def of_doc(warehouse: Warehouse, doc: FrozenSetDocument) -> FrozenSet:
    """The frozen set of a document.

    Raises:
        CorruptBlobError: It is damaged.
        StorageError: The blob store failed.
    """
    label = label_of(doc)
    internals: Any = doc.get("_tdb")
    digest = internals.get("structure") if isinstance(internals, Mapping) else None
    if not isinstance(digest, bytes):
        raise CorruptBlobError(f"{label} is damaged: its document names no structure; run fsck")
    kept, key = _kept(warehouse), (doc["_id"], bytes(digest))
    if (found := kept.get(key)) is not None:
        return found
    data = read_pieces(warehouse, {0: ("structure", bytes(digest))}, label)[0]
    found = FrozenSet(warehouse, doc, Structure.from_json(data.tobytes(), label))
    while len(kept) >= _KEPT:
        kept.pop(next(iter(kept)), None)
    kept[key] = found
    return found


def segments_in_sets(warehouse: Warehouse, ids: Sequence[ObjectId]) -> set[ObjectId]:
    """Those of some segments to which frozen sets refer."""
    wanted = set(ids)
    found = warehouse.index["frozen_segments"].find({"k": {"$in": list(ids)}}, {"k": 1})
    return {id for doc in read_all(found) if isinstance(doc["k"], list) for id in doc["k"]} & wanted


def label_of(doc: Mapping[str, Any]) -> str:
    """What errors call the set of a document."""
    return f"the frozen set {doc.get('name')!r}"


def _kept(warehouse: Warehouse) -> dict[tuple[Any, bytes], FrozenSet]:
    return warehouse.memo(FrozenSet, lambda: dict[tuple[Any, bytes], FrozenSet]())

"""Tombstones: objects in the blob store that name what was deleted, for a rebuild of a lost index.

Segments and objects of tensors stay until a gc finds them unused, and do not tell what was deleted. So a deletion first
writes an object with the ids that it is about to delete. If some of them were edited meanwhile and stay, it replaces
this object. A gc removes a tombstone when the blobs of its entities are gone, and merges small ones.

    magic | xxh3 of the rest | zstd over BSON: {p, c: collection, dataset, stones: [{t, ids, s}, ...]}

`t` is the time of the deletion, an ObjectId; `ids` are packed, and so are `s`, the sequence numbers of samples.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import bson
import bson.errors
import numpy as np
import xxhash
import zstandard
from bson import ObjectId

from tensordb_data.blobs.stores.base import Store
from tensordb_data.common.zstd import expand
from tensordb_data.errors import CorruptBlobError, StorageError
from tensordb_data.mongo.retry import read_all, retry_while_unavailable

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery
    from tensordb_data.warehouse.context import Warehouse

FOLDER = "tombstones/"
CHUNK = 10_000
"""Entities in one tombstone, at most."""
_MAGIC = b"TDBtmb\r\n"
_HEAD = struct.Struct("<8sQ")
_ID = 12
_DAMAGED = (ValueError, LookupError, TypeError, RecursionError, struct.error, bson.errors.BSONError,
            zstandard.ZstdError)  # fmt: skip

Doc = Mapping[str, Any]


@dataclass(frozen=True)
class Deletion:
    """Entities that were deleted at one time."""

    time: ObjectId
    ids: list[ObjectId]
    sequence: list[int]
    """The sequence numbers of samples; empty for parameter sets."""


@dataclass(frozen=True)
class Tombstone:
    """The content of one tombstone."""

    project: str
    collection: str
    dataset: str | None
    deletions: list[Deletion]


def delete(selection: BoundQuery) -> int:
    """Delete the entities of a selection, each with a tombstone. On mongomock, which ends with the process, without.

    Returns:
        How many were deleted.

    Raises:
        StorageError: The blob store failed; entities without a tombstone were not deleted.
    """
    warehouse, collection = selection.warehouse, selection.query.collection
    if not warehouse.index.is_server:
        return selection.modify(lambda filter, session: selection.collection.delete_many(filter).deleted_count)
    entities = selection.collection

    def delete_ids(ids: Sequence[ObjectId]) -> int:
        where = selection.of_ids(ids)
        return warehouse.index.transaction(
            lambda session: int(entities.delete_many(where, session=session).deleted_count)
        )

    count = 0
    for docs in selection.to_delete(FIELDS[collection], CHUNK):
        for dataset, some in by_dataset(docs).items():
            count += delete_with_tombstone(warehouse, collection, some, delete_ids, dataset)
    return count


FIELDS = {"data": {"dataset": 1, "_tdb.s": 1}, "params": {"_tdb.structure": 1}}
"""The fields that a deletion reads of entities, by collection."""


def delete_with_tombstone(
    warehouse: Warehouse,
    collection: str,
    docs: Sequence[Doc],
    delete_ids: Callable[[list[ObjectId]], int],
    dataset: str | None = None,
) -> int:
    """Write a tombstone for some documents, then delete them.

    Args:
        warehouse: The warehouse.
        collection: The collection of the documents.
        docs: The documents, with the `FIELDS` of their collection.
        delete_ids: Deletes the documents with these ids that were not edited meanwhile; returns how many.
        dataset: The dataset, if they are samples.

    Returns:
        How many were deleted.
    """
    id = _write(warehouse, collection, docs, dataset)
    count = delete_ids([doc["_id"] for doc in docs])
    if count < len(docs):
        there = warehouse.index[collection].find({"_id": {"$in": [doc["_id"] for doc in docs]}}, {"_id": 1})
        left = {doc["_id"] for doc in read_all(there)}
        if left:
            gone = [doc for doc in docs if doc["_id"] not in left]
            if gone:
                _done(warehouse, _write(warehouse, collection, gone, dataset))
            retry_while_unavailable(lambda: remove(warehouse, warehouse.index["tombstones"].find_one({"_id": id})))
            return count
    _done(warehouse, id)
    return count


def write(warehouse: Warehouse, tombstone: Tombstone, about: Doc) -> ObjectId:
    """Store a tombstone, in the state `writing`. When the deletion has taken place, it becomes `live`.

    A gc does not touch tombstones in the state `writing`.

    Raises:
        StorageError: The blob store failed; nothing is left of it.
    """
    id = ObjectId()
    doc = {
        "_id": id, "p": tombstone.project, "c": tombstone.collection, "dataset": tombstone.dataset,
        "root": warehouse.blobs.write_root, "key": f"{FOLDER}{id}",
        "n": sum(len(deletion.ids) for deletion in tombstone.deletions), "state": "writing", **about,
    }  # fmt: skip
    new = {"$setOnInsert": {k: v for k, v in doc.items() if k != "_id"}, "$currentDate": {"created": True}}
    retry_while_unavailable(lambda: warehouse.index["tombstones"].update_one({"_id": id}, new, upsert=True))
    try:
        warehouse.blobs.store(warehouse.blobs.write_root).put(doc["key"], [_packed(tombstone)])
    except StorageError:
        warehouse.index["tombstones"].delete_one({"_id": id})
        raise
    return id


def remove(warehouse: Warehouse, doc: Doc | None) -> None:
    """Remove a tombstone: first its object, then its document."""
    if doc is not None:
        warehouse.blobs.delete(doc["root"], doc["key"])
        warehouse.index["tombstones"].delete_one({"_id": doc["_id"]})


def read(store: Store, key: str) -> Tombstone:
    """Read a tombstone.

    Raises:
        CorruptBlobError: It is damaged.
        StorageError: It does not exist.
    """
    data = store.get(key)
    try:
        magic, checksum = _HEAD.unpack_from(data)
        if magic != _MAGIC or checksum != xxhash.xxh3_64_intdigest(data[_HEAD.size :]):
            raise ValueError("it does not match its checksum")
        doc = bson.decode(expand(data[_HEAD.size :]))
        deletions = [Deletion(each["t"], list(_ids(each["ids"])), _numbers(each["s"])) for each in doc["stones"]]
        return Tombstone(doc["p"], doc["c"], doc["dataset"], deletions)
    except _DAMAGED as error:
        raise CorruptBlobError(f"{store.url}/{key}: expected a tombstone, found something else: {error}") from None


def _write(warehouse: Warehouse, collection: str, docs: Sequence[Doc], dataset: str | None) -> ObjectId:
    sequence = [int(doc["_tdb"]["s"]) for doc in docs] if collection == "data" else []
    deletion = Deletion(ObjectId(), [doc["_id"] for doc in docs], sequence)
    about = {"objects": _objects(warehouse, docs)} if collection in ("params", "frozen") else {}
    return write(warehouse, Tombstone(warehouse.project, collection, dataset, [deletion]), about)


def _done(warehouse: Warehouse, id: ObjectId) -> None:
    done = {"$set": {"state": "live"}}
    retry_while_unavailable(lambda: warehouse.index["tombstones"].update_one({"_id": id}, done))


def _objects(warehouse: Warehouse, sets: Sequence[Doc]) -> list[dict[str, Any]]:
    """The objects that hold the structures of parameter sets.

    As long as one exists, a rebuild could restore its set.
    """
    ids = [{"p": warehouse.project, "h": doc["_tdb"].get("structure")} for doc in sets]
    there = warehouse.index["tensors"].find({"_id": {"$in": ids}}, {"root": 1, "key": 1})
    places = {(doc["root"], doc["key"]) for doc in read_all(there)}
    return [{"root": root, "key": key} for root, key in sorted(places)]


def _packed(tombstone: Tombstone) -> bytes:
    deletions = [
        {
            "t": deletion.time,
            "ids": b"".join(id.binary for id in deletion.ids),
            "s": np.array(deletion.sequence, "<i8").tobytes(),
        }
        for deletion in tombstone.deletions
    ]
    doc = {"p": tombstone.project, "c": tombstone.collection, "dataset": tombstone.dataset, "stones": deletions}
    body = zstandard.ZstdCompressor().compress(bson.encode(doc))
    return _HEAD.pack(_MAGIC, xxhash.xxh3_64_intdigest(body)) + body


def _ids(data: bytes) -> Iterator[ObjectId]:
    return (ObjectId(data[at : at + _ID]) for at in range(0, len(data), _ID))


def _numbers(data: bytes) -> list[int]:
    found: list[int] = np.frombuffer(data, "<i8").tolist()
    return found


def by_dataset(docs: Sequence[Doc]) -> dict[str | None, list[Doc]]:
    """Group documents by dataset; under None those without one."""
    found: dict[str | None, list[Doc]] = {}
    for doc in docs:
        found.setdefault(doc.get("dataset"), []).append(doc)
    return found

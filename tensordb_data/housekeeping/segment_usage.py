"""Find the segments to which samples refer, in bounded memory for any number of segments and samples.

For each quarter of a million segments, the server goes through all samples once, of all datasets and projects: other
tools may move samples to another dataset, and their blobs stay where they are. It sorts on its disk if need be. What
frozen sets refer to is in use, too. Here,
some thirty bytes are kept of each segment. They tell afterwards whether the segment has changed.
"""

from __future__ import annotations

import datetime as dt
import heapq
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from bson import ObjectId

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents.blobs import SegmentDocument

SCAN = 1 << 18
"""Segments for which all samples are read once."""
BATCH = 1000
_ID = 12
_ANSWER = 10_000  # ids that the server sends at once

_EPOCH = dt.datetime(1970, 1, 1)

Doc = Mapping[str, Any]
Partition: TypeAlias = "tuple[list[SegmentDocument], list[SegmentDocument]]"
"""Unused and used segments."""


class _Held:
    """Segments as they were, in the order of their ids."""

    def __init__(self) -> None:
        self._ids, self._versions, self._dying = bytearray(), array("q"), array("q")

    def __len__(self) -> int:
        return len(self._versions)

    def add(self, doc: SegmentDocument) -> None:
        self._ids += doc["_id"].binary
        version, dying = _state(doc)
        self._versions.append(version)
        self._dying.append(dying)

    def id(self, at: int) -> ObjectId:
        return ObjectId(bytes(self._ids[at * _ID : (at + 1) * _ID]))

    def same(self, at: int, doc: SegmentDocument | None) -> bool:
        """Whether a segment has not changed."""
        return doc is not None and _state(doc) == (self._versions[at], self._dying[at])


def partition_by_use(warehouse: Warehouse, filter: Doc) -> Iterator[Partition]:
    """Partition the segments of a filter by use.

    Segments that have changed while the samples were read are left out.

    Yields:
        Segments to which no sample refers, and segments to which samples refer, a batch at a time.
    """
    segments = warehouse.index["segments"]
    after = None
    while True:
        where = {"$and": [dict(filter), {} if after is None else {"_id": {"$gt": after}}]}
        fields = {"v": 1, "state": 1, "dying": 1}
        found = segments.find(where, fields, sort=[("_id", 1)], limit=SCAN, batch_size=BATCH, allow_disk_use=True)
        held = _Held()
        for doc in found:
            held.add(doc)
        if not len(held):
            break
        after = held.id(len(held) - 1)
        yield from _partitioned(warehouse, held, _used(warehouse, held.id(0), after))
        if len(held) < SCAN:
            break


def _partitioned(warehouse: Warehouse, held: _Held, used: Iterator[ObjectId]) -> Iterator[Partition]:
    current = next(used, None)  # with this all samples have been looked at
    for low in range(0, len(held), BATCH):
        places = range(low, min(low + BATCH, len(held)))
        ids = [held.id(at) for at in places]
        docs = {doc["_id"]: doc for doc in warehouse.index["segments"].find({"_id": {"$in": ids}})}
        unused: list[SegmentDocument] = []
        in_use: list[SegmentDocument] = []
        for at, id in zip(places, ids, strict=True):
            while current is not None and current < id:
                current = next(used, None)
            if held.same(at, docs.get(id)):
                (in_use if current == id else unused).append(docs[id])
        yield unused, in_use


def _used(warehouse: Warehouse, low: ObjectId, high: ObjectId) -> Iterator[ObjectId]:
    """Segments in a range of ids that samples or frozen sets refer to, in order; perhaps several times."""
    # The sets are read after the samples: one that is made meanwhile has changed its segments, which are left out then.
    yield from heapq.merge(_used_by_samples(warehouse, low, high), _used_by_sets(warehouse, low, high))


def _used_by_sets(warehouse: Warehouse, low: ObjectId, high: ObjectId) -> Iterator[ObjectId]:
    stages: Sequence[Doc] = [
        {"$match": {"k": {"$elemMatch": {"$gte": low, "$lte": high}}}},
        {"$unwind": "$k"},
        {"$match": {"k": {"$gte": low, "$lte": high}}},
        {"$group": {"_id": "$k"}},
        {"$sort": {"_id": 1}},
    ]
    for doc in warehouse.index["frozen_segments"].aggregate(stages, allowDiskUse=True, batchSize=_ANSWER):
        yield doc["_id"]


def _used_by_samples(warehouse: Warehouse, low: ObjectId, high: ObjectId) -> Iterator[ObjectId]:
    stages: Sequence[Doc] = [
        {"$match": {"_tdb.b": {"$type": "object"}}},
        {"$project": {"r": {"$objectToArray": "$_tdb.b"}}},
        {"$unwind": "$r"},
        {"$match": {"r.v.k": {"$gte": low, "$lte": high}}},
        {"$group": {"_id": "$r.v.k"}},
        {"$sort": {"_id": 1}},
    ]
    for doc in warehouse.index["data"].aggregate(stages, allowDiskUse=True, batchSize=_ANSWER):
        yield doc["_id"]


def _state(doc: SegmentDocument) -> tuple[int, int]:
    """Two numbers that change when the state of a segment is written."""
    dying = doc.get("dying")
    since = -1 if dying is None else (dying.replace(tzinfo=None) - _EPOCH) // dt.timedelta(milliseconds=1)
    return doc.get("v", 0), since * 8 + ("writing", "live", "dying", "gone").index(doc["state"])

"""Mend what can be mended without guessing: what another part of the warehouse tells for certain.

- The counter of a dataset is below the number of one of its samples: the next commits would meet taken numbers.
- The document of a segment to which samples refer is missing, and the object is there: it describes itself.
- The document of a segment says another size or place than the object itself.
- A change of samples is still noted as under way, and no process works on it.

All else that `fsck` finds is only reported. Each repair is one write, which looks again: it may run beside others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.blobs.keys import is_key
from tensordb_data.blobs.segments.read import read_segment
from tensordb_data.common.chunks import batched
from tensordb_data.common.html import Report
from tensordb_data.errors import StorageError, UnsupportedError
from tensordb_data.housekeeping.segment_doc import segment_doc
from tensordb_data.samples.mutations import end_silent

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_BATCH = 1000
_PLACE = ("bytes", "blobs", "index")

Doc = Mapping[str, Any]


@dataclass(frozen=True)
class Repair(Report):
    """One thing that can be mended."""

    what: str
    """What is wrong, what tells so, and what will be written."""
    mend: Callable[[], None]


def repairs(warehouse: Warehouse) -> list[Repair]:
    """All that can be mended, of all projects. Nothing is written.

    Raises:
        UnsupportedError: This is mongomock.
    """
    if not warehouse.index.is_server:
        raise UnsupportedError("mongomock ends with its process, so there is nothing to mend; use a real server")
    return [*_counters(warehouse), *_lost_segments(warehouse), *_wrong_segments(warehouse), *_open_changes(warehouse)]


def _counters(warehouse: Warehouse) -> Iterator[Repair]:
    datasets, data = warehouse.index["datasets"], warehouse.index["data"]
    for doc in datasets.find({}, {"seq": 1}):
        project, name, seq = doc["_id"].get("p"), doc["_id"].get("d"), doc.get("seq")
        newest = data.find_one({"_tdb.p": project, "dataset": name}, {"_tdb.s": 1}, sort=[("_tdb.s", -1)])
        last = None if newest is None else newest["_tdb"].get("s")
        if isinstance(last, int) and isinstance(seq, int) and last > seq:

            def mend(id: Any = doc["_id"], last: int = last) -> None:
                datasets.update_one({"_id": id}, {"$max": {"seq": last}, "$inc": {"mut": 1}})

            yield Repair(
                f"dataset {name!r} of {project!r}: its counter is {seq:,}, and a sample has the number {last:,}: the "
                "counter becomes that",
                mend,
            )


def _lost_segments(warehouse: Warehouse) -> Iterator[Repair]:
    segments = warehouse.index["segments"]
    stages: list[Doc] = [
        {"$match": {"_tdb.b": {"$type": "object"}}},
        {"$project": {"p": "$_tdb.p", "dataset": 1, "r": {"$objectToArray": "$_tdb.b"}}},
        {"$unwind": "$r"},
        {"$match": {"r.v.k": {"$type": "objectId"}}},
        {"$group": {"_id": "$r.v.k", "p": {"$first": "$p"}, "dataset": {"$first": "$dataset"}}},
    ]
    for named in batched(warehouse.index["data"].aggregate(stages, allowDiskUse=True), _BATCH):
        ids = [each["_id"] for each in named]
        known = {doc["_id"] for doc in segments.find({"_id": {"$in": ids}}, {"_id": 1})}
        for id, of in ((each.pop("_id"), each) for each in named if each["_id"] not in known):
            doc = _found(warehouse, id)
            if doc is not None:
                doc |= of  # its samples may have been renamed since it was written

                def mend(id: ObjectId = id, doc: dict[str, Any] = doc) -> None:
                    made = {"$setOnInsert": doc, "$currentDate": {"created": True}}
                    segments.update_one({"_id": id}, made, upsert=True)

                yield Repair(
                    f"segment {id} of dataset {doc['dataset']!r}: samples refer to it, it has no document, and its "
                    "object is there: the document is made from the object",
                    mend,
                )


def _found(warehouse: Warehouse, id: ObjectId) -> dict[str, Any] | None:
    """The document of a segment, from its object in one of the places that this client has opened."""
    for root in warehouse.blobs.opened:
        try:
            return _described(warehouse, root["id"], f"segments/{id}")
        except StorageError:
            continue
    return None


def _described(warehouse: Warehouse, root: int, key: str) -> dict[str, Any]:
    store = warehouse.blobs.store(root)
    index, documents = read_segment(store, key)
    return segment_doc(index, documents, root, key, store.size(key))


def _wrong_segments(warehouse: Warehouse) -> Iterator[Repair]:
    segments = warehouse.index["segments"]
    for doc in segments.find({"state": {"$in": ["live", "dying"]}}, sort=[("_id", 1)], batch_size=_BATCH):
        key, root = doc.get("key"), doc.get("root")
        if not is_key(key) or key != f"segments/{doc['_id']}" or not isinstance(root, int):
            continue
        try:
            described = _described(warehouse, root, key)
        except StorageError:  # missing or damaged, which `fsck` reports
            continue
        right = {name: described[name] for name in _PLACE if name in doc or name != "blobs"}
        right |= {"roots": described["roots"]} if "roots" in described else {}
        wrong = {name: doc.get(name) for name, value in right.items() if doc.get(name) != value}
        if wrong:

            def mend(doc: Doc = doc, right: dict[str, Any] = right, wrong: dict[str, Any] = wrong) -> None:
                same = {name: {"$eq": value} for name, value in wrong.items()}
                segments.update_one({"_id": doc["_id"], **same}, {"$set": right})

            said = ", ".join(f"{name} {value!r:.50}" for name, value in wrong.items())
            there = ", ".join(f"{name} {right[name]!r}" for name in wrong)
            yield Repair(
                f"segment {doc['_id']}: its document says {said}, and its object has {there}: the document gets that",
                mend,
            )


def _open_changes(warehouse: Warehouse) -> Iterator[Repair]:
    datasets, mutations = warehouse.index["datasets"], warehouse.index["mutations"]
    named: set[ObjectId] = set()
    for doc in datasets.find({"open.0": {"$exists": True}}, {"open": 1}):
        project, name = doc["_id"].get("p"), doc["_id"].get("d")
        ids = [entry["id"] for entry in doc["open"] if isinstance(entry, Mapping) and "id" in entry]
        named.update(ids)
        living = {each["_id"] for each in mutations.find({"_id": {"$in": ids}, "$expr": {"$gt": ["$until", "$$NOW"]}})}
        dead = [id for id in ids if id not in living]
        if dead:

            def mend(project: str = project, name: str = name, dead: list[ObjectId] = dead) -> None:
                end_silent(warehouse.in_project(project), dead, [name])

            yield Repair(
                f"dataset {name!r} of {project!r}: {len(dead)} changes are noted as under way, and their processes "
                "have ended: they are noted as ended, as far as they have come",
                mend,
            )
    orphans = {"_id": {"$nin": list(named)}, "$expr": {"$lte": ["$until", "$$NOW"]}}
    count = mutations.count_documents(orphans)
    if count:

        def remove() -> None:
            mutations.delete_many(orphans)

        yield Repair(
            f"{count} leases of changes, which no dataset names and which have run out: they are removed", remove
        )

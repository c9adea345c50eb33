"""The segments that hold samples to be forgotten: find them, move what others have in them, and remove them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.blobs.segments.read import read_segment
from tensordb_data.errors import BusyError, CorruptBlobError, StorageError
from tensordb_data.frozen.frozen_set import segments_in_sets
from tensordb_data.mongo.retry import read_all
from tensordb_data.samples.compact import Moved, Mover, cut, mark_unused, references, staying
from tensordb_data.samples.mutations import Mutation, end_silent
from tensordb_data.schema.schema import Schema
from tensordb_data.tensors.lease import is_backed_up

if TYPE_CHECKING:
    from tensordb_data.time.forget.report import Forgotten
    from tensordb_data.warehouse.context import Warehouse

Doc = dict[str, Any]


def holding(warehouse: Warehouse, dataset: str, ids: set[ObjectId], known: Sequence[ObjectId]) -> list[ObjectId]:
    """The segments of a dataset with documents of some samples, and those known to have their blobs.

    Segments without any documents have copies of blobs that a frozen set had: those that no set has any more count.

    Raises:
        CorruptBlobError: A segment is damaged, so that nobody knows what it holds.
        StorageError: The blob store failed.
    """
    found, without, wanted = [], [], set(known)
    for doc in read_all(warehouse.index["segments"].find({"p": warehouse.project, "dataset": dataset})):
        store = warehouse.blobs.store(doc["root"])
        try:
            samples = read_segment(store, doc["key"])[1].samples
        except CorruptBlobError:
            raise
        except StorageError:
            if doc["state"] in ("live", "dying"):
                raise
            continue  # it is being written, and has only samples that are not committed; or it is gone
        if not samples:
            without.append(doc["_id"])
        if doc["_id"] in wanted or any(sample.get("_id") in ids for sample in samples):
            found.append(doc["_id"])
    held = segments_in_sets(warehouse, without)
    return list(dict.fromkeys([*found, *(id for id in without if id not in held)]))


def rewrite(warehouse: Warehouse, dataset: str, ids: Sequence[ObjectId], report: Forgotten) -> None:
    """Move the blobs of others out of some segments, and remove these.

    Raises:
        CorruptBlobError: A blob of another sample is damaged. Its segment stays.
        BusyError: A backup or a freeze runs, or a compaction.
        StorageError: A frozen set refers to a segment, or the blob store failed.
    """
    about: Any = warehouse.index["datasets"].find_one({"_id": warehouse.datasets.id(dataset)})
    moved = Moved()
    if about is not None and ids:
        compacting = [each["id"] for each in about.get("open", ()) if each["kind"] == "compact"]
        if set(compacting) - end_silent(warehouse, compacting, [dataset]):
            raise BusyError(f"a compaction of dataset {dataset!r} runs: call forget again when it has ended")
        _move(warehouse, dataset, Schema.from_doc(about["schema"] or {}), list(ids), moved)
        report.moved += moved.samples
        if moved.damaged:
            raise CorruptBlobError(
                f"dataset {dataset!r}: other samples have damaged blobs in the segments that hold what is to be"
                f" forgotten, so these stay: {'; '.join(moved.damaged[:3])}; delete those samples, and call it again"
            )
    mark_unused(warehouse, dataset, ids, moved)
    _remove(warehouse, dataset, ids, report)


def _move(warehouse: Warehouse, dataset: str, schema: Schema, ids: list[ObjectId], report: Moved) -> None:
    fields = [name for name, field in schema.items() if field.is_blob]
    if not fields:
        return
    refer = {"$or": [{f"_tdb.b.{name}.k": {"$in": ids}} for name in fields]}
    docs = read_all(warehouse.index["data"].find({"_tdb.p": warehouse.project, "dataset": dataset, **refer}))
    if not docs:
        return
    with Mutation(warehouse, "compact", [dataset], alone=False, stamps=True) as mutation:
        mover = Mover(warehouse, dataset, schema, report, mutation)
        for some in cut(docs, staying(warehouse, ids)):
            mover.move(some, ids)
    mark_unused(warehouse, dataset, mover.unused, report)


def _remove(warehouse: Warehouse, dataset: str, ids: Sequence[ObjectId], report: Forgotten) -> None:
    segments = warehouse.index["segments"]
    used = references(warehouse, dataset, ids) if ids else {}
    held = segments_in_sets(warehouse, ids)
    for doc in read_all(segments.find({"_id": {"$in": list(ids)}})):
        if is_backed_up(warehouse):
            raise BusyError("a backup or a freeze runs, so nothing can be removed: call forget again when it has ended")
        same = {"_id": doc["_id"], "state": doc["state"], "v": doc.get("v")}
        taken = doc["_id"] in used or doc["_id"] in held or doc["state"] == "live"
        if taken or not segments.update_one(same, {"$set": {"state": "gone"}}).matched_count:
            raise StorageError(
                f"segment {doc['_id']} of dataset {dataset!r} has bytes of what is to be forgotten, and is in use by"
                " another sample or a frozen set: drop that set, and call forget again"
            )
        warehouse.blobs.delete(doc["root"], doc["key"])
        segments.delete_one({"_id": doc["_id"], "state": "gone"})
        report.segments += 1

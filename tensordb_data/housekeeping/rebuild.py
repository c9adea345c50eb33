"""Rebuild samples and parameter sets from the blob store alone, when the index is lost.

A segment holds the fields of its samples as they were when it was written. The newest segments are read first, so that
the later copy of a sample counts if a compaction has moved it. Entities in tombstones stay deleted. A rebuild can be
stopped at any time, and goes on when it is called again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from tensordb_data.blobs.segments.format import SegmentDocuments
from tensordb_data.blobs.segments.read import read_segment
from tensordb_data.common.chunks import batched, chunks
from tensordb_data.errors import SchemaError, StorageError, UnsupportedError
from tensordb_data.housekeeping.rebuild_frozen import rebuild_frozen
from tensordb_data.housekeeping.rebuild_params import rebuild_sets
from tensordb_data.housekeeping.rebuild_report import Progress, Rebuilt
from tensordb_data.housekeeping.segment_doc import segment_doc
from tensordb_data.housekeeping.sequence import numbered_twice
from tensordb_data.mongo.errors import are_duplicates
from tensordb_data.schema.schema import Schema, stored_doc
from tensordb_data.search.index import search_index
from tensordb_data.warehouse.deletion_log import FOLDER, Tombstone, read

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_BATCH = 1000


def rebuild(warehouse: Warehouse, progress: Progress | None = None) -> Rebuilt:
    """See `TensorDB.rebuild`."""
    about = warehouse.index["warehouse"]
    begun = about.find_one({"_id": "warehouse", "rebuilding": warehouse.project}) is not None
    for name, what in (("data", "samples"), ("params", "parameter sets"), ("frozen", "frozen sets")):
        if not begun and warehouse.index[name].find_one({"_tdb.p": warehouse.project}, {"_id": 1}) is not None:
            raise UnsupportedError(
                f"project {warehouse.project!r} has {what}, so its index is not lost, and a rebuild would undo changes;"
                " open a new database with the same blobs= and rebuild there"
            )
    about.update_one({"_id": "warehouse"}, {"$addToSet": {"rebuilding": warehouse.project}})
    run = _Rebuild(warehouse, progress or (lambda what, done, total: None))
    run.read_tombstones()
    run.read()
    run.number()
    places = rebuild_sets(warehouse, run.report, run.deleted, run.progress)
    run.enter_tombstones({**places, **rebuild_frozen(warehouse, run.report, run.deleted, run.progress)})
    about.update_one({"_id": "warehouse"}, {"$pull": {"rebuilding": warehouse.project}})
    return run.report


class _Rebuild:
    def __init__(self, warehouse: Warehouse, progress: Progress) -> None:
        self._warehouse, self._mongo, self.progress = warehouse, warehouse.index.database, progress
        self.report = Rebuilt()
        self.deleted: dict[ObjectId, tuple[ObjectId, int]] = {}
        """For each deleted entity, the time of its last deletion, and its sequence number."""
        self._tombstones: list[tuple[int, str, Tombstone]] = []
        """Blob root, key and content; without the ids of samples."""
        self._schemas: dict[str, Schema] = {}
        lowest = self._mongo["data"].find_one({"_tdb.p": warehouse.project}, {"_tdb.s": 1}, sort=[("_tdb.s", 1)])
        self._number = min(0, lowest["_tdb"]["s"]) if lowest else 0

    def read_tombstones(self) -> None:
        """Read which entities were deleted."""
        for root in self._warehouse.blobs.opened:
            store = self._warehouse.blobs.store(root["id"])
            for key, _ in store.list(FOLDER):
                try:
                    found = read(store, key)
                except StorageError as error:
                    self.report.skipped.append(f"{error}; what it names may be back")
                    continue
                if found.project != self._warehouse.project:
                    continue
                for deletion in found.deletions:
                    for id, number in zip(deletion.ids, deletion.sequence or [-1] * len(deletion.ids), strict=True):
                        self.deleted[id] = max(self.deleted.get(id, (deletion.time, number)), (deletion.time, number))
                kept = found if found.collection in ("params", "frozen") else replace(found, deletions=[])
                self._tombstones.append((root["id"], key, kept))

    def enter_tombstones(self, places: Mapping[ObjectId, Mapping[str, Any]]) -> None:
        """Enter the tombstones into the index. This comes last, so that they are younger than all entities.

        Args:
            places: The objects that still hold the structures of deleted sets.
        """
        for root, key, found in self._tombstones:
            ids = [id for deletion in found.deletions for id in deletion.ids]
            doc = {
                "p": found.project, "c": found.collection, "dataset": found.dataset, "root": root, "key": key,
                "n": len(ids), "state": "live", "objects": [dict(places[id]) for id in ids if id in places],
            }  # fmt: skip
            id = ObjectId(key.removeprefix(FOLDER))
            made = {"$setOnInsert": doc, "$currentDate": {"created": True}}
            self._mongo["tombstones"].update_one({"_id": id}, made, upsert=True)

    def read(self) -> None:
        """Read segments and samples. The samples do not have their final sequence numbers yet."""
        found = sorted(self._found(), reverse=True)  # an ObjectId begins with its time
        for done, (name, root, nbytes) in enumerate(found):
            self.progress("segments", done, len(found))
            key, store = f"segments/{name}", self._warehouse.blobs.store(root)
            try:
                index, documents = read_segment(store, key)
                if documents.project != self._warehouse.project:
                    if documents.project not in self.report.projects:
                        self.report.projects.append(documents.project)
                    continue
                self._agree(documents)
            except (StorageError, SchemaError) as error:
                self.report.skipped.append(f"{store.url}/{key}: {error}")
                continue
            self._enter(documents, ObjectId(name))
            doc = segment_doc(index, documents, root, key, nbytes)
            made = {"$setOnInsert": doc, "$currentDate": {"created": True}}
            self._mongo["segments"].update_one({"_id": ObjectId(name)}, made, upsert=True)
            self.report.segments += 1

    def _found(self) -> Iterator[tuple[str, int, int]]:
        for root in self._warehouse.blobs.opened:
            for key, nbytes in self._warehouse.blobs.store(root["id"]).list("segments/"):
                name = key.rsplit("/", 1)[1]
                if ObjectId.is_valid(name):
                    yield name, root["id"], nbytes

    def _agree(self, documents: SegmentDocuments) -> None:
        given = Schema.from_doc(documents.schema)
        newer = self._schemas.setdefault(documents.dataset, given)
        try:
            agreed = Schema({**newer, **newer.missing(given, documents.dataset, older=True)})
        except SchemaError:  # a writer that was open when the schema was widened has written the newer one
            agreed = Schema({**given, **given.missing(newer, documents.dataset, older=True)})
        self._schemas[documents.dataset] = agreed

    def _enter(self, documents: SegmentDocuments, segment: ObjectId) -> None:
        docs = []
        for sample in documents.samples:
            if self._is_deleted(sample, segment):
                self.report.deleted += 1
                continue
            self._number -= 1
            docs.append({**sample, "_tdb": {**sample["_tdb"], "p": documents.project, "s": self._number}})
        for some in chunks(docs, _BATCH):
            search_index(self._warehouse, "data").add_documents(some)
            try:
                self._mongo["data"].insert_many(some, ordered=False)
            except BulkWriteError as error:
                if not are_duplicates(error):
                    raise

    def _is_deleted(self, sample: Mapping[str, Any], segment: ObjectId) -> bool:
        """Whether the sample was deleted after the segment was written; or while a compaction copied it."""
        found = self.deleted.get(sample["_id"])
        return found is not None and (came_before(segment, found[0]) or sample["_tdb"].get("s") == found[1])

    def number(self) -> None:
        """Give the samples their sequence numbers, and write the documents of the datasets.

        Raises:
            StorageError: Samples have the same number.
        """
        for dataset, schema in self._schemas.items():
            last = self._number_samples(dataset)
            twice = next(numbered_twice(self._mongo["data"], self._warehouse.project, dataset), None)
            if twice is not None:
                raise StorageError(
                    f"dataset {dataset!r}: several samples have the sequence number {twice}, so another process has "
                    "written or rebuilt at the same time: stop it, and call rebuild again"
                )
            about = {"seq": last, "mut": 1, "schema": stored_doc(schema), "created": dt.datetime.now(dt.timezone.utc)}
            self._mongo["datasets"].replace_one({"_id": self._warehouse.datasets.id(dataset)}, about, upsert=True)
            self.report.datasets[dataset] = last
            self.report.samples += last

    def _number_samples(self, dataset: str) -> int:
        scope = {"_tdb.p": self._warehouse.project, "dataset": dataset}
        total, last = self._mongo["data"].count_documents(scope), 0
        found = self._mongo["data"].find(scope, {"_id": 1}, sort=[("_id", 1)], allow_disk_use=True)
        for docs in batched(found, _BATCH):
            numbered = enumerate(docs, last + 1)
            self._mongo["data"].bulk_write(
                [UpdateOne({"_id": doc["_id"]}, {"$set": {"_tdb.s": number}}) for number, doc in numbered]
            )
            last += len(docs)
            self.progress(dataset, last, total)
        return last


def came_before(segment: ObjectId, deletion: ObjectId) -> bool:
    """Whether a segment is older than a deletion. An id has the second, the process and a count.

    Of one process the count tells; of two in the same second the segment is taken for the older one, since what is
    deleted was there.
    """
    one, other = segment.binary, deletion.binary
    return one < other if one[4:9] == other[4:9] else one[:4] <= other[:4]

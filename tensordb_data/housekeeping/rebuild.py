"""Rebuild: samples from segments alone, when the index is lost and the blob store is not.

Segments hold the fields of their samples as they were when the segment was written. Newest first, so that of a sample
that a compaction has moved the later copy counts. It can be stopped at any time, and goes on when it is called again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from tensordb_data.blobs.segments import ENTRY_BYTES, TRAILER_BYTES, SegmentDocuments, read_segment
from tensordb_data.errors import SchemaError, StorageError, UnsupportedError
from tensordb_data.records.schema import Schema

if TYPE_CHECKING:
    from tensordb_data.warehouse import TensorDB

_BATCH = 1000
_DUPLICATE = 11000
UNKNOWN = (
    "samples whose blobs were all in documents (live writers, before a compaction), or that have none",
    "samples that were deleted: those whose segment is still there are back",
    "flushes that were never committed: those whose segment was written are there",
    "changes of labels, tags and fields since the segment was written",
    "sequence numbers: samples are in the order of their _id",
    "parameters, logs, architectures and jobs",
)
"""What segments do not tell."""

Progress = Callable[[str, int, int], None]


@dataclass
class Rebuilt:
    """What a rebuild did."""

    segments: int = 0
    samples: int = 0
    datasets: dict[str, int] = field(default_factory=dict)
    """Samples by dataset."""
    skipped: list[str] = field(default_factory=list)
    """Segments that could not be used, and why."""
    projects: list[str] = field(default_factory=list)
    """Other projects that have segments here: each is rebuilt by a call of its own."""
    unknown: tuple[str, ...] = UNKNOWN


def rebuild(db: TensorDB, progress: Progress | None = None) -> Rebuilt:
    """See `TensorDB.rebuild`."""
    warehouse, data = db._mongo()["warehouse"], db._mongo()["data"]
    begun = warehouse.find_one({"_id": "warehouse", "rebuilding": db.project}) is not None
    if not begun and data.find_one({"_tdb.p": db.project}, {"_id": 1}) is not None:
        raise UnsupportedError(
            f"project {db.project!r} has samples, so its index is not lost, and a rebuild would bring back what was"
            " deleted; open a new database with the same blobs= and rebuild there"
        )
    warehouse.update_one({"_id": "warehouse"}, {"$addToSet": {"rebuilding": db.project}})
    run = _Rebuild(db, progress or (lambda what, done, total: None))
    run.read()
    run.number()
    warehouse.update_one({"_id": "warehouse"}, {"$pull": {"rebuilding": db.project}})
    return run.report


class _Rebuild:
    def __init__(self, db: TensorDB, progress: Progress) -> None:
        self._db, self._mongo, self._progress = db, db._mongo(), progress
        self.report = Rebuilt()
        self._schemas: dict[str, Schema] = {}
        lowest = self._mongo["data"].find_one({"_tdb.p": db.project}, {"_tdb.s": 1}, sort=[("_tdb.s", 1)])
        self._number = min(0, lowest["_tdb"]["s"]) if lowest else 0

    def read(self) -> None:
        """Segments and samples, without their final numbers."""
        found = sorted(self._found(), reverse=True)  # an ObjectId begins with its time
        for done, (name, root, nbytes) in enumerate(found):
            self._progress("segments", done, len(found))
            key, store = f"segments/{name}", self._db._store(root)
            try:
                index, documents = read_segment(store, key)
                if documents.project != self._db.project:
                    if documents.project not in self.report.projects:
                        self.report.projects.append(documents.project)
                    continue
                self._agree(documents)
            except (StorageError, SchemaError) as error:
                self.report.skipped.append(f"{store.url}/{key}: {error}")
                continue
            self._enter(documents)
            size = len(index.offsets) * ENTRY_BYTES
            doc = {
                "p": documents.project, "dataset": documents.dataset, "root": root, "key": key, "bytes": nbytes,
                "blobs": int(index.lengths.sum()), "index": [nbytes - size - TRAILER_BYTES, size],
                "n": len(documents.samples), "state": "live",
            }  # fmt: skip
            made = {"$setOnInsert": doc, "$currentDate": {"created": True}}
            self._mongo["segments"].update_one({"_id": ObjectId(name)}, made, upsert=True)
            self.report.segments += 1

    def _found(self) -> Iterator[tuple[str, int, int]]:
        for root in self._db._roots:
            for key, nbytes in self._db._store(root["id"]).list("segments/"):
                name = key.rsplit("/", 1)[1]
                if ObjectId.is_valid(name):
                    yield name, root["id"], nbytes

    def _agree(self, documents: SegmentDocuments) -> None:
        given = Schema.from_doc(documents.schema)
        newer = self._schemas.setdefault(documents.dataset, given)
        self._schemas[documents.dataset] = Schema({**newer, **newer.missing(given, documents.dataset)})

    def _enter(self, documents: SegmentDocuments) -> None:
        docs = []
        for sample in documents.samples:
            self._number -= 1
            docs.append({**sample, "_tdb": {**sample["_tdb"], "p": documents.project, "s": self._number}})
        for low in range(0, len(docs), _BATCH):
            self._db.data._entries.add_documents(docs[low : low + _BATCH])
            try:
                self._mongo["data"].insert_many(docs[low : low + _BATCH], ordered=False)
            except BulkWriteError as error:
                if any(failure["code"] != _DUPLICATE for failure in error.details["writeErrors"]):
                    raise

    def number(self) -> None:
        """The sequence numbers, and with them the datasets."""
        for dataset, schema in self._schemas.items():
            scope = {"_tdb.p": self._db.project, "dataset": dataset}
            total, last = self._mongo["data"].count_documents(scope), 0
            batch: list[Any] = []
            for doc in self._mongo["data"].find(scope, {"_id": 1}, sort=[("_id", 1)], allow_disk_use=True):
                last += 1
                batch.append(UpdateOne({"_id": doc["_id"]}, {"$set": {"_tdb.s": last}}))
                if len(batch) == _BATCH or last == total:
                    self._mongo["data"].bulk_write(batch)
                    batch = []
                    self._progress(dataset, last, total)
            about = {"seq": last, "mut": 1, "schema": schema.to_doc(), "created": dt.datetime.now(dt.timezone.utc)}
            self._mongo["datasets"].replace_one({"_id": {"p": self._db.project, "d": dataset}}, about, upsert=True)
            self.report.datasets[dataset] = last
            self.report.samples += last

"""Garbage collection: blobs live and die by the state of their documents: writing, live, dying, gone.

Marked are live tensors that no document refers to, live segments that no sample refers to, and segments that have been
in `writing` for longer than any writer takes. What was marked and is unused still when the grace period has passed is
removed: the document first leaves `dying`, by a write that conflicts with whoever revives it, and then the object goes.

Beside a writer: its commit writes the state of its segment, in the transaction that inserts the samples. Beside a
saver: see `checkpoint.lease`. Beside a reader: one that finds a blob gone asks where it is now. Beside another
collector: each step is one write on condition of the state before it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from pymongo import DeleteOne, UpdateOne

from tensordb_data.errors import QueryError, UnsupportedError
from tensordb_data.housekeeping import deletion_log
from tensordb_data.housekeeping.segment_usage import BATCH, partition_by_use
from tensordb_data.tensors.lease import SECONDS

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_MARK_SECONDS = 30
_MARGIN = dt.timedelta(seconds=60)
"""More than a command that marks may take: a lease that began so long after a mark has seen it."""

Doc = Mapping[str, Any]
Progress = Callable[[str, int], None]


@dataclass
class Collected:
    """What a gc did, or would do in a dry run."""

    marked: int = 0
    """Tensors and segments that are unused. A later gc removes them when the grace period has passed."""
    marked_bytes: int = 0
    revived: int = 0
    """Tensors and segments that were marked, and are in use again."""
    waiting: int = 0
    """Tensors and segments that stay marked: their grace period has not passed, or a running save may use them."""
    waiting_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0
    objects: int = 0
    """Objects that were deleted from the stores."""
    temporary: int = 0
    """Unfinished objects of killed writers and saves, which were removed too."""
    temporary_bytes: int = 0
    by: dict[str, int] = field(default_factory=dict)
    """Bytes that were marked or removed, by dataset, and by the run that stored the tensors. No byte counts twice."""


def collect(warehouse: Warehouse, grace: float, dry_run: bool, progress: Progress | None) -> Collected:
    """See `TensorDB.gc`."""
    if not warehouse.index.is_server:
        raise UnsupportedError("mongomock has no transactions, so nothing can be collected safely; use a real server")
    if not isinstance(grace, (int, float)) or isinstance(grace, bool) or not 0 <= grace < 1e9:
        raise QueryError(f"grace is a number of seconds, 0 or more; found {grace!r}")
    run = _Collection(warehouse, dt.timedelta(seconds=grace), dry_run, progress)
    run.end_leases()
    run.mark_tensors()
    run.sweep_tensors()
    run.remove_objects()
    run.mark_segments()
    run.sweep_segments()
    run.sweep_tombstones()
    run.sweep_stores()
    return run.report


class _Collection:
    def __init__(self, warehouse: Warehouse, grace: dt.timedelta, dry_run: bool, progress: Progress | None) -> None:
        self._warehouse, self._mongo, self._grace, self._dry = warehouse, warehouse.index.database, grace, dry_run
        self._progress = progress or (lambda what, count: None)
        self._began = self._now()
        self.report = Collected()

    # Tensors

    def end_leases(self) -> None:
        """Ends the leases of those that were silent for too long: whatever they do with them fails from here on."""
        if not self._dry:
            self._mongo["leases"].update_many(
                {"state": "held", "$expr": {"$lt": ["$until", "$$NOW"]}}, {"$set": {"state": "ended"}}
            )

    def mark_tensors(self) -> None:
        """Live tensors that nothing refers to begin to die."""
        old = {"state": "live", "created": {"$lt": self._now() - self._grace}}
        for batch in self._unused(old):
            self._mark("tensors", batch, {}, _run, "n")

    def sweep_tensors(self) -> None:
        """Dying ones go, if nothing refers to them still, and no save under way may have seen them live."""
        dying = self._mongo["tensors"].find({"state": "dying"}, sort=[("_id", 1)], batch_size=BATCH)
        for batch in _batches(dying):
            # The leases after the tensors: a save that takes its lease later has seen these dying.
            ripe = self._ripe()
            oldest = self._mongo["leases"].find_one({"state": "held"}, sort=[("began", 1)])
            if oldest is not None:
                ripe = min(ripe, oldest["began"] - _MARGIN)
            ready = [doc for doc in batch if doc["dying"] <= ripe]
            self._wait(len(batch) - len(ready), sum(doc["n"] for doc in batch if doc["dying"] > ripe))
            ids = [doc["_id"] for doc in ready]
            unused = {_content(doc) for part in self._unused({"_id": {"$in": ids}}) for doc in part}
            gone = [doc for doc in ready if _content(doc) in unused]
            self._revive("tensors", [doc for doc in ready if _content(doc) not in unused])
            if not self._dry:
                self._name_objects(gone)
                gone = self._write_each("tensors", [DeleteOne(_as_it_was(doc)) for doc in gone], gone, None)
            for doc in gone:
                self._removed(doc, "n", _run(doc))

    def _unused(self, filter: Doc) -> Iterator[list[Doc]]:
        """The tensors of a filter that no document refers to, found by the server."""
        lookups = [
            {"$lookup": {"from": name, "localField": "_id.h", "foreignField": "_tdb.tensors", "let": {"p": "$_id.p"},
                         "pipeline": [{"$match": {"$expr": {"$eq": ["$_tdb.p", "$$p"]}}}, {"$limit": 1},
                                      {"$project": {"_id": 1}}], "as": name}}
            for name in ("params", "architectures")
        ]  # fmt: skip
        stages = [{"$match": dict(filter)}, *lookups, {"$match": {"params": [], "architectures": []}}]
        yield from _batches(self._mongo["tensors"].aggregate(stages, allowDiskUse=True, batchSize=BATCH))

    def _name_objects(self, tensors: Sequence[Doc]) -> None:
        """Before the documents go: a collector that is killed leaves the names of what is to be looked at."""
        keys = {(doc["root"], doc["key"]) for doc in tensors}
        if keys:
            names = [{"root": root, "key": key} for root, key in sorted(keys)]
            self._mongo["leases"].insert_one({"_id": ObjectId(), "state": "ended", "objects": names})

    def remove_objects(self) -> None:
        """Objects of ended leases, and of tensors that have gone, that no tensor names."""
        if self._dry:
            return
        tensors, leases = self._mongo["tensors"], self._mongo["leases"]
        for lease in leases.find({"state": "ended"}, batch_size=10):
            for at in lease.get("objects", ()):
                # In this order: one that is not held any more has entered all that it ever will.
                held = leases.find_one({"state": "held", "objects": at}, {"_id": 1})
                if held is None and tensors.find_one(at, {"_id": 1}) is None:
                    self._warehouse.blobs.store(at["root"]).delete(at["key"])
                    self.report.objects += 1
            leases.delete_one({"_id": lease["_id"], "state": "ended"})

    # Segments

    def mark_segments(self) -> None:
        """Live ones that no sample refers to, and those of writers that never came back, begin to die."""
        silent = self._now() - max(self._grace, dt.timedelta(seconds=SECONDS))
        abandoned = {"state": "writing", "created": {"$lt": silent}}
        for batch in _batches(self._mongo["segments"].find(abandoned, batch_size=BATCH)):
            self._mark("segments", batch, {}, _dataset, "bytes")
        old = {"state": "live", "created": {"$lt": self._now() - self._grace}}
        for unused, _ in partition_by_use(self._warehouse, old):
            # `v` is that of before the look: whoever refers to one afterwards has counted it up.
            self._mark("segments", unused, {"v"}, _dataset, "bytes")

    def sweep_segments(self) -> None:
        """Dying ones go, if no sample refers to them still."""
        segments, ripe = self._mongo["segments"], self._ripe()
        later = {"state": "dying", "dying": {"$gt": ripe}}
        total = {"$group": {"_id": None, "n": {"$sum": 1}, "bytes": {"$sum": "$bytes"}}}
        for doc in segments.aggregate([{"$match": later}, total]):
            self._wait(doc["n"], doc["bytes"])
        ready = {"$or": [{"state": "dying", "dying": {"$lte": ripe}}, {"state": "gone"}]}
        for unused, used in partition_by_use(self._warehouse, ready):
            self._revive("segments", [doc for doc in used if doc["state"] == "dying"])
            gone = [*unused, *(doc for doc in used if doc["state"] == "gone")]
            if not self._dry:
                goes = [UpdateOne(_as_it_was(doc), {"$set": {"state": "gone"}}) for doc in gone]
                gone = self._write_each("segments", goes, gone, "gone")
                for doc in gone:
                    self._warehouse.blobs.store(doc["root"]).delete(doc["key"])
                self.report.objects += len(gone)
                segments.delete_many({"_id": {"$in": [doc["_id"] for doc in gone]}, "state": "gone"})
            for doc in gone:
                self._removed(doc, "bytes", _dataset(doc))

    # Both

    def sweep_tombstones(self) -> None:
        """Those go that nothing in the stores is about any more."""
        if not self._dry:
            deletion_log.sweep(self._warehouse, self._now())

    def sweep_stores(self) -> None:
        """Objects of which only a part was written, by someone who has been silent for too long."""
        silent = max(self._grace.total_seconds(), SECONDS)
        for root in self._warehouse.blobs.roots:
            count, nbytes = self._warehouse.blobs.store(root["id"]).sweep(silent, self._dry)
            self.report.temporary += count
            self.report.temporary_bytes += nbytes

    def _mark(self, name: str, docs: Sequence[Doc], also: Collection[str], by: Callable[[Doc], str], size: str) -> None:
        """Those begin to die that are still in the state they were in, and in the fields `also`."""
        if docs and not self._dry:
            dies = [{"$set": {"state": "dying", "dying": "$$NOW"}}]
            same = [{"_id": doc["_id"], "state": doc["state"], **{key: doc.get(key) for key in also}} for doc in docs]
            answer = self._mongo.command(
                "update", name, updates=[{"q": where, "u": dies} for where in same], maxTimeMS=_MARK_SECONDS * 1000,
                writeConcern={"w": "majority"},
            )  # fmt: skip
            docs = self._in_state(name, docs, answer["n"], "dying")
        for doc in docs:
            self.report.marked += 1
            self.report.marked_bytes += doc[size]
            self._count(by(doc), doc[size])
        self._progress(f"{name} marked", self.report.marked)

    def _revive(self, name: str, docs: Sequence[Doc]) -> None:
        lives = {"$set": {"state": "live"}, "$unset": {"dying": ""}}
        if docs and not self._dry:
            self._mongo[name].bulk_write([UpdateOne(_as_it_was(doc), lives) for doc in docs], ordered=False)
        self.report.revived += len(docs)

    def _write_each(self, name: str, writes: Sequence[Any], docs: list[Doc], state: str | None) -> list[Doc]:
        """Carries out a write on each of some documents; returns those that have come to that state, None for gone."""
        if not docs:
            return []
        done = self._mongo[name].bulk_write(list(writes), ordered=False)
        return self._in_state(name, docs, done.matched_count + done.deleted_count, state)

    def _in_state(self, name: str, docs: Sequence[Doc], count: int, state: str | None) -> list[Doc]:
        """Those of some documents that a write has brought to a state, where it has hit `count` of them."""
        if count == len(docs):
            return list(docs)
        found = self._mongo[name].find({"_id": {"$in": [doc["_id"] for doc in docs]}}, {"state": 1})
        states = {_key(doc): doc["state"] for doc in found}
        return [doc for doc in docs if states.get(_key(doc)) == state]

    def _wait(self, count: int, nbytes: int) -> None:
        self.report.waiting += count
        self.report.waiting_bytes += nbytes

    def _removed(self, doc: Doc, size: str, by: str) -> None:
        self.report.removed += 1
        self.report.removed_bytes += doc[size]
        if "dying" not in doc or doc["dying"] < self._began:  # others were counted as they were marked, just now
            self._count(by, doc[size])
        self._progress("removed", self.report.removed)

    def _count(self, by: str, nbytes: int) -> None:
        self.report.by[by] = self.report.by.get(by, 0) + nbytes

    def _now(self) -> dt.datetime:
        now: dt.datetime = self._mongo.client.admin.command("hello")["localTime"]
        return now

    def _ripe(self) -> dt.datetime:
        return self._now() - self._grace


def _as_it_was(doc: Doc) -> dict[str, Any]:
    """A condition that the state of a document has not been written since it was read."""
    return {"_id": doc["_id"], "state": doc["state"], "v": doc.get("v"), "dying": doc.get("dying")}


def _key(doc: Doc) -> Any:
    return _content(doc) if isinstance(doc["_id"], dict) else doc["_id"]


def _content(tensor: Doc) -> tuple[str, bytes]:
    return tensor["_id"]["p"], bytes(tensor["_id"]["h"])


def _run(tensor: Doc) -> str:
    project = tensor["_id"]["p"]
    if tensor["key"].startswith("architectures/"):
        return f"architectures of {project}"
    run = tensor.get("run")
    return f"parameters of {project}" if run is None else f"run {run} of {project}"


def _dataset(doc: Doc) -> str:
    return f"dataset {doc['dataset']} of {doc['p']}"


def _batches(docs: Any) -> Iterator[list[Doc]]:
    batch: list[Doc] = []
    for doc in docs:
        batch.append(doc)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch

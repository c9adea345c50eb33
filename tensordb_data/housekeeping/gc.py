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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.checkpoint.lease import SECONDS
from tensordb_data.errors import UnsupportedError
from tensordb_data.records.compact import references

if TYPE_CHECKING:
    from tensordb_data.warehouse import TensorDB

_BATCH = 1000
_MARK_SECONDS = 30
_MARGIN = dt.timedelta(seconds=60)
"""More than a command that marks may take: a lease that began so long after a mark has seen it."""

Doc = Mapping[str, Any]
Progress = Callable[[str, int], None]


@dataclass
class Collected:
    """What a collection did, or would do."""

    marked: int = 0
    """Tensors and segments that were found unused, and will be removed when the grace period has passed."""
    marked_bytes: int = 0
    revived: int = 0
    """Marked ones that are in use again."""
    waiting: int = 0
    """Marked ones whose grace period has not passed, or that a running save may still use."""
    waiting_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0
    objects: int = 0
    """Objects that were deleted from the stores."""
    temporary: int = 0
    """What killed writers and savers have left in the middle of an object, removed like the rest."""
    temporary_bytes: int = 0
    by: dict[str, int] = field(default_factory=dict)
    """Bytes that were marked or removed, by dataset, and by the run that stored the tensors; none twice."""


def collect(db: TensorDB, grace: float, dry_run: bool, progress: Progress | None) -> Collected:
    """See `TensorDB.gc`."""
    if not db._full:
        raise UnsupportedError("mongomock has no transactions, so nothing can be collected safely; use a real server")
    if not isinstance(grace, (int, float)) or isinstance(grace, bool) or not 0 <= grace < 1e9:
        raise ValueError(f"grace is a number of seconds, 0 or more; found {grace!r}")
    run = _Collection(db, dt.timedelta(seconds=grace), dry_run, progress)
    run.end_leases()
    run.mark_tensors()
    run.sweep_tensors()
    run.remove_objects()
    run.mark_segments()
    run.sweep_segments()
    run.sweep_stores()
    return run.report


class _Collection:
    def __init__(self, db: TensorDB, grace: dt.timedelta, dry_run: bool, progress: Progress | None) -> None:
        self._db, self._mongo, self._grace, self._dry = db, db._mongo(), grace, dry_run
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
            self._mark("tensors", [(doc, {}) for doc in batch], _run, "n")

    def sweep_tensors(self) -> None:
        """Dying ones go, if nothing refers to them still, and no save under way may have seen them live."""
        tensors = self._mongo["tensors"]
        for batch in _batches(tensors.find({"state": "dying"}).sort("_id", 1)):
            # The leases after the tensors: a save that takes its lease later has seen these dying.
            ripe = self._ripe()
            oldest = self._mongo["leases"].find_one({"state": "held"}, sort=[("began", 1)])
            if oldest is not None:
                ripe = min(ripe, oldest["began"] - _MARGIN)
            ready = [doc for doc in batch if doc["dying"] <= ripe]
            self._wait([doc for doc in batch if doc["dying"] > ripe], "n")
            ids = [doc["_id"] for doc in ready]
            unused = {_content(doc) for part in self._unused({"_id": {"$in": ids}}) for doc in part}
            gone = [doc for doc in ready if _content(doc) in unused]
            if not self._dry:
                self._name_objects(gone)
            for doc in ready:
                same = {"_id": doc["_id"], "state": "dying", "dying": doc["dying"]}
                if _content(doc) not in unused:
                    if not self._dry:
                        tensors.update_one(same, {"$set": {"state": "live"}, "$unset": {"dying": ""}})
                    self.report.revived += 1
                elif self._dry or tensors.delete_one(same).deleted_count:
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
        yield from _batches(self._mongo["tensors"].aggregate(stages, allowDiskUse=True))

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
        for lease in leases.find({"state": "ended"}):
            for at in lease.get("objects", ()):
                # In this order: one that is not held any more has entered all that it ever will.
                held = leases.find_one({"state": "held", "objects": at}, {"_id": 1})
                if held is None and tensors.find_one(at, {"_id": 1}) is None:
                    self._db._store(at["root"]).delete(at["key"])
                    self.report.objects += 1
            leases.delete_one({"_id": lease["_id"], "state": "ended"})

    # Segments

    def mark_segments(self) -> None:
        """Live ones that no sample refers to, and those of writers that never came back, begin to die."""
        silent = self._now() - max(self._grace, dt.timedelta(seconds=SECONDS))
        for batch in _batches(self._mongo["segments"].find({"state": "writing", "created": {"$lt": silent}})):
            self._mark("segments", [(doc, {}) for doc in batch], _dataset, "bytes")
        old = {"state": "live", "created": {"$lt": self._now() - self._grace}}
        for batch in _batches(self._mongo["segments"].find(old).sort([("p", 1), ("dataset", 1)])):
            # `v` was read before this look: whoever refers to one afterwards has counted it up.
            unused = [doc for doc, used in self._use(batch) if not used]
            self._mark("segments", [(doc, {"v": doc.get("v")}) for doc in unused], _dataset, "bytes")

    def sweep_segments(self) -> None:
        """Dying ones go, if no sample refers to them still."""
        segments, ripe = self._mongo["segments"], self._ripe()
        for batch in _batches(segments.find({"state": {"$in": ["dying", "gone"]}}).sort([("p", 1), ("dataset", 1)])):
            ready = [doc for doc in batch if doc["state"] == "gone" or doc["dying"] <= ripe]
            self._wait([doc for doc in batch if doc["state"] != "gone" and doc["dying"] > ripe], "bytes")
            for doc, used in self._use(ready):
                same = {"_id": doc["_id"], "state": doc["state"], "v": doc.get("v"), "dying": doc["dying"]}
                if used and doc["state"] == "dying":
                    if not self._dry:
                        segments.update_one(same, {"$set": {"state": "live"}, "$unset": {"dying": ""}})
                    self.report.revived += 1
                elif self._dry or segments.update_one(same, {"$set": {"state": "gone"}}).matched_count:
                    self._removed(doc, "bytes", _dataset(doc))
                    if not self._dry:
                        self._db._store(doc["root"]).delete(doc["key"])
                        segments.delete_one({"_id": doc["_id"], "state": "gone"})
                        self.report.objects += 1

    def _use(self, segments: Sequence[Doc]) -> Iterator[tuple[Doc, bool]]:
        """Each segment of a batch, and whether samples refer to it."""
        by: dict[tuple[str, str], list[Doc]] = {}
        for doc in segments:
            by.setdefault((doc["p"], doc["dataset"]), []).append(doc)
        for (project, dataset), docs in by.items():
            used = references(self._db, dataset, [doc["_id"] for doc in docs], project)
            yield from ((doc, doc["_id"] in used) for doc in docs)

    # Both

    def sweep_stores(self) -> None:
        """Objects of which only a part was written, by someone who has been silent for too long."""
        silent = max(self._grace.total_seconds(), SECONDS)
        for root in self._db._roots:
            count, nbytes = self._db._store(root["id"]).sweep(silent, self._dry)
            self.report.temporary += count
            self.report.temporary_bytes += nbytes

    def _mark(self, name: str, found: Sequence[tuple[Doc, Doc]], by: Callable[[Doc], str], size: str) -> None:
        for doc, same in found:
            dies = [{"$set": {"state": "dying", "dying": "$$NOW"}}]
            where = {"_id": doc["_id"], "state": doc["state"], **same}
            if self._dry or self._update(name, where, dies):
                self.report.marked += 1
                self.report.marked_bytes += doc[size]
                self._count(by(doc), doc[size])
        self._progress(f"{name} marked", self.report.marked)

    def _update(self, name: str, where: Doc, update: Sequence[Doc]) -> bool:
        answer = self._mongo.command(
            "update", name, updates=[{"q": dict(where), "u": list(update)}], maxTimeMS=_MARK_SECONDS * 1000,
            writeConcern={"w": "majority"},
        )  # fmt: skip
        return bool(answer["n"])

    def _wait(self, docs: Sequence[Doc], size: str) -> None:
        self.report.waiting += len(docs)
        self.report.waiting_bytes += sum(doc[size] for doc in docs)

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
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch

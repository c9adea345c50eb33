"""Garbage collection, by the states of segments and tensors: writing, live, dying, gone.

A gc marks live tensors to which no document refers, live segments to which no sample refers, and segments that have
been in `writing` for longer than any writer takes. It removes what is still unused when the grace period has passed,
and nothing while a backup runs.
First the document leaves the state `dying`, by a write that conflicts with one that makes it live again. Then the
object is removed.

It is safe beside others. A freeze holds a lease as a backup does, and makes the segments of its set live in the
transaction that names them. A commit writes the state of its segment in the transaction that inserts the samples. A
save holds a lease, see `tensors.lease`. A reader that finds a blob gone asks where it is now. Of two gc, each step is
one write on condition of the state before it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from bson import ObjectId
from pymongo import DeleteOne, UpdateOne

from tensordb_data.common.chunks import batched
from tensordb_data.common.html import Report
from tensordb_data.errors import QueryError, UnsupportedError
from tensordb_data.housekeeping import deletion_log
from tensordb_data.housekeeping.feedback import drop_feedback_of_deleted
from tensordb_data.housekeeping.segment_usage import BATCH, partition_by_use
from tensordb_data.tensors.lease import SECONDS, is_backed_up
from tensordb_data.warehouse.upgrade import STOP

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents.blobs import SegmentDocument, TensorDocument

_USERS = ("params", "architectures", "logs", "frozen")
"""The collections whose documents refer to tensors."""
_MARK_SECONDS = 30
_MARGIN = dt.timedelta(seconds=60)
"""Longer than a command that marks. A lease that began so long after a mark has seen the mark."""

Doc = Mapping[str, Any]
D = TypeVar("D", bound=Mapping[str, Any])
Progress = Callable[[str, int], None]


@dataclass
class Collected(Report):
    """What a gc did, or would do in a dry run."""

    marked: int = 0
    """Tensors and segments that are unused. A later gc removes them when the grace period has passed."""
    marked_bytes: int = 0
    revived: int = 0
    """Tensors and segments that were marked, and are in use again."""
    waiting: int = 0
    """Tensors and segments that stay marked: their grace period has not passed, or a running save or backup may use
    them."""
    waiting_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0
    objects: int = 0
    """Objects that were deleted from the stores."""
    temporary: int = 0
    """Unfinished objects of killed writers and saves, which were removed too."""
    temporary_bytes: int = 0
    left: int = 0
    """Unused objects that were left alone: the index names a key that is not of the form of ours, or a place that this
    client was not told of (see `roots=`)."""
    feedback: int = 0
    """Deleted samples whose feedback was removed, counted for each number of each run."""
    by: dict[str, int] = field(default_factory=dict)
    """Bytes that were marked or removed, by dataset, and by the run that stored the tensors. No byte counts twice."""


def collect(warehouse: Warehouse, grace: float, dry_run: bool, progress: Progress | None) -> Collected:
    """See `TensorDB.gc`."""
    if not warehouse.index.is_server:
        raise UnsupportedError("mongomock has no transactions, so nothing can be collected safely; use a real server")
    if not isinstance(grace, (int, float)) or isinstance(grace, bool) or not 0 <= grace < 1e9:
        raise QueryError(f"grace is a number of seconds, 0 or more; found {grace!r}")
    warehouse.index.make(*_USERS)  # with the indexes by which the users of a tensor are found
    run = _Collection(warehouse, dt.timedelta(seconds=grace), dry_run, progress)
    run.end_leases()
    run.mark_tensors()
    run.sweep_tensors()
    run.remove_objects()
    run.mark_segments()
    run.sweep_segments()
    run.sweep_tombstones()
    run.sweep_stores()
    run.report.feedback = drop_feedback_of_deleted(warehouse, dry_run)
    return run.report


class _Collection:
    def __init__(self, warehouse: Warehouse, grace: dt.timedelta, dry_run: bool, progress: Progress | None) -> None:
        self._warehouse, self._mongo, self._grace, self._dry = warehouse, warehouse.index.database, grace, dry_run
        self._progress = progress or (lambda what, count: None)
        self._began = self._now()
        self.report = Collected()

    # Tensors

    def end_leases(self) -> None:
        """End the leases of saves that were silent for too long. Their further transactions fail."""
        if not self._dry:
            self._mongo["leases"].update_many(
                {"state": "held", "$expr": {"$lt": ["$until", "$$NOW"]}}, {"$set": {"state": "ended"}}
            )

    def mark_tensors(self) -> None:
        """Mark live tensors to which nothing refers."""
        old = {"state": "live", "created": {"$lt": self._now() - self._grace}}
        for batch in self._unused(old):
            self._mark("tensors", batch, {}, _run, "n")

    def sweep_tensors(self) -> None:
        """Remove dying tensors to which nothing refers, unless a running save may have seen them live."""
        dying = self._mongo["tensors"].find({"state": "dying"}, sort=[("_id", 1)], batch_size=BATCH)
        for batch in batched(dying, BATCH):
            # The leases after the tensors: a save that takes its lease later has seen these dying.
            ripe = self._ripe()
            oldest = self._mongo["leases"].find_one({"state": "held"}, sort=[("began", 1)])
            if oldest is not None:
                ripe = min(ripe, oldest["began"] - _MARGIN)
            ready = [] if is_backed_up(self._warehouse) else [doc for doc in batch if doc["dying"] <= ripe]
            self._wait(len(batch) - len(ready), sum(doc["n"] for doc in batch) - sum(doc["n"] for doc in ready))
            ready = self._ours(ready)
            ids = [doc["_id"] for doc in ready]
            unused = {_content(doc) for part in self._unused({"_id": {"$in": ids}}) for doc in part}
            gone = [doc for doc in ready if _content(doc) in unused]
            self._revive("tensors", [doc for doc in ready if _content(doc) not in unused])
            if not self._dry:
                self._name_objects(gone)
                gone = self._write_each("tensors", [DeleteOne(_as_it_was(doc)) for doc in gone], gone, None)
            for doc in gone:
                self._removed(doc, "n", _run(doc))

    def _unused(self, filter: Doc) -> Iterator[list[TensorDocument]]:
        """The tensors of a filter to which no document refers."""
        lookups = [
            {"$lookup": {"from": name, "localField": "_id.h", "foreignField": "_tdb.tensors", "let": {"p": "$_id.p"},
                         "pipeline": [{"$match": {"$expr": {"$eq": ["$_tdb.p", "$$p"]}}}, {"$limit": 1},
                                      {"$project": {"_id": 1}}], "as": name}}
            for name in _USERS
        ]  # fmt: skip
        stages = [{"$match": dict(filter)}, *lookups, {"$match": {name: [] for name in _USERS}}]
        yield from batched(self._mongo["tensors"].aggregate(stages, allowDiskUse=True, batchSize=BATCH), BATCH)

    def _name_objects(self, tensors: Sequence[TensorDocument]) -> None:
        """Note the objects of tensors that are about to be removed, so that after a kill the next gc looks at them."""
        keys = {(doc["root"], doc["key"]) for doc in tensors}
        if keys:
            names = [{"root": root, "key": key} for root, key in sorted(keys)]
            self._mongo["leases"].insert_one({"_id": ObjectId(), "state": "ended", "objects": names})

    def remove_objects(self) -> None:
        """Remove objects of ended leases and of removed tensors, if no tensor names them."""
        if self._dry:
            return
        tensors, leases = self._mongo["tensors"], self._mongo["leases"]
        for lease in leases.find({"state": "ended", "_id": {"$ne": STOP}}, batch_size=10):
            named = lease.get("objects", ())
            ours = self._ours(named)
            for at in ours:
                # In this order: a lease that is not held any more has entered all its tensors.
                held = leases.find_one({"state": "held", "objects": at}, {"_id": 1})
                if held is None and tensors.find_one(at, {"_id": 1}) is None:
                    self._warehouse.blobs.delete(at["root"], at["key"])
                    self.report.objects += 1
            if len(ours) == len(named):
                leases.delete_one({"_id": lease["_id"], "state": "ended"})

    # Segments

    def mark_segments(self) -> None:
        """Mark live segments that neither samples nor frozen sets use, and those of writers silent for too long."""
        silent = self._now() - max(self._grace, dt.timedelta(seconds=SECONDS))
        abandoned = {"state": "writing", "created": {"$lt": silent}}
        for batch in batched(self._mongo["segments"].find(abandoned, batch_size=BATCH), BATCH):
            self._mark("segments", batch, {}, _dataset, "bytes")
        old = {"state": "live", "created": {"$lt": self._now() - self._grace}}
        for unused, _ in partition_by_use(self._warehouse, old):
            # `v` was read before the samples: whoever has referred to a segment since has incremented it.
            self._mark("segments", unused, {"v"}, _dataset, "bytes")

    def sweep_segments(self) -> None:
        """Remove dying segments to which no sample and no frozen set refers."""
        segments, ripe = self._mongo["segments"], self._ripe()
        later = {"state": "dying", "dying": {"$gt": ripe}}
        total = {"$group": {"_id": None, "n": {"$sum": 1}, "bytes": {"$sum": "$bytes"}}}
        for doc in segments.aggregate([{"$match": later}, total]):
            self._wait(doc["n"], doc["bytes"])
        ready = {"$or": [{"state": "dying", "dying": {"$lte": ripe}}, {"state": "gone"}]}
        for unused, used in partition_by_use(self._warehouse, ready):
            self._revive("segments", [doc for doc in used if doc["state"] == "dying"])
            gone = self._ours([*unused, *(doc for doc in used if doc["state"] == "gone")], "segments/{}")
            held = [doc for doc in gone if doc["state"] == "dying" and self._is_planned(doc)]
            self._wait(len(held), sum(doc["bytes"] for doc in held))
            gone = [doc for doc in gone if doc not in held]
            if is_backed_up(self._warehouse):
                self._wait(len(gone), sum(doc["bytes"] for doc in gone))
                continue
            if not self._dry:
                goes = [UpdateOne(_as_it_was(doc), {"$set": {"state": "gone"}}) for doc in gone]
                gone = self._write_each("segments", goes, gone, "gone")
                for doc in gone:
                    self._warehouse.blobs.delete(doc["root"], doc["key"])
                self.report.objects += len(gone)
                segments.delete_many({"_id": {"$in": [doc["_id"] for doc in gone]}, "state": "gone"})
            for doc in gone:
                self._removed(doc, "bytes", _dataset(doc))

    def _is_planned(self, segment: SegmentDocument) -> bool:
        """Whether a plan that is stored with a parameter set is older than an update that has replaced a blob in it.

        Sets of earlier versions do not say how old their plans are.
        """
        if (replaced := segment.get("replaced")) is None:
            return False
        older = {"$elemMatch": {"d": segment["dataset"], "m": {"$lt": replaced}}}
        plans = {"$or": [{"_tdb.plans": older}, {"_tdb.plans": {"$exists": False}}]}
        stored = {"_tdb.p": segment["p"], "_tdb.parts": "plans", **plans}
        return self._mongo["params"].find_one(stored, {"_id": 1}) is not None

    # Both

    def sweep_tombstones(self) -> None:
        """Remove tombstones whose entities have no blobs left."""
        if not (self._dry or is_backed_up(self._warehouse)):
            self.report.left += deletion_log.sweep(self._warehouse, self._now())

    def sweep_stores(self) -> None:
        """Remove objects of which only a part was written, by processes that were silent for too long."""
        silent = max(self._grace.total_seconds(), SECONDS)
        for root in filter(lambda root: self._warehouse.blobs.owns(root["id"]), self._warehouse.blobs.roots):
            count, nbytes = self._warehouse.blobs.store(root["id"]).sweep(silent, self._dry)
            self.report.temporary += count
            self.report.temporary_bytes += nbytes

    def _ours(self, docs: Sequence[D], form: str | None = None) -> list[D]:
        """Those of some documents whose object may be deleted. Their key may have to be this form of their `_id`."""
        blobs = self._warehouse.blobs
        ours = [
            doc
            for doc in docs
            if blobs.can_delete(doc.get("root"), doc.get("key"))
            and (form is None or doc["key"] == form.format(doc["_id"]))
        ]
        self.report.left += len(docs) - len(ours)
        return ours

    def _mark(self, name: str, docs: Sequence[Doc], also: Collection[str], by: Callable[[Any], str], size: str) -> None:
        """Mark documents as dying, if their state and the fields `also` have not changed."""
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

    def _write_each(self, name: str, writes: Sequence[Any], docs: list[D], state: str | None) -> list[D]:
        """Carry out a write on each document; returns those that now have this state, or with None, that are gone."""
        if not docs:
            return []
        done = self._mongo[name].bulk_write(list(writes), ordered=False)
        return self._in_state(name, docs, done.matched_count + done.deleted_count, state)

    def _in_state(self, name: str, docs: Sequence[D], count: int, state: str | None) -> list[D]:
        """The documents that a write has brought to a state, if it has matched `count` of them."""
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
    """The filter of a document whose state has not been written since it was read."""
    return {"_id": doc["_id"], "state": doc["state"], "v": doc.get("v"), "dying": doc.get("dying")}


def _key(doc: Doc) -> Any:
    return _content(doc) if isinstance(doc["_id"], dict) else doc["_id"]


def _content(tensor: TensorDocument | Doc) -> tuple[str, bytes]:
    return tensor["_id"]["p"], bytes(tensor["_id"]["h"])


def _run(tensor: TensorDocument) -> str:
    project = tensor["_id"]["p"]
    for folder, what in (("architectures/", "architectures"), ("frozen/", "frozen sets")):
        if tensor["key"].startswith(folder):
            return f"{what} of {project}"
    run = tensor.get("run")
    return f"parameters of {project}" if run is None else f"run {run} of {project}"


def _dataset(doc: SegmentDocument) -> str:
    return f"dataset {doc['dataset']} of {doc['p']}"

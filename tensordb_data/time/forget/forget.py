"""Forget samples. A record names them first. Each step may be done again, so the record ends what was stopped."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import Binary, ObjectId

from tensordb_data.blobs.segments.references import BlobRefs, references_of
from tensordb_data.common.chunks import chunks
from tensordb_data.errors import BusyError, QueryError, UnsupportedError
from tensordb_data.frozen.frozen_set import of_doc, segments_in_sets
from tensordb_data.mongo.retry import read_all
from tensordb_data.query.query import Query
from tensordb_data.samples.changes.entries import author
from tensordb_data.samples.compact import staying
from tensordb_data.samples.delete import delete_samples
from tensordb_data.tensors.lease import is_backed_up
from tensordb_data.time.forget.report import Forgotten
from tensordb_data.time.forget.segments import holding, rewrite
from tensordb_data.time.forget.traces import blank_changes, clean_tombstones, drop_feedback, empty_cache, renew_words
from tensordb_data.time.ids import matched, packed_ids
from tensordb_data.time.seen import scored_on, trained_on
from tensordb_data.warehouse.bound_query import BoundQuery

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

MOST = 500_000
"""Samples of one forget: the record that names them is one document."""
_CHUNK = 10_000
_ELSEWHERE = (
    "samples that were deleted before: segments have their documents until they are compacted",
    "frozen sets that were dropped, and what a killed freeze or compaction has written, until a gc",
    "plans that ranks and workers were sent: the database has their ids and index fields for 14 days",
    "backups that were made before: they have the samples as they were",
    "caches of other hosts, until they are emptied",
    "feedback that other processes have not stored yet: a gc removes it",
    "streams that run: they leave them out within about a second, and may deliver what they have read before",
    "files of the server (oplog, journal, free pages), until they are written over or `compact` is run",
)

Doc = Mapping[str, Any]


def forget(bound: BoundQuery, reason: str, dry_run: bool) -> Forgotten:
    """See `Data.forget`."""
    warehouse = bound.warehouse
    if not isinstance(reason, str) or not 0 < len(reason) <= 200:
        raise QueryError(f"reason is a text of 1 to 200 characters, such as 'GDPR 2026-114'; found {reason!r:.100}")
    if not warehouse.index.is_server:
        raise UnsupportedError("mongomock has no transactions, so nothing can be forgotten safely; use a real server")
    if bound.query.frozen is not None:
        raise QueryError("a frozen set cannot be forgotten: select its samples in their dataset, and drop the set")
    if is_backed_up(warehouse):
        raise BusyError("a backup or a freeze runs, so nothing can be removed: call forget when it has ended")
    report = Forgotten(not_reached=list(_ELSEWHERE))
    if not dry_run:
        for record in read_all(warehouse.index["forgotten"].find({"p": warehouse.project, "done": False})):
            _carry_out(warehouse, record, report)
    found, held = _record(bound, reason)
    if found is None:
        return report
    if held and not dry_run:
        raise QueryError(held)
    if dry_run:
        report.not_reached += [held] if held else []
        _note(found, report)
        report.segments = sum(len(holding(warehouse, of["d"], _ids([of]), found["k"])) for of in found["ids"])
        return report
    warehouse.index["forgotten"].insert_one(dict(found))
    _carry_out(warehouse, found, report)
    return report


def _record(bound: BoundQuery, reason: str) -> tuple[Doc | None, str | None]:
    """The record of what is to be done, None if no sample is selected; and which frozen sets are in the way, if any.

    Raises:
        QueryError: They are too many.
    """
    warehouse = bound.warehouse
    by_dataset: dict[str, list[ObjectId]] = {}
    parts: list[Any] = []
    for doc in read_all(bound.cursor({"dataset": 1, "_tdb.b": 1})):
        by_dataset.setdefault(doc["dataset"], []).append(doc["_id"])
        for part in references_of(doc).values():
            parts += [one for one in (part, part.get("was")) if isinstance(one, Mapping) and "k" in one]
    n = sum(map(len, by_dataset.values()))
    if not n:
        return None, None
    if n > MOST:
        raise QueryError(f"expected at most {MOST:,} samples at a time, found {n:,}: forget them in parts")
    known = list({part["k"] for part in parts})
    held = _in_sets(warehouse, by_dataset, known)
    names = sorted(by_dataset)
    stored = {"_tdb.p": warehouse.project, "_tdb.parts": "plans"}
    of = {"$or": [{"_tdb.plans.d": {"$in": names}}, {"_tdb.plans": {"$exists": False}}]}
    plans = read_all(warehouse.index["params"].find({**stored, **of}, {"_id": 1}))
    return {
        "_id": ObjectId(), "p": warehouse.project, "at": dt.datetime.now(dt.timezone.utc), "reason": reason,
        "by": author(warehouse), "n": n, "done": False, "k": known, "files": _files(warehouse, parts),
        "ids": [{"d": name, "v": Binary(b"".join(id.binary for id in by_dataset[name]))} for name in names],
        "trained_on": [doc["_id"] for doc in trained_on(bound)], "scored_on": [doc["_id"] for doc in scored_on(bound)],
        "plans": [doc["_id"] for doc in plans],
    }, held  # fmt: skip


def _in_sets(warehouse: Warehouse, by_dataset: Mapping[str, Sequence[ObjectId]], known: list[ObjectId]) -> str | None:
    """Which frozen sets have samples, or others whose blobs are in the same segments."""
    sets = read_all(warehouse.index["frozen"].find({"_tdb.p": warehouse.project}))
    if not sets:
        return None
    ids = packed_ids([id for some in by_dataset.values() for id in some])
    have = [
        doc["name"]
        for doc in sets
        if any(len(matched(ids, block.ids)[0]) for block in of_doc(warehouse, doc).blocks((), ()))
    ]
    if have:
        return f"the frozen sets {have} have some of these samples: drop them first, then forget"
    for dataset, some in by_dataset.items():
        held = segments_in_sets(warehouse, holding(warehouse, dataset, set(some), known))
        if held:
            named = warehouse.index["frozen_segments"].find({"k": {"$in": list(held)}}, {"set": 1})
            of = {doc["set"] for doc in named}
            return (
                f"the frozen sets {sorted(doc['name'] for doc in sets if doc['_id'] in of)} have other samples in the"
                " segments of these, which cannot be rewritten: drop them first, then forget, then freeze again"
            )

    return None


def _files(warehouse: Warehouse, parts: Sequence[Any]) -> list[str]:
    stay = staying(warehouse, list({part["k"] for part in parts}))
    there = [part for part in parts if part["k"] in stay]
    places = warehouse.blobs.reader.foreign(BlobRefs.from_docs(there)) if there else []
    return sorted({f"{place.file.root}/{place.file.key}" for place in places if place is not None})


def _carry_out(warehouse: Warehouse, record: Doc, report: Forgotten) -> None:
    for of in record["ids"]:
        dataset, ids = _name_now(warehouse, of["d"]), _ids([of])
        for some in chunks(sorted(ids), _CHUNK):
            delete_samples(BoundQuery(warehouse, Query("data", {"dataset": dataset, "_id": {"$in": list(some)}})))
        # Again, since what began before may have written one meanwhile.
        while found := holding(warehouse, dataset, ids, record["k"]):
            rewrite(warehouse, dataset, found, report)
        report.changes += blank_changes(warehouse, dataset, ids)
        renew_words(warehouse, dataset)
    every = _ids(record["ids"])
    report.feedback += drop_feedback(warehouse, every)
    report.tombstones += clean_tombstones(warehouse, every)
    report.cached += empty_cache(warehouse)
    _note(record, report)
    done = {"$set": {"done": True}, "$unset": {"ids": "", "k": "", "files": ""}}
    warehouse.index["forgotten"].update_one({"_id": record["_id"]}, done)


def _name_now(warehouse: Warehouse, name: str) -> str:
    """The name of a dataset that may have been renamed since a forget was stopped."""
    datasets, seen = warehouse.index["datasets"], {name}
    while datasets.find_one({"_id": warehouse.datasets.id(name)}, {"_id": 1}) is None:
        found = datasets.find_one({"_id.p": warehouse.project, "was": name}, {"_id": 1})
        if found is None or found["_id"]["d"] in seen:  # it was dropped; its segments have its name
            return name
        name = found["_id"]["d"]
        seen.add(name)
    return name


def _note(record: Doc, report: Forgotten) -> None:
    report.samples += record["n"]
    for name in ("files", "trained_on", "scored_on", "plans"):  # of two records, when one was stopped before
        setattr(report, name, list(dict.fromkeys([*getattr(report, name), *record[name]])))


def _ids(parts: Sequence[Doc]) -> set[ObjectId]:
    data = b"".join(bytes(part["v"]) for part in parts)
    return {ObjectId(data[at : at + 12]) for at in range(0, len(data), 12)}

"""What is stored of samples beside them: the log of changes, search words, feedback, tombstones and caches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import bson
import numpy as np
import zstandard
from bson import Binary, ObjectId

from tensordb_data.common.chunks import batched
from tensordb_data.common.zstd import expand
from tensordb_data.errors import BusyError, StorageError
from tensordb_data.feedback.buffer import flush_feedback
from tensordb_data.feedback.store import all_numbers, merge_chunks, read_moments
from tensordb_data.mongo.retry import read_all
from tensordb_data.samples.changes.entries import FEW, documents
from tensordb_data.search.index import SearchIndex, words_of
from tensordb_data.warehouse import deletion_log

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_BLANKED = "values of samples that were forgotten"
_CHUNK = 1000
_CACHED = {".seg", ".plan", ".newest", ".f64"}

Doc = dict[str, Any]


def blank_changes(warehouse: Warehouse, dataset: str, ids: set[ObjectId]) -> int:
    """Take samples and their values out of the log of changes. Returns of how many entries."""
    count = 0
    named = {
        "p": warehouse.project,
        "dataset": dataset,
        "$or": [{"few": {"$exists": True}}, {"ids": {"$exists": True}}],
    }
    for doc in read_all(warehouse.index["changes"].find(named, {"few": 1, "ids": 1})):
        if not ids.isdisjoint(doc.get("few", doc.get("ids", ()))):
            warehouse.index.transaction(_blanking(warehouse, dataset, doc["_id"], ids))
            count += 1
    return count


def _blanking(warehouse: Warehouse, dataset: str, id: ObjectId, ids: set[ObjectId]) -> Callable[[Any], None]:
    def body(session: Any) -> None:
        index = warehouse.index
        doc = index["changes"].find_one({"_id": id}, session=session)
        if doc is None:  # pruned meanwhile
            return
        listed: list[ObjectId] = doc.get("few") or doc.get("ids") or []
        stay = [one not in ids for one in listed]
        left = [one for one, stays in zip(listed, stay, strict=True) if stays]
        new: Doc = {"cut": "; ".join(filter(None, [doc.get("cut"), _BLANKED]))}
        gone = {} if left else {name: "" for name in ("u", "few", "ids", "s", "old", "new") if name in doc}
        if left:
            new["few" if "few" in doc else "ids"] = left
            new.update({name: _without(doc[name], ids) for name in ("old", "new") if name in doc})
            if "s" in doc:
                new["s"] = Binary(np.frombuffer(doc["s"], "<i8")[np.array(stay)].tobytes())
        elif len(listed) <= FEW:
            new["few"], gone = [], {name: "" for name in gone if name != "few"}
        index["changes"].update_one({"_id": id}, {"$set": new, **({"$unset": gone} if gone else {})}, session=session)
        if doc.get("k") == "delete" and isinstance(doc.get("m"), int):
            # A plan of before can no longer be told that these were deleted.
            about = {"_id": warehouse.datasets.id(dataset), "stamps": {"$exists": True}}
            index["datasets"].update_one(about, {"$max": {"stamps.since": doc["m"]}}, session=session)

    return body


def _without(packed: bytes, ids: set[ObjectId]) -> bytes:
    """The values of an entry without those of some samples."""
    data = bytes(expand(packed))
    kept = [data[low:high] for low, high in documents(data) if bson.decode(data[low:high]).get("_id") not in ids]
    blanked: bytes = Binary(zstandard.ZstdCompressor(level=1).compress(b"".join(kept)))
    return blanked


def renew_words(warehouse: Warehouse, dataset: str) -> None:
    """Make the search entries of a dataset anew, from the samples that it has."""
    others = [
        doc["_id"]["d"] for doc in read_all(warehouse.index["datasets"].find({"_id.p": warehouse.project}, {"_id": 1}))
    ]
    # With those under names that no dataset has any more: it may have had such a name.
    names = {"$nin": [name for name in others if name != dataset]}
    warehouse.index["search"].delete_many({"p": warehouse.project, "k": "data", "n": names})
    entries = SearchIndex(warehouse, "data")  # one that remembers no entry
    samples = warehouse.index["data"].find({"_tdb.p": warehouse.project, "dataset": dataset}, {"_tdb": 0})
    for docs in batched(samples, _CHUNK):
        for group in _alike(docs):
            entries.add_groups(*words_of("data", [{"tags": [], **doc} for doc in group]))


def _alike(docs: Iterable[Doc]) -> Iterable[list[Doc]]:
    """Documents by their fields that are texts, for `words_of` looks for these in the first and the last one."""
    found: dict[tuple[str, ...], list[Doc]] = {}
    for doc in docs:
        found.setdefault(tuple(sorted(name for name in doc if type(doc[name]) is str)), []).append(doc)
    return found.values()


def drop_feedback(warehouse: Warehouse, ids: set[ObjectId]) -> int:
    """Remove what runs have told of samples. Returns from how many numbers.

    Raises:
        BusyError: Another process merges the same feedback.
    """
    flush_feedback(warehouse)  # what this process has not stored yet
    gone, count = np.array([id.binary for id in ids], "S12"), 0
    for run, name in all_numbers(warehouse):
        if not np.isin(read_moments(warehouse, run, name)[0].ids, gone).any():
            continue
        if not merge_chunks(warehouse, run, name, lambda found: ~np.isin(found, gone)):
            raise BusyError(f"the feedback {name!r} of run {run!r} is merged by another process: call forget again")
        count += 1
    return count


def clean_tombstones(warehouse: Warehouse, ids: set[ObjectId]) -> int:
    """Take samples out of the tombstones, when no segment has them any more. Returns of how many.

    Raises:
        StorageError: The blob store failed, or a tombstone is damaged.
    """
    count = 0
    for doc in read_all(warehouse.index["tombstones"].find({"p": warehouse.project, "c": "data"})):
        store = warehouse.blobs.store(doc["root"])
        try:
            found = deletion_log.read(store, doc["key"])
        except StorageError:
            if any(key == doc["key"] for key, _ in store.list(deletion_log.FOLDER)):
                raise
            continue  # it is not written yet, or whoever wrote or removed it was killed: it names nothing
        if all(ids.isdisjoint(each.ids) for each in found.deletions):
            continue
        left = []
        for each in found.deletions:
            rows = [row for row, id in enumerate(each.ids) if id not in ids]
            if rows:
                numbers = [each.sequence[row] for row in rows] if each.sequence else []
                left.append(replace(each, ids=[each.ids[row] for row in rows], sequence=numbers))
        if left:
            new = deletion_log.write(warehouse, replace(found, deletions=left), {})
            warehouse.index["tombstones"].update_one({"_id": new}, {"$set": {"state": "live"}})
        deletion_log.remove(warehouse, doc)
        count += 1
    return count


def empty_cache(warehouse: Warehouse) -> int:
    """Remove the files of the cache of this host that hold samples or plans. Returns how many.

    Who has one open goes on with it.
    """
    count, folder = 0, warehouse.cache_dir
    for path in folder.rglob("*") if folder is not None and folder.is_dir() else ():
        if path.suffix in _CACHED and path.is_file() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                count += 1
    return count

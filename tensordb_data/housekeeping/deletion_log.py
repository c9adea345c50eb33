"""Clean up tombstones in a gc: remove those whose entities have no blobs left, and merge small ones."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import StorageError
from tensordb_data.tensors.lease import SECONDS
from tensordb_data.warehouse.deletion_log import FOLDER, Deletion, Tombstone, read, remove, write

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_BATCH = 1000
MANY = 100
"""Small tombstones of one dataset, or of the sets of a project, that are merged into one."""
_SMALL = 10_000  # entities
_LATE = dt.timedelta(seconds=SECONDS)  # the longest time between a read and the write of a compaction

Doc = Mapping[str, Any]


def sweep(warehouse: Warehouse, now: dt.datetime) -> int:
    """Remove tombstones whose entities have no blobs left, and merge small ones.

    Returns:
        How many were left alone, because their objects are not this client's.
    """
    left = 0
    settled = {"$or": [{"state": "live"}, {"created": {"$lt": now - _LATE}}]}
    order = [("p", 1), ("c", 1), ("dataset", 1), ("_id", 1)]
    scope: tuple[Any, ...] | None = None
    first: dt.datetime | None = None
    small: list[Doc] = []
    for doc in warehouse.index["tombstones"].find(settled, sort=order, batch_size=_BATCH):
        if doc.get("key") != f"{FOLDER}{doc['_id']}" or not warehouse.blobs.can_delete(doc.get("root"), doc["key"]):
            left += 1
            continue
        if (doc["p"], doc["c"], doc["dataset"]) != scope:
            scope, small = (doc["p"], doc["c"], doc["dataset"]), []
            first = _first_segment(warehouse, doc) if doc["c"] == "data" else None
        if _has_no_blobs(warehouse, doc, first):
            remove(warehouse, doc)
        elif doc["n"] <= _SMALL:
            small.append(doc)
            if len(small) == MANY:
                _merge(warehouse, small)
                small = []
    return left


def _first_segment(warehouse: Warehouse, doc: Doc) -> dt.datetime | None:
    """The creation time of the oldest segment of the dataset."""
    scope = {"p": doc["p"], "dataset": doc["dataset"]}
    found = warehouse.index["segments"].find_one(scope, {"created": 1}, sort=[("created", 1)])
    return None if found is None else found["created"]


def _has_no_blobs(warehouse: Warehouse, doc: Doc, first: dt.datetime | None) -> bool:
    """Whether no object in the stores holds the entities of a tombstone."""
    if doc["c"] == "data":
        return first is None or bool(first > doc["created"] + _LATE)
    tensors = warehouse.index["tensors"]
    return not any(tensors.find_one({"key": at["key"], "root": at["root"]}, {"_id": 1}) for at in doc["objects"])


def _merge(warehouse: Warehouse, docs: Sequence[Doc]) -> None:
    deletions: list[Deletion] = []
    whole: list[Doc] = []
    for doc in docs:
        with contextlib.suppress(StorageError):  # it is damaged, or another gc has removed it
            deletions += read(warehouse.blobs.store(doc["root"]), doc["key"]).deletions
            whole.append(doc)
    objects = {(at["root"], at["key"]) for doc in whole for at in doc.get("objects", ())}
    about = {"objects": [{"root": root, "key": key} for root, key in sorted(objects)]} if objects else {}
    id = write(warehouse, Tombstone(docs[0]["p"], docs[0]["c"], docs[0]["dataset"], deletions), about)
    warehouse.index["tombstones"].update_one({"_id": id}, {"$set": {"state": "live"}})
    for doc in whole:
        remove(warehouse, doc)

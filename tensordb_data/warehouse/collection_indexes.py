"""The collections of a warehouse and their MongoDB indexes. Each is made when it is first used."""

from __future__ import annotations

import contextlib
from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import OperationFailure

from tensordb_data.mongo.errors import UNAUTHORIZED

SEQUENCE = "sequence"
"""The name of the index of samples by sequence number."""
UNIQUE = "_tdb.p_1_dataset_1__tdb.s_1"
"""The name of the one that earlier versions have made in its place, which is unique."""

_CONFLICTS = (85, 86)  # a server takes no second index of the same fields

_UP, _DOWN = ASCENDING, DESCENDING
INDEXES: dict[str, list[IndexModel]] = {
    "data": [
        # A unique one would cost each insert a look. A counter in the transaction of the commit keeps numbers apart.
        IndexModel([("_tdb.p", _UP), ("dataset", _UP), ("_tdb.s", _UP)], name=SEQUENCE),
        IndexModel([("_tdb.p", _UP), ("dataset", _UP), ("label", _UP), ("_tdb.s", _UP)]),
        IndexModel([("_tdb.p", _UP), ("tags", _UP)]),
        # Samples of a file of a source, and those whose `_id` an earlier version has made. See ingest/.
        IndexModel(
            [("_tdb.p", _UP), ("dataset", _UP), ("_tdb.src.f", _UP)],
            partialFilterExpression={"_tdb.src.f": {"$exists": True}},
        ),
        IndexModel([("_tdb.p", _UP), ("_tdb.src.a", _UP)], partialFilterExpression={"_tdb.src.a": {"$exists": True}}),
        # Samples that a mutation has changed, see stream/plan/patch.py.
        IndexModel(
            [("_tdb.p", _UP), ("dataset", _UP), ("_tdb.m", _UP)],
            partialFilterExpression={"_tdb.m": {"$exists": True}},
        ),
    ],
    # The log of changes, see samples/changes/: by dataset, by sample, and the entries with samples by the thousand.
    "changes": [
        IndexModel([("p", _UP), ("dataset", _UP), ("m", _UP)]),
        IndexModel([("p", _UP), ("few", _UP)], partialFilterExpression={"few": {"$exists": True}}),
        IndexModel([("p", _UP), ("dataset", _UP), ("_id", _UP)], partialFilterExpression={"ids": {"$exists": True}}),
        IndexModel([("p", _UP), ("dataset", _UP), ("lo", _UP)], partialFilterExpression={"lo": {"$exists": True}}),
    ],
    # The files of sources that are in, see ingest/file_log.py.
    "sources": [IndexModel([("p", _UP), ("dataset", _UP), ("s", _UP)])],
    "params": [
        IndexModel([("_tdb.tensors", _UP)]),
        IndexModel([("_tdb.p", _UP), ("run", _UP), ("step", _DOWN), ("_id", _UP)]),
        IndexModel([("_tdb.p", _UP), ("tags", _UP)]),
    ],
    "tensors": [IndexModel([("key", _UP)]), IndexModel([("state", _UP), ("dying", _UP)])],
    "leases": [
        IndexModel([("state", _UP), ("began", _UP)]),
        # Those of processes that save a set together.
        IndexModel([("share.set", _UP), ("share.rank", _UP)], partialFilterExpression={"share.set": {"$exists": True}}),
    ],
    "logs": [
        IndexModel([("_tdb.p", _UP), ("run", _UP), ("kind", _UP), ("step", _UP), ("_id", _UP)]),
        IndexModel([("_tdb.tensors", _UP)], sparse=True),  # few rows have arrays
    ],
    "runs": [IndexModel([("_tdb.p", _UP), ("name", _UP)], unique=True)],
    "architectures": [
        IndexModel([("_tdb.tensors", _UP)]),
        IndexModel([("_tdb.p", _UP), ("name", _UP), ("version", _DOWN)], unique=True),
    ],
    "jobs": [
        IndexModel([("_tdb.p", _UP), ("_id", _UP)]),
        IndexModel([("_tdb.p", _UP), ("tags", _UP)]),
        # The orders in which jobs are claimed.
        IndexModel([("_tdb.p", _UP), ("status", _UP), ("kind", _UP), ("priority", _DOWN), ("due", _UP), ("_id", _UP)]),
        IndexModel([("_tdb.p", _UP), ("status", _UP), ("kind", _UP), ("due", _UP), ("_id", _UP)]),
        # One active job for each key. Jobs that have ended have no key.
        IndexModel(
            [("_tdb.p", _UP), ("_tdb.key", _UP)], unique=True, partialFilterExpression={"_tdb.key": {"$exists": True}}
        ),
        IndexModel([("after", _UP)], partialFilterExpression={"status": "waiting"}),
        IndexModel([("after_any", _UP)], partialFilterExpression={"status": "waiting"}),
        IndexModel([("_tdb.by", _UP)], partialFilterExpression={"_tdb.by": {"$exists": True}}),
    ],
    # Changes of samples that have not ended, see samples/mutations.py.
    "mutations": [IndexModel([("p", _UP)])],
    # What runs have found out about samples, see feedback/store.py.
    "feedback": [IndexModel([("p", _UP), ("r", _UP), ("m", _UP), ("g", _UP)])],
    # What the readers of a stream have agreed on. It expires long after the last of them has read it.
    "passes": [IndexModel([("at", _UP)], expireAfterSeconds=14 * 24 * 3600)],
    "search": [IndexModel([("p", _UP), ("k", _UP), ("w", _UP), ("at", _DOWN)])],
    "segments": [
        IndexModel([("p", _UP), ("dataset", _UP), ("_id", _UP)]),
        IndexModel([("state", _UP), ("created", _UP)]),
    ],
    "forgotten": [IndexModel([("p", _UP), ("_id", _UP)])],
    "frozen": [
        IndexModel([("_tdb.p", _UP), ("name", _UP)], unique=True),
        IndexModel([("_tdb.tensors", _UP)]),
    ],
    "frozen_segments": [IndexModel([("k", _UP)]), IndexModel([("set", _UP)])],
    "tombstones": [IndexModel([("p", _UP), ("c", _UP), ("dataset", _UP), ("_id", _UP)])],
}


SHARD_KEYS: dict[str, dict[str, Any]] = {
    # Writes and reads by `_id` alone go to one shard, and `_id` is unique over all of them.
    "data": {"_id": "hashed"},
    "tensors": {"_id": 1},  # which is a hash already
    "logs": {"_tdb.p": 1, "run": 1, "_id": 1},
}
"""The shard keys of the collections that are divided on a sharded cluster; all others stay whole. Beside them are the
chunks of GridFS, by `CHUNKS_KEY`."""
CHUNKS_KEY = {"files_id": 1, "n": 1}


def make_indexes(mongo: Any, name: str) -> None:
    """Make a collection with its indexes, or what is missing of it. A collection that has none is left alone.

    Args:
        mongo: The database.
        name: The collection.
    """
    if name not in INDEXES:
        return
    try:
        if name == "data":
            _make_indexes_of_data(mongo)
        else:
            mongo[name].create_indexes(INDEXES[name])
    except OperationFailure as error:
        # A reader without the right to write uses what is there.
        if error.code != UNAUTHORIZED:
            raise


def _make_indexes_of_data(mongo: Any) -> None:
    """Make them, and remove the unique index of sequence numbers once there is a plain one.

    Nothing depends on which of the two there is: where the unique one stands, or an earlier version has made it again,
    all works as elsewhere, and writing is slower.
    """
    data = mongo["data"]
    try:
        data.create_indexes(INDEXES["data"])
    except OperationFailure as error:
        if error.code not in _CONFLICTS or UNIQUE not in data.index_information():
            raise
        data.create_indexes([model for model in INDEXES["data"] if model.document["name"] != SEQUENCE])
        return
    if UNIQUE in data.index_information():
        with contextlib.suppress(OperationFailure):  # another process was faster
            data.drop_index(UNIQUE)

"""The workers that are alive, and the jobs that each of them takes. `explain` uses this."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents.jobs import WorkerDocument


def report(warehouse: Warehouse, id: ObjectId, lease: float, fields: Mapping[str, Any]) -> None:
    """Note that a worker is alive for `lease` more seconds, and what it does."""
    until = {"$add": ["$$NOW", round(lease * 1000)]}
    warehouse.index["workers"].update_one(
        {"_id": id},
        [{"$set": {"p": warehouse.project, "fields": {"$literal": dict(fields)}, "until": until}}],
        upsert=True,
    )
    warehouse.index["workers"].delete_many({"p": warehouse.project, "$expr": {"$lt": ["$until", "$$NOW"]}})


def leave(warehouse: Warehouse, id: ObjectId) -> None:
    """Note that a worker has ended."""
    warehouse.index["workers"].delete_one({"_id": id})


def alive(warehouse: Warehouse) -> Sequence[Mapping[str, Any]]:
    """The workers of the project that are alive: name, host, pid, kinds, allow, scripts, has, job, draining."""
    living = {"p": warehouse.project, "$expr": {"$gte": ["$until", "$$NOW"]}}
    found: Iterable[WorkerDocument] = warehouse.index["workers"].find(living).sort("_id", 1)
    return [{"id": doc["_id"], **doc["fields"]} for doc in found]

"""Workers: who is alive and what each of them takes, so that a job can say why nobody claims it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB


def report(db: TensorDB, id: ObjectId, lease: float, fields: Mapping[str, Any]) -> None:
    """Says that a worker is alive for so many more seconds, and what it does."""
    until = {"$add": ["$$NOW", round(lease * 1000)]}
    db._mongo()["workers"].update_one(
        {"_id": id}, [{"$set": {"p": db.project, "fields": {"$literal": dict(fields)}, "until": until}}], upsert=True
    )
    db._mongo()["workers"].delete_many({"p": db.project, "$expr": {"$lt": ["$until", "$$NOW"]}})


def leave(db: TensorDB, id: ObjectId) -> None:
    """Says that a worker has ended."""
    db._mongo()["workers"].delete_one({"_id": id})


def alive(db: TensorDB) -> Sequence[Mapping[str, Any]]:
    """The workers of the project that are alive: name, host, pid, kinds, allow, scripts, has, job, draining."""
    found = db._mongo()["workers"].find({"p": db.project, "$expr": {"$gte": ["$until", "$$NOW"]}})
    return [{"id": doc["_id"], **doc["fields"]} for doc in found.sort("_id", 1)]

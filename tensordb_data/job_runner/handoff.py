"""Handover: a job and its warehouse, from a worker to the process that runs the job. Plain JSON, through a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bson import ObjectId

from tensordb_data.api.database import TensorDB
from tensordb_data.api.job import Job
from tensordb_data.errors import NotFoundError
from tensordb_data.jobs.transitions import CLAIM
from tensordb_data.mongo.claims import Claim
from tensordb_data.warehouse.context import Warehouse


def described(job: Job, lease: float, allow: list[str], scripts: bool) -> dict[str, Any]:
    """What the process needs. It may hold a password, so that it must not go through the command line."""
    return {
        **job.db.warehouse.to_json(),
        "job": str(job.id),
        "token": str(job._held().token),
        "lease": lease,
        "allow": allow,
        "scripts": scripts,
    }


def opened(given: Mapping[str, Any]) -> TensorDB:
    """The warehouse, connected by this process."""
    return TensorDB.over(Warehouse.from_json(given))


def taken(db: TensorDB, given: Mapping[str, Any]) -> Job:
    """The job, as claimed by the worker.

    Raises:
        NotFoundError: It was deleted.
    """
    mongo = db.warehouse.index["jobs"]
    found = mongo.find_one({"_id": ObjectId(given["job"]), f"{CLAIM}.token": ObjectId(given["token"])})
    if found is None:
        raise NotFoundError(f"job {given['job']} was deleted, or is another worker's")
    return Job(db, found)._bound(Claim(mongo, CLAIM, ObjectId(given["token"]), found), given["lease"])

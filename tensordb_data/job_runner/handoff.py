"""The ticket of a job: what a worker sends to the process that runs the job, as plain JSON through a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bson import ObjectId

from tensordb_data.api.database import TensorDB
from tensordb_data.api.job import Job
from tensordb_data.errors import NotFoundError
from tensordb_data.jobs.shape import WELL_FORMED, malformed
from tensordb_data.jobs.transitions import CLAIM
from tensordb_data.mongo.claims import Claim
from tensordb_data.warehouse.context import Warehouse

EXITED = 113
"""The exit status of the process of a job that has ended itself by `sys.exit(0)`, told to or not."""


def job_ticket(job: Job, lease: float, allow: list[str], scripts: bool) -> dict[str, Any]:
    """What the process needs. It may hold a password, so it must not be in the command line."""
    return {
        **job.db.warehouse.to_json(),
        "job": str(job.id),
        "token": str(job._held().token),
        "lease": lease,
        "allow": allow,
        "scripts": scripts,
    }


def open_database(ticket: Mapping[str, Any]) -> TensorDB:
    """Connect to the warehouse of a ticket."""
    return TensorDB.over(Warehouse.from_json(ticket))


def claimed_job(db: TensorDB, ticket: Mapping[str, Any]) -> Job:
    """The job of a ticket, with the claim of the worker.

    Raises:
        NotFoundError: The job was deleted, another worker has it, or it is not well formed any more.
    """
    mongo = db.warehouse.index["jobs"]
    held = {"_id": ObjectId(ticket["job"]), f"{CLAIM}.token": ObjectId(ticket["token"])}
    found = mongo.find_one({**held, **WELL_FORMED})
    if found is None:
        why = malformed(mongo, held["_id"]) or "it was deleted, or another worker has it"
        raise NotFoundError(f"job {ticket['job']} is not run: {why}")
    return Job(db, found)._bound(Claim(mongo, CLAIM, ObjectId(ticket["token"]), found), ticket["lease"])

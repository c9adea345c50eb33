"""Handover: a job and its warehouse, from a worker to the process that runs the job. Plain JSON, through a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bson import ObjectId

from tensordb_data.api.database import TensorDB
from tensordb_data.api.job import Job
from tensordb_data.errors import NotFoundError
from tensordb_data.jobs.transitions import CLAIM
from tensordb_data.mongo.address import Address
from tensordb_data.mongo.claims import Claim


def described(job: Job, lease: float, allow: list[str], scripts: bool) -> dict[str, Any]:
    """What the process needs. It may hold a password, so that it must not go through the command line."""
    db = job._db
    address = db._connections.address
    return {
        "folder": None if address.folder is None else str(address.folder),
        "uri": address.uri,
        "database": address.database,
        "project": address.project,
        "cache": None if db.cache is None else str(db.cache),
        "cache_bytes": db.cache_bytes,
        "roots": db._roots,
        "job": str(job.id),
        "token": str(job._held().token),
        "lease": lease,
        "allow": allow,
        "scripts": scripts,
    }


def opened(given: Mapping[str, Any]) -> TensorDB:
    """The warehouse, connected by this process."""
    folder = None if given["folder"] is None else Path(given["folder"])
    db = TensorDB.__new__(TensorDB)
    db.__setstate__(
        {
            "address": Address(folder, given["uri"], None, given["database"], given["project"]),
            "project": given["project"],
            "cache": None if given["cache"] is None else Path(given["cache"]),
            "cache_bytes": given["cache_bytes"],
            "_roots": given["roots"],
        }
    )
    return db


def taken(db: TensorDB, given: Mapping[str, Any]) -> Job:
    """The job, as claimed by the worker.

    Raises:
        NotFoundError: It was deleted.
    """
    mongo = db._mongo()["jobs"]
    found = mongo.find_one({"_id": ObjectId(given["job"]), f"{CLAIM}.token": ObjectId(given["token"])})
    if found is None:
        raise NotFoundError(f"job {given['job']} was deleted, or is another worker's")
    return Job(db, found)._bound(Claim(mongo, CLAIM, ObjectId(given["token"]), found), given["lease"])

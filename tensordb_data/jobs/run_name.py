"""The name of the run in which a worker logs what a job prints."""

from __future__ import annotations

from bson import ObjectId

_FRONT = "job-"


def run_of_job(id: object) -> str:
    """The name of the run of a job."""
    return f"{_FRONT}{id}"


def job_of_run(run: str) -> ObjectId | None:
    """The job whose run has this name; None if it is not that of a job."""
    id = run.removeprefix(_FRONT)
    return ObjectId(id) if id != run and ObjectId.is_valid(id) else None

"""Documents of jobs, their workers, and deployments."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from bson import ObjectId
    from typing_extensions import NotRequired

    from tensordb_data.warehouse.documents.runs import ClaimDocument


JobStatus = Literal["waiting", "ready", "running", "done", "dead", "cancelled"]
"""Of a job. See `jobs.transitions`."""


class JobInternals(TypedDict):
    """`_tdb` of a job."""

    p: str
    """The project."""
    needs: list[str]
    """The names of the resources that it requires."""
    key: NotRequired[str]
    """`unique` of an active job."""
    claim: NotRequired[ClaimDocument]
    """The claim of the worker that runs it."""
    by: NotRequired[ObjectId]
    """Of a cancelled job: the job that it waited for, and because of which it was cancelled."""
    end: NotRequired[ObjectId]
    """The mark of the last report, by which its worker finds it again."""
    last: NotRequired[ObjectId]
    """The token of the worker that has reported last."""


class JobDocument(TypedDict):
    """`jobs`: one job."""

    _id: ObjectId
    kind: str
    entry: NotRequired[str]
    """The import path of its function."""
    script: NotRequired[str]
    """Or the text of its program."""
    args: dict[str, Any]
    data: NotRequired[str]
    """The query of its samples, as JSON; and so `architecture` and `params`."""
    architecture: NotRequired[str]
    params: NotRequired[str]
    tags: list[str]
    priority: int
    requires: dict[str, float]
    """The least amount of each resource that its worker must have."""
    status: JobStatus
    attempts: int
    """How often it was begun."""
    max_attempts: int
    backoff: float
    """Seconds before the second attempt, doubled before each further one."""
    after: NotRequired[list[ObjectId]]
    """The jobs that must be done first."""
    after_any: NotRequired[list[ObjectId]]
    """The jobs that must have ended first, in whatever way."""
    unique: NotRequired[str]
    """The key that one active job at a time may have."""
    time_limit: NotRequired[float]
    """Seconds for an attempt."""
    created: dt.datetime
    due: NotRequired[dt.datetime]
    """The earliest time of the next attempt."""
    started: NotRequired[dt.datetime]
    """The time of the last claim."""
    worker: NotRequired[str]
    """The name of the last worker."""
    progress: NotRequired[float]
    """How much is done, from 0 to 1."""
    cancel: NotRequired[bool]
    """Whether it was asked to end."""
    result: NotRequired[Any]
    left_out: NotRequired[list[str]]
    """A line for each part of the result that could not be stored."""
    reason: NotRequired[str]
    """Why it failed, was lost or cancelled."""
    finished: NotRequired[dt.datetime]
    events: list[dict[str, Any]]
    """The newest events, the oldest first: `at`, `event`, and what belongs to it."""
    _tdb: JobInternals


class WorkerDocument(TypedDict):
    """`workers`: a worker that is alive. See `jobs.worker_registry`."""

    _id: ObjectId
    p: str
    """The project."""
    fields: dict[str, Any]
    """Name, host, pid, kinds, allow, scripts, has (its resources), job and draining."""
    until: dt.datetime
    """When it counts as dead, unless it reports again."""


class DeploymentId(TypedDict):
    """`_id` of a deployment."""

    p: str
    """The project."""
    t: str
    """The target."""
    s: ObjectId
    """The parameter set."""


class DeploymentDocument(TypedDict):
    """`deployments`: one parameter set at one target. See `deploy.ledger`."""

    _id: DeploymentId
    run: str | None
    step: int | None
    host: str
    state: Literal["live", "replaced", "refused"]
    version: int | None
    reason: str | None
    """Why it was refused."""
    at: dt.datetime
    """When this state began."""

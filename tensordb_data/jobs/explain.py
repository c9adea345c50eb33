"""Explain the status of a job in sentences."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.common.chunks import chunks
from tensordb_data.jobs.shape import WELL_FORMED, malformed
from tensordb_data.jobs.transitions import OPEN
from tensordb_data.jobs.worker_registry import alive
from tensordb_data.mongo.retry import read_all

if TYPE_CHECKING:
    from bson import ObjectId

    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents.jobs import JobDocument

_CHUNK = 1_000


def explain(warehouse: Warehouse, job: JobDocument) -> str:
    """See `Job.explain`."""
    return _explain(_Now(warehouse), job)


def explain_all(warehouse: Warehouse, ids: Sequence[ObjectId]) -> list[str]:
    """See `Jobs.explain`. The workers, and those that come before, are looked for once."""
    now = _Now(warehouse)
    now.odd = set()
    jobs: dict[ObjectId, JobDocument] = {}
    for some in chunks(ids, _CHUNK):
        named = {"_tdb.p": warehouse.project, "_id": {"$in": list(some)}}
        jobs.update((doc["_id"], doc) for doc in read_all(warehouse.index["jobs"].find(named)))
        odd = {**named, "$nor": [WELL_FORMED]}
        now.odd |= {doc["_id"] for doc in read_all(warehouse.index["jobs"].find(odd, {"_id": 1}))}
    return [_explain(now, jobs[id]) if id in jobs else f"there is no job {id}; it was deleted" for id in ids]


class _Now:
    """What the explanations of several jobs have in common, each read when it is first needed."""

    def __init__(self, warehouse: Warehouse) -> None:
        self.warehouse, self.mongo = warehouse, warehouse.index["jobs"]
        self.odd: set[ObjectId] | None = None
        """The jobs that are not well formed; None if that is not known."""
        self._ahead: dict[tuple[Any, ...], int] = {}

    @functools.cached_property
    def workers(self) -> Sequence[Mapping[str, Any]]:
        return alive(self.warehouse)

    @functools.cached_property
    def time(self) -> Any:
        return self.mongo.database.command("hello")["localTime"]

    def ahead(self, job: JobDocument) -> int:
        """How many jobs of its kind are claimed before it."""
        key = (job["kind"], job["priority"], job["due"])
        if key not in self._ahead:
            before = [{"priority": {"$gt": job["priority"]}}, {"priority": job["priority"], "due": {"$lt": job["due"]}}]
            ready = {"_tdb.p": self.warehouse.project, "status": "ready", "kind": job["kind"], "$or": before}
            self._ahead[key] = self.mongo.count_documents(ready)
        return self._ahead[key]


def _explain(now: _Now, job: JobDocument) -> str:
    warehouse = now.warehouse
    well = now.odd is not None and job["_id"] not in now.odd
    wrong = None if well else malformed(warehouse.index["jobs"], job["_id"])
    if wrong is not None:
        return f"left alone, another tool has written it: {wrong}"
    status = job["status"]
    if status == "waiting":
        return f"waiting for {_upstream(warehouse, job)}"
    if status == "ready":
        return "\n".join(_unclaimed(now, job))
    if status == "running":
        return _running(job)
    if status == "done":
        left_out = "".join(f"\nleft out of the result: {line}" for line in job.get("left_out", ()))
        return f"done by {job['worker']} at {_time(job['finished'])}, in attempt {job['attempts']}{left_out}"
    return f"{status} at {_time(job['finished'])}: {job.get('reason', 'no reason given')}"


def _upstream(warehouse: Warehouse, job: JobDocument) -> str:
    ways = [
        {"_id": {"$in": job.get("after", [])}, "status": {"$ne": "done"}},
        {"_id": {"$in": job.get("after_any", [])}, "status": {"$in": list(OPEN)}},
    ]
    named = {"_tdb.p": warehouse.project, "$or": ways}
    others = list(warehouse.index["jobs"].find(named, {"status": 1, "kind": 1}).limit(5))
    named_ = [f"job {other['_id']} ({other['kind']}, {other['status']})" for other in others]
    return ", ".join(named_) or "nothing any more"


def _running(job: JobDocument) -> str:
    progress = "" if job.get("progress") is None else f", {job['progress']:.0%} done"
    text = (
        f"running on {job['worker']} since {_time(job['started'])}, attempt {job['attempts']} of"
        f" {job['max_attempts']}{progress}"
    )
    if job.get("cancel"):
        text += f"; asked to end: {job.get('reason', '')}"
    return text


def _unclaimed(at: _Now, job: JobDocument) -> Iterator[str]:
    now = at.time
    if job["due"] > now:
        why = f"attempt {job['attempts'] + 1} of {job['max_attempts']}" if job["attempts"] else "its start"
        yield f"ready, but not before {_time(job['due'])} ({why}), in {(job['due'] - now).total_seconds():.0f} s"
        if job.get("reason"):
            yield f"the last attempt: {job['reason'].splitlines()[-1]}"
        return
    workers = at.workers
    if not workers:
        yield f"ready, but no worker is alive; start one: tensordb worker --kinds {job['kind']} {_allowing(job)}"
        return
    ahead = at.ahead(job)
    yield f"ready; {ahead} of its kind come before it" if ahead else "ready, and the first of its kind"
    for worker in workers:
        yield f"worker {worker['name']}: {_why_not(worker, job)}"


def _why_not(worker: Mapping[str, Any], job: JobDocument) -> str:
    if worker["kinds"] is not None and job["kind"] not in worker["kinds"]:
        return f"takes {', '.join(worker['kinds'])} only, and this is {job['kind']!r}"
    free = worker.get("free", worker["has"])
    for name, amount in job["requires"].items():
        has = worker["has"].get(name, 0)
        if amount > has:
            return f"has {name} {has:g}, and {amount:g} is required"
        if amount > free.get(name, 0) and worker["job"] is None:
            return f"has {name} {has:g}, of which {free.get(name, 0):g} are free, and {amount:g} is required"
    if "script" in job:
        if not worker["scripts"]:
            return "runs no stored scripts (--allow-scripts)"
    elif not allows(worker["allow"], job["entry"]):
        allowed = ", ".join(worker["allow"]) or "nothing"
        return f"allows {allowed}, and {job['entry']} is not in it ({_allowing(job)})"
    if worker["draining"]:
        return "takes no more jobs: it is about to end"
    if worker["job"] is not None:
        return f"busy with job {worker['job']}"
    return "may claim it at any moment"


def allows(entries: list[str], reference: str) -> bool:
    """Whether an allow-list covers a reference, as far as its name tells."""
    module = reference.partition(":")[0]
    return any(
        reference == entry or module == entry or (entry.endswith(".") and f"{module}.".startswith(entry))
        for entry in entries
    )


def _allowing(job: JobDocument) -> str:
    return "--allow-scripts" if "script" in job else f"--allow {job['entry'].partition(':')[0].split('.')[0]}."


def _time(value: Any) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S} UTC"

"""Requeue the jobs of lost workers, and make waiting jobs ready, or cancel those that can never run.

Any process that claims does this. To do it twice changes nothing. So if a process dies in the middle, the next one
finishes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from tensordb_data.common.chunks import chunks
from tensordb_data.jobs import transitions
from tensordb_data.jobs.shape import WELL_FORMED
from tensordb_data.mongo.retry import retry_while_unavailable

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_CHUNK = 1000


def requeue_lost(warehouse: Warehouse) -> int:
    """Put the jobs of lost workers back into the queue, or end those without attempts left; returns how many."""
    late = {
        "_tdb.p": warehouse.project,
        "status": "running",
        "$expr": {"$lte": [f"${transitions.CLAIM}.until", "$$NOW"]},
        **WELL_FORMED,
    }
    return _update(warehouse, late, transitions.lost())


def resolve_dependencies(warehouse: Warehouse, which: Mapping[str, Any]) -> int:
    """Make waiting jobs ready if all jobs that they wait for are done, and cancel them if one of those cannot be done.

    Args:
        warehouse: The warehouse.
        which: Which waiting jobs, as a filter.

    Returns:
        How many are no longer waiting.
    """
    scope = {"_tdb.p": warehouse.project, "status": "waiting", **WELL_FORMED}
    changed = 0
    look: list[Mapping[str, Any]] = [which]
    while look:
        waiting = _waiting(warehouse, {**scope, **look.pop()})
        for some in chunks(waiting, _CHUNK):
            judged = _judge(warehouse, some)
            if judged.ready:
                changed += _update(warehouse, {"_id": {"$in": judged.ready}, **scope}, transitions.ready())
            for id, (reason, upstream) in judged.hopeless.items():
                changed += _update(warehouse, {"_id": id, **scope}, transitions.cancelled(reason, upstream))
                look.append(followers(id))
    return changed


def followers(id: ObjectId) -> dict[str, Any]:
    """The filter of the jobs that wait for a job."""
    return {"$or": [{"after": id}, {"after_any": id}]}


def revive_followers(warehouse: Warehouse, id: ObjectId) -> None:
    """Let the jobs wait again that were cancelled because of a job that begins again, and those that waited for them.

    A job whose key belongs to another job meanwhile stays cancelled.
    """
    mongo = warehouse.index["jobs"]
    look, revived = [id], []
    while look:
        cancelled = {"_tdb.p": warehouse.project, "status": "cancelled", "_tdb.by": look.pop(), **WELL_FORMED}
        for follower in retry_while_unavailable(functools.partial(mongo.distinct, "_id", cancelled)):
            with contextlib.suppress(DuplicateKeyError):
                if _update(warehouse, {"_id": follower, **cancelled}, transitions.retried()):
                    look.append(follower)
                    revived.append(follower)
    if revived:
        resolve_dependencies(warehouse, {"_id": {"$in": revived}})


def _waiting(warehouse: Warehouse, filter: Mapping[str, Any]) -> list[Any]:
    return retry_while_unavailable(lambda: list(warehouse.index["jobs"].find(filter, {"after": 1, "after_any": 1})))


def _update(warehouse: Warehouse, filter: Mapping[str, Any], stages: transitions.Stages) -> int:
    return retry_while_unavailable(lambda: int(warehouse.index["jobs"].update_many(filter, stages).modified_count))


class _Judgement:
    def __init__(self) -> None:
        self.ready: list[Any] = []
        self.hopeless: dict[Any, tuple[str, Any]] = {}


def _judge(warehouse: Warehouse, waiting: Sequence[Any]) -> _Judgement:
    mongo = warehouse.index["jobs"]
    names = list({id for job in waiting for id in (*job.get("after", ()), *job.get("after_any", ()))})
    named = {"_id": {"$in": names}, "_tdb.p": warehouse.project}
    found = retry_while_unavailable(lambda: {doc["_id"]: doc["status"] for doc in mongo.find(named, {"status": 1})})
    judged = _Judgement()
    for job in waiting:
        states = {id: found.get(id, "deleted") for id in job.get("after", ())}
        others = {found.get(id, "deleted") for id in job.get("after_any", ())}
        bad = next((id for id, status in states.items() if status in ("dead", "cancelled", "deleted")), None)
        if bad is not None:
            judged.hopeless[job["_id"]] = f"job {bad}, which this one waits for, is {states[bad]}", bad
        elif all(status == "done" for status in states.values()) and others.isdisjoint(transitions.OPEN):
            judged.ready.append(job["_id"])
    return judged

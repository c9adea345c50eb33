"""Sweep: jobs of lost workers go back into the queue, and jobs that waited become ready, or cannot run any more.

Any process that claims does it, and doing it twice changes nothing: whatever dies in the middle, the next one finishes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tensordb_data.jobs import transitions as steps
from tensordb_data.mongo.retry import ride_out

if TYPE_CHECKING:
    from tensordb_data.api.database import TensorDB

_CHUNK = 1000


def sweep(db: TensorDB) -> bool:
    """Both, for all jobs of the project; whether anything changed."""
    late = {
        "_tdb.p": db.project,
        "status": "running",
        "$expr": {"$lte": [f"${steps.CLAIM}.until", "$$NOW"]},
    }
    freed = _update(db, late, steps.lost())
    return bool(settle(db, {}) + freed)


def settle(db: TensorDB, which: Mapping[str, Any]) -> int:
    """Looks at waiting jobs: ready when all that they wait for is done, cancelled when that cannot be any more.

    Args:
        which: Which waiting jobs, as a filter.

    Returns:
        How many are no longer waiting.
    """
    scope = {"_tdb.p": db.project, "status": "waiting"}
    changed = 0
    look: list[Mapping[str, Any]] = [which]
    while look:
        waiting = _waiting(db, {**scope, **look.pop()})
        for low in range(0, len(waiting), _CHUNK):
            judged = _judge(db, waiting[low : low + _CHUNK])
            if judged.ready:
                changed += _update(db, {"_id": {"$in": judged.ready}, **scope}, steps.ready())
            for id, reason in judged.hopeless.items():
                changed += _update(db, {"_id": id, **scope}, steps.cancelled(reason))
                look.append({"after": id})
    return changed


def _waiting(db: TensorDB, filter: Mapping[str, Any]) -> list[Any]:
    return ride_out(lambda: list(db._mongo()["jobs"].find(filter, {"after": 1})))


def _update(db: TensorDB, filter: Mapping[str, Any], stages: steps.Stages) -> int:
    return ride_out(lambda: int(db._mongo()["jobs"].update_many(filter, stages).modified_count))


class _Judgement:
    def __init__(self) -> None:
        self.ready: list[Any] = []
        self.hopeless: dict[Any, str] = {}


def _judge(db: TensorDB, waiting: list[Any]) -> _Judgement:
    mongo = db._mongo()["jobs"]
    names = list({id for job in waiting for id in job["after"]})
    named = {"_id": {"$in": names}, "_tdb.p": db.project}
    found = ride_out(lambda: {doc["_id"]: doc["status"] for doc in mongo.find(named, {"status": 1})})
    judged = _Judgement()
    for job in waiting:
        states = {id: found.get(id, "deleted") for id in job["after"]}
        bad = next((id for id, status in states.items() if status in ("dead", "cancelled", "deleted")), None)
        if bad is not None:
            judged.hopeless[job["_id"]] = f"job {bad}, which this one waits for, is {states[bad]}"
        elif all(status == "done" for status in states.values()):
            judged.ready.append(job["_id"])
    return judged

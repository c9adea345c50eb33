"""Sweep: jobs of lost workers go back into the queue, and jobs that waited become ready, or cannot run any more.

Any process that claims does it, and doing it twice changes nothing: whatever dies in the middle, the next one finishes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tensordb_data.jobs import transitions
from tensordb_data.mongo.retry import retry_while_unavailable

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_CHUNK = 1000


def recover(warehouse: Warehouse) -> bool:
    """Both, for all jobs of the project; whether anything changed."""
    late = {
        "_tdb.p": warehouse.project,
        "status": "running",
        "$expr": {"$lte": [f"${transitions.CLAIM}.until", "$$NOW"]},
    }
    freed = _update(warehouse, late, transitions.lost())
    return bool(resolve_dependencies(warehouse, {}) + freed)


def resolve_dependencies(warehouse: Warehouse, which: Mapping[str, Any]) -> int:
    """Looks at waiting jobs: ready when all that they wait for is done, cancelled when that cannot be any more.

    Args:
        which: Which waiting jobs, as a filter.

    Returns:
        How many are no longer waiting.
    """
    scope = {"_tdb.p": warehouse.project, "status": "waiting"}
    changed = 0
    look: list[Mapping[str, Any]] = [which]
    while look:
        waiting = _waiting(warehouse, {**scope, **look.pop()})
        for low in range(0, len(waiting), _CHUNK):
            judged = _judge(warehouse, waiting[low : low + _CHUNK])
            if judged.ready:
                changed += _update(warehouse, {"_id": {"$in": judged.ready}, **scope}, transitions.ready())
            for id, reason in judged.hopeless.items():
                changed += _update(warehouse, {"_id": id, **scope}, transitions.cancelled(reason))
                look.append({"after": id})
    return changed


def _waiting(warehouse: Warehouse, filter: Mapping[str, Any]) -> list[Any]:
    return retry_while_unavailable(lambda: list(warehouse.index["jobs"].find(filter, {"after": 1})))


def _update(warehouse: Warehouse, filter: Mapping[str, Any], stages: transitions.Stages) -> int:
    return retry_while_unavailable(lambda: int(warehouse.index["jobs"].update_many(filter, stages).modified_count))


class _Judgement:
    def __init__(self) -> None:
        self.ready: list[Any] = []
        self.hopeless: dict[Any, str] = {}


def _judge(warehouse: Warehouse, waiting: list[Any]) -> _Judgement:
    mongo = warehouse.index["jobs"]
    names = list({id for job in waiting for id in job["after"]})
    named = {"_id": {"$in": names}, "_tdb.p": warehouse.project}
    found = retry_while_unavailable(lambda: {doc["_id"]: doc["status"] for doc in mongo.find(named, {"status": 1})})
    judged = _Judgement()
    for job in waiting:
        states = {id: found.get(id, "deleted") for id in job["after"]}
        bad = next((id for id, status in states.items() if status in ("dead", "cancelled", "deleted")), None)
        if bad is not None:
            judged.hopeless[job["_id"]] = f"job {bad}, which this one waits for, is {states[bad]}"
        elif all(status == "done" for status in states.values()):
            judged.ready.append(job["_id"])
    return judged

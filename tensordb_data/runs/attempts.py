"""Attempts: each start of a saver is one. It goes on after a set of an earlier attempt, or begins anew.

    attempts: [{id, began, ended, state, host, pid, code, line, after: {attempt, step, set}}, …]

`after` is the set that was restored; None if the attempt begins anew, and missing until one of the two is known. The
attempts that follow each other by `after` are a line, which is named by the first of them. A reader sees the rows of
the newest line: those of its attempts, of each up to the step after which the next goes on. The others are superseded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.runs.documents import ATTEMPTS

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

Attempt = Mapping[str, Any]
Segment = tuple[ObjectId | None, int | None]
"""An attempt, None for what belongs to none, and the last of its steps that counts; None for all."""

_VISIBLE = {"superseded": None}


def with_changes(condition: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The stage that changes the attempts of a run for which a condition on `$$this` holds."""
    changed = {"$cond": [condition, {"$mergeObjects": ["$$this", dict(changes)]}, "$$this"]}
    return {"$set": {"attempts": {"$map": {"input": ATTEMPTS, "as": "this", "in": changed}}}}


def segments(attempts: Sequence[Attempt], id: ObjectId | None) -> list[Segment]:
    """The line that leads to an attempt, the newest first."""
    known = {each["id"]: each for each in attempts}
    found: list[Segment] = []
    last: int | None = None
    while id is not None and id in known:
        found.append((id, last))
        after = known.pop(id).get("after")
        if after is None:
            return found
        last = after["step"] if last is None else min(last, after["step"])
        id = after["attempt"]
    return [*found, (None, last)] if id is None else found


def sets_in_line(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """The filter of the sets of a run that lie on its newest line, and of those that belong to no attempt before it.

    It is empty if all of them do. An attempt that has neither restored nor made a step has changed nothing yet.
    """
    settled = [each for each in attempts if "after" in each]
    if not settled or (len(settled) == 1 and settled[0]["after"] is None):
        return {}
    line = segments(attempts, settled[-1]["id"])
    known = [{"_tdb.a": id, **({} if last is None else {"step": {"$not": {"$gt": last}}})} for id, last in line]
    return {"$or": known if line[-1][0] is None else [*known, {"_tdb.a": None}]}


def supersede(warehouse: Warehouse, run: str, attempts: Sequence[Attempt], after: Mapping[str, Any] | None) -> None:
    """Mark the rows of a run that the last of its attempts replaces, and no others.

    Args:
        warehouse: The warehouse.
        run: The run.
        attempts: Its attempts.
        after: What the last one goes on after; None if it begins anew.
    """
    mine, earlier = attempts[-1]["id"], attempts[:-1]
    if after is None:
        if earlier:
            _mark(warehouse, run, {**_VISIBLE, "_tdb.a": {"$in": [each["id"] for each in earlier]}}, True)
        return
    line = segments([*earlier, {"id": mine, "after": after}], mine)
    seen = segments(earlier, earlier[-1]["id"]) if earlier else [(None, None)]
    settled = not earlier or "after" in earlier[-1]
    if settled and (after["attempt"], after["step"]) in _reaches(seen, after):
        behind = {"step": {"$gt": after["step"]}, "_tdb.a": {"$ne": mine}}
        kinds = retry_while_unavailable(
            lambda: warehouse.index["logs"].distinct("kind", {"_tdb.p": warehouse.project, "run": run}), reads=True
        )
        _mark(warehouse, run, {"kind": {"$in": kinds}, **_VISIBLE, **behind}, True)
        return
    shown = [{"_tdb.a": id, **({} if last is None else {"step": {"$lte": last}})} for id, last in line]
    _mark(warehouse, run, {**_VISIBLE, "$nor": shown}, True)
    known = [each for each in shown if each["_tdb.a"] is not None]
    _mark(warehouse, run, {"superseded": True, "$or": known}, False)


def _reaches(seen: Sequence[Segment], after: Mapping[str, Any]) -> list[tuple[ObjectId | None, int]]:
    """The point after which an attempt goes on, if it lies on a line."""
    point = after["attempt"], after["step"]
    return [point for id, last in seen if id == point[0] and (last is None or point[1] <= last)]


def _mark(warehouse: Warehouse, run: str, which: Mapping[str, Any], superseded: bool) -> None:
    logs, runs = warehouse.index["logs"], warehouse.index["runs"]
    scope = {"_tdb.p": warehouse.project, "run": run, **which}
    change = {"$set": {"superseded": True}} if superseded else {"$unset": {"superseded": 1}}

    def mark() -> None:
        if superseded:
            if logs.find_one(scope, {"_id": 1}) is None:
                return
            # First of all: only where it stands do readers leave rows out.
            runs.update_one({"_tdb.p": warehouse.project, "name": run}, {"$set": {"_tdb.hides": True}})
        logs.update_many(scope, change)

    warehouse.index.write(mark)

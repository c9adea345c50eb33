"""Transitions: each change of a job's status, as an update that the server applies in one step, on its own clock.

waiting -> ready -> running -> done | dead | cancelled
^         |
+---------+   failed or lost with attempts left, or handed back
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bson import ObjectId

Stages = list[dict[str, Any]]

CLAIM = "_tdb.claim"
OPEN = ("waiting", "ready", "running")
ENDED = ("done", "dead", "cancelled")
KEPT_EVENTS = 50
_LONGEST_WAIT = 3600.0  # seconds between attempts
_LONGEST_TEXT = 16_000


def literal(value: Any) -> dict[str, Any]:
    """A value that the server must not read as an expression."""
    return {"$literal": value}


def shortened(text: str) -> str:
    """The end of a long text: there a traceback says what happened."""
    return text if len(text) <= _LONGEST_TEXT else f"...{text[-_LONGEST_TEXT:]}"


def event(what: Any, **fields: Any) -> dict[str, Any]:
    """The stage that adds an event to the history of a job. The history keeps the newest `KEPT_EVENTS`."""
    entry = {"at": "$$NOW", "event": what, **fields}
    history = {"$concatArrays": [_list("$events"), [entry]]}
    return {"$set": {"events": {"$slice": [history, -KEPT_EVENTS]}}}


def pushed(document: Mapping[str, Any], start: Any) -> Stages:
    """A new job, as an upsert."""
    times = {"created": "$$NOW", "due": "$$NOW" if start is None else start}
    return [{"$replaceWith": {"$mergeObjects": [literal(dict(document)), times]}}, event("pushed")]


def claimed(owner: str) -> Stages:
    """A claimed job runs. The claim itself is written by `mongo.claims`."""
    attempts = {"$add": ["$attempts", 1]}
    return [
        {"$set": {"status": "running", "attempts": attempts, "worker": literal(owner), "started": "$$NOW"}},
        {"$unset": ["due", "progress"]},
        event("claimed", worker=literal(owner), attempt="$attempts"),
    ]


def done(result: Any, left_out: Sequence[str] = ()) -> Stages:
    """A running job has its result, with a line for each part of it that could not be stored."""
    fields = {"status": "done", "result": literal(result), "finished": "$$NOW", "progress": 1.0}
    if left_out:
        fields["left_out"] = literal(list(left_out))
    return [{"$set": fields}, {"$unset": [CLAIM, "_tdb.key", "reason", "cancel"]}, event("done", attempt="$attempts")]


def retry_or_give_up(what: str, reason: Any, *, again: bool = True) -> Stages:
    """An attempt has failed: the job is ready again after a wait or, without attempts left, dead.

    A job that was asked to end is cancelled.

    Args:
        what: The event, `"failed"` or `"lost"`.
        reason: Why, as an expression of the server.
        again: Whether another attempt may help.
    """
    exhausted = {"$gte": ["$attempts", "$max_attempts"]} if again else True
    doubled = {"$multiply": ["$backoff", {"$pow": [2, {"$min": [{"$subtract": ["$attempts", 1]}, 30]}]}]}
    wait = {"$round": [{"$multiply": [1000, {"$min": [doubled, _LONGEST_WAIT]}]}, 0]}
    is_ready = {"$eq": ["$status", "ready"]}
    branches = [
        {"case": {"$eq": ["$cancel", True]}, "then": "cancelled"},
        {"case": exhausted, "then": "dead"},
    ]
    return [
        {"$set": {"reason": reason, "status": {"$switch": {"branches": branches, "default": "ready"}}}},
        {"$set": {
            "due": {"$cond": [is_ready, {"$add": ["$$NOW", {"$toLong": wait}]}, "$$REMOVE"]},
            "finished": {"$cond": [is_ready, "$$REMOVE", "$$NOW"]},
            "_tdb.key": {"$cond": [is_ready, "$_tdb.key", "$$REMOVE"]},
        }},
        {"$unset": [CLAIM, "cancel"]},
        event(what, reason="$reason", worker="$worker", attempt="$attempts"),
        _also("dead"),
        _also("cancelled"),
    ]  # fmt: skip


def lost() -> Stages:
    """The lease of the worker has run out."""
    parts = ["worker ", "$worker", " was lost in attempt ", {"$toString": "$attempts"}, " of ",
             {"$toString": "$max_attempts"}, ": it let its lease run out"]  # fmt: skip
    return [*retry_or_give_up("lost", {"$concat": parts}), {"$unset": "_tdb.last"}]


def released() -> Stages:
    """The worker stops before the job has ended. This attempt does not count."""
    fields = {"status": "ready", "attempts": {"$subtract": ["$attempts", 1]}, "due": "$$NOW"}
    return [{"$set": fields}, {"$unset": [CLAIM, "progress"]}, event("handed back", worker="$worker")]


def ready() -> Stages:
    """All jobs that a job waited for are done."""
    return [{"$set": {"status": "ready"}}, event("ready")]


def cancelled(reason: str, upstream: ObjectId | None = None) -> Stages:
    """Cancel a job. If it runs, ask it to end.

    Args:
        reason: Why.
        upstream: The job because of which it cannot be done.
    """
    runs = {"$eq": ["$status", "running"]}
    return [
        *([{"$set": {"_tdb.by": upstream}}] if upstream is not None else []),
        {"$set": {"cancel": {"$cond": [runs, True, "$$REMOVE"]}, "reason": literal(reason)}},
        {"$set": {
            "status": {"$cond": [runs, "running", "cancelled"]},
            "finished": {"$cond": [runs, "$$REMOVE", "$$NOW"]},
            "_tdb.key": {"$cond": [runs, "$_tdb.key", "$$REMOVE"]},
        }},
        event({"$cond": [runs, "asked to end", "cancelled"]}, reason=literal(reason)),
    ]  # fmt: skip


def cancelled_by_owner() -> Stages:
    """The worker has ended the job, as it was asked to."""
    return [
        {"$set": {"status": "cancelled", "finished": "$$NOW"}},
        {"$unset": [CLAIM, "_tdb.key", "cancel"]},
        event("cancelled", worker="$worker", reason="$reason"),
    ]


def retried() -> Stages:
    """A job that ended without a result begins again, with all its attempts."""
    upstream = {"$concatArrays": [_list("$after"), _list("$after_any")]}
    waits = {"$cond": [{"$gt": [{"$size": upstream}, 0]}, "waiting", "ready"]}
    return [
        {"$set": {"status": waits, "attempts": 0, "due": "$$NOW", "_tdb.key": {"$ifNull": ["$unique", "$$REMOVE"]}}},
        {"$unset": ["finished", "reason", "progress", "_tdb.by"]},
        event("retried"),
    ]


def marked(stages: Stages, mark: ObjectId, token: ObjectId) -> Stages:
    """The same change with a mark, by which its owner finds it again if the answer was lost, and the owner's token."""
    return [*stages, {"$set": {"_tdb.end": mark, "_tdb.last": token}}]


def _list(path: str) -> dict[str, Any]:
    """A list of the document, empty if there is none, or another value in its place."""
    return {"$cond": [{"$isArray": path}, path, []]}


def _also(status: str) -> dict[str, Any]:
    """The stage that adds an event named after a status, if the job now has this status."""
    stage = event(status, reason="$reason")
    return {"$set": {"events": {"$cond": [{"$eq": ["$status", status]}, stage["$set"]["events"], "$events"]}}}

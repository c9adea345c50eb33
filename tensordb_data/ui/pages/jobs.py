"""The pages of jobs: the queue, and one job. What they can change: cancel and retry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import StateError
from tensordb_data.ui.parts.links import id_of, parsed, stored_query

if TYPE_CHECKING:
    from starlette.responses import Response

    from tensordb_data.api.job import Job
    from tensordb_data.ui.view import View

STATUSES = ("running", "ready", "waiting", "done", "dead", "cancelled")
"""In the order of the page: what runs, what comes next, what has ended."""
_SORT = {"running": [("started", 1)], "ready": [("priority", -1), ("due", 1), ("_id", 1)], "waiting": [("_id", 1)]}
_ENDED = [("finished", -1)]
_SHOWN = 100
_FIELDS = (
    "kind", "status", "progress", "attempts", "max_attempts", "priority", "worker", "created", "started", "finished",
)  # fmt: skip
_EXPLAINED = 25
_LINES = 100


def jobs(view: View) -> Response:
    """`./jobs`: the queue in the order of claims, and the workers that are alive."""
    asked, status, kind = parsed(view.one("q")), view.one("status"), view.one("kind")
    filter = {"$and": [asked, {"kind": kind}]} if asked and kind else asked or ({"kind": kind} if kind else {})
    found: list[Job] = []
    for each in [status] if status else STATUSES:
        one = {"$and": [filter, {"status": each}]} if filter else {"status": each}
        found += view.db.jobs.find(one, sort=_SORT.get(each, _ENDED), limit=_SHOWN, fields=_FIELDS).all()
        if len(found) >= _SHOWN:
            break
    counts = view.db.jobs.counts()
    return view.page(
        "jobs.html", jobs=found[:_SHOWN], counts=counts, only=status, kind=kind, q=view.one("q"),
        workers=view.db.jobs.workers(), why=_why(view, found[:_SHOWN]),
        kinds=sorted(map(str, view.db.jobs.find().distinct("kind"))), total=sum(counts.values()),
    )  # fmt: skip


def _why(view: View, found: Sequence[Job]) -> dict[Any, str]:
    """Why jobs are where they are, of the first that are not done."""
    open_ = [job for job in found if job.get("status") in ("ready", "waiting", "dead")][:_EXPLAINED]
    texts = view.db.jobs.explain(open_) if open_ else []
    return {job.id: text.splitlines()[0] for job, text in zip(open_, texts, strict=True)}


def job(view: View) -> Response:
    """`./job`: one job, its history, and the end of what it has printed."""
    found = view.db.jobs.find({"_id": id_of(view.one("id"), "job")}).first()
    rows = view.db.logs.find({"run": found.run, "kind": "output"}, sort=[("step", -1), ("_id", -1)], limit=_LINES).all()
    queries = {name: stored_query(view, found[name]) for name in ("data", "architecture", "params") if name in found}
    events = found.get("events")
    (why,) = view.db.jobs.explain([found])
    return view.page(
        "job.html", job=found, why=why, lines=[row.get("text", "") for row in reversed(rows)],
        cut=len(rows) == _LINES, queries=queries, events=events if isinstance(events, list) else [],
        logged=bool(view.db.logs.find({"run": found.run, "kind": {"$ne": "output"}}).head(1)),
    )  # fmt: skip


def cancel(view: View) -> Response:
    """`./cancel`: ask a job to end.

    Raises:
        StateError: It has ended already; says how.
    """
    found = view.writing.jobs.find({"_id": id_of(str(view.body.get("id")), "job")}).first()
    if not found.cancel("cancelled on the page"):
        raise StateError(f"job {found.id} had ended already: it is {found['status']}")
    return view.data({"said": f"job {found.id} is {found['status']}, and asked to end"})


def retry(view: View) -> Response:
    """`./retry`: begin a dead or cancelled job again."""
    found = view.writing.jobs.find({"_id": id_of(str(view.body.get("id")), "job")}).first()
    found.retry()
    return view.data({"said": f"job {found.id} is {found['status']}"})

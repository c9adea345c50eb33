"""The first page: what there is. And the page of what takes how much room."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tensordb_data.mongo.retry import within
from tensordb_data.runs.listing import list_runs
from tensordb_data.ui import view as view_

if TYPE_CHECKING:
    from starlette.responses import Response

    from tensordb_data.ui.view import View

_RUNS = 8
_FAILED = 8
_SECONDS = 0.5  # to count samples; those of datasets after that are told by their numbers
_KEPT = 10_000


@dataclass(frozen=True)
class Counted:
    """A dataset on the page."""

    name: str
    count: int
    exact: bool
    nbytes: int | None
    changed: Any


def home(view: View) -> Response:
    """`./`: the datasets, the latest runs, and jobs that failed."""
    db = view.db
    with within(view_.SECONDS):
        runs = list_runs(db.warehouse, db.runs(sort=[("began", -1)]).query, metrics=False)
        failed = db.jobs.find({"status": "dead"}, sort=[("finished", -1)], limit=_FAILED).all()
        counts = db.jobs.counts()
        projects = db.projects()
    datasets = _datasets(view)
    return view.page(
        "home.html", datasets=datasets, runs=runs[:_RUNS], n_runs=len(runs), failed=failed, counts=counts,
        running=sum(each["status"] == "running" for each in runs), projects=projects,
        samples=sum(each.count for each in datasets), exact=all(each.exact for each in datasets),
        nbytes=sum(each.nbytes or 0 for each in datasets),
    )  # fmt: skip


def storage(view: View) -> Response:
    """`./storage`: bytes by dataset and run, garbage of the last gc, cache, roots and indexes."""
    return view.page("storage.html", storage=view.db.storage())


def _datasets(view: View) -> list[Counted]:
    """The datasets. The samples of one are counted again once it has changed."""
    versions = view.db.warehouse.datasets.versions()
    known: dict[tuple[str, str], tuple[Any, Counted]] = view.window.counted
    if len(known) > _KEPT:
        known.clear()
    began, found = time.monotonic(), []
    for name, version in sorted(versions.items()):
        key = (view.db.project, name)
        if key not in known or known[key][0] != version:
            if time.monotonic() - began > _SECONDS:
                found.append(Counted(name, version[0], False, None, None))
                continue
            one = view.db.data.dataset(name)
            known[key] = version, Counted(name, one.count, one.exact, one.nbytes, one.changed)
        found.append(known[key][1])
    return found

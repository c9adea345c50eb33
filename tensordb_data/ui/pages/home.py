"""The first page: what there is. And the page of what takes how much room."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tensordb_data.common.sizes import show_size
from tensordb_data.mongo.retry import within
from tensordb_data.runs.listing import list_runs
from tensordb_data.ui import view as view_
from tensordb_data.ui.shown import brief, grouped

if TYPE_CHECKING:
    from starlette.responses import Response

    from tensordb_data.ui.view import View

_RUNS = 8
_FAILED = 8
_SECONDS = 0.5  # to count samples; those of datasets after that are told by their numbers
_KEPT = 10_000
_LARGE = 100_000  # samples that take long to count
_RECOUNT = 30.0  # seconds


@dataclass(frozen=True)
class Counted:
    """A dataset on the page."""

    name: str
    count: int
    exact: bool
    nbytes: int | None
    changed: Any
    version: tuple[int, int] = (0, 0)
    at: float = 0.0
    """When it was counted."""


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


def garbage(view: View) -> Response:
    """`./garbage`: what a gc would find, which takes long; a dry run, so that nothing is marked or removed."""
    found = view.writing.gc(dry_run=True)
    most = sorted(found.by.items(), key=lambda item: -item[1])[:_RUNS]
    of = f": {', '.join(f'{brief(name, 80)} {show_size(n)}' for name, n in most)}" if most else ""
    return view.data({
        "said": f"a gc would mark {show_size(found.marked_bytes)} that are unused ({grouped(found.marked)} blobs), and "
                f"remove {show_size(found.removed_bytes + found.temporary_bytes)} that were marked before or are "
                f"unfinished; {show_size(found.waiting_bytes)} have to wait{of}",
    })  # fmt: skip


def _datasets(view: View) -> list[Counted]:
    """The datasets. The samples of one are counted again once it has changed."""
    versions = view.db.warehouse.datasets.versions()
    known: dict[tuple[str, str], Counted] = view.window.counted
    if len(known) > _KEPT:
        known.clear()
    began, found = time.monotonic(), []
    for name, version in sorted(versions.items()):
        key = (view.db.project, name)
        last = known.get(key)
        if last is not None and _still_holds(last, version):
            last = replace(last, count=last.count + version[0] - last.version[0], version=version)
        elif time.monotonic() - began > _SECONDS:
            last = Counted(name, version[0], False, None, None)
        else:
            one = view.db.data.dataset(name)
            last = Counted(name, one.count, one.exact, one.nbytes, one.changed, version, time.monotonic())
        if last.at:
            known[key] = last
        found.append(last)
    return found


def _still_holds(last: Counted, version: tuple[int, int]) -> bool:
    """Whether what is known of a dataset is right: nothing was deleted, and added is what has got new numbers."""
    fresh = time.monotonic() - last.at < _RECOUNT and last.count > _LARGE
    return last.version == version or (fresh and last.version[1] == version[1])

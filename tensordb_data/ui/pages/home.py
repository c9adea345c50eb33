"""The first page: what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensordb_data.runs.listing import list_runs

if TYPE_CHECKING:
    from starlette.responses import Response

    from tensordb_data.ui.view import View

_RUNS = 8
_FAILED = 8


def home(view: View) -> Response:
    """`./`: the datasets, the latest runs, and jobs that failed."""
    db = view.db
    runs = list_runs(db.warehouse, db.runs(sort=[("began", -1)]).query, metrics=False)
    failed = db.jobs.find({"status": "dead"}, sort=[("finished", -1)], limit=_FAILED).all()
    datasets = sorted(db.warehouse.datasets.versions())
    return view.page(
        "home.html", datasets=datasets, runs=runs[:_RUNS], n_runs=len(runs), failed=failed,
    )  # fmt: skip

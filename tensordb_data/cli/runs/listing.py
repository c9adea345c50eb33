"""`tensordb runs`: what is known of each run."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from bson import json_util
from pymongo.errors import PyMongoError

from tensordb_data.api.database import TensorDB
from tensordb_data.api.runs import Run, as_row
from tensordb_data.cli.common import Db, Json, Project, parsed_filter, parsed_sort, warehouse
from tensordb_data.cli.output import say
from tensordb_data.cli.tables import table
from tensordb_data.common.sizes import show_size
from tensordb_data.common.text_table import sparkline
from tensordb_data.errors import TensorDBError
from tensordb_data.mongo.retry import within
from tensordb_data.table.activity.curve import kinds_of, main_metric, sampled_curve, thinned

_BARS = 16
_SECONDS = 0.5  # for the curve of one run
_ALL_SECONDS = 4.0


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(runs)


def runs(
    filter: Annotated[str, typer.Argument(help='A filter in JSON, such as \'{"status": "lost"}\'.')] = "{}",
    sort: Annotated[
        list[str] | None, typer.Option(help="Sort by a field, best.val_acc; -field for descending. May be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    metric: Annotated[str | None, typer.Option(help="Draw this metric over the steps; default: a loss.")] = None,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """List runs: status, attempts, checkpoints and their bytes, configuration, a curve, last and best of each metric.

    The curve is drawn from a few rows. The bytes of each checkpoint count in full, also where some are shared.
    """
    with warehouse(db, project) as opened:
        found = opened.runs(parsed_filter(filter), sort=parsed_sort(sort), limit=limit).all()
        if as_json:
            for run in found:
                say(json_util.dumps(dict(run), json_options=json_util.RELAXED_JSON_OPTIONS))
            return
        curves = _Curves(opened, metric)
        table([_row(run, curves) for run in found])
        if curves.left_out:
            say(f"{curves.left_out:,} curves would take too long here; a filter or --limit makes the list shorter")
        if not found:
            say("no runs")


def _row(run: Run, curves: _Curves) -> dict[str, Any]:
    row = as_row(run)
    size = show_size(run["bytes"]) if isinstance(run["bytes"], (int, float)) and run["bytes"] else None
    head = {name: row.pop(name) for name in ("name", "status")}
    return {**head, "curve": curves.of(run), "bytes": size, **row}


class _Curves:
    """Lines of a metric over the steps, as long as there is time for them."""

    def __init__(self, db: TensorDB, metric: str | None) -> None:
        self._db, self._metric = db, metric
        self._until = time.monotonic() + _ALL_SECONDS
        self.left_out = 0
        """Curves for which there was no time."""

    def of(self, run: Run) -> str | None:
        """The line of a run, of the first kind of rows that has the metric; None where there is none."""
        metric = self._metric or main_metric(sorted(run.last))
        if metric is None:
            return None
        if time.monotonic() > self._until:
            self.left_out += 1
            return None
        warehouse = self._db.warehouse
        try:
            with within(_SECONDS):
                for kind in kinds_of(warehouse, run.name):
                    if curve := sampled_curve(warehouse, run.name, kind, metric, _BARS - 1):
                        return f"{metric} {sparkline([value for _, value in thinned(curve, _BARS)])}"
        except (PyMongoError, TensorDBError):
            self.left_out += 1
        return None

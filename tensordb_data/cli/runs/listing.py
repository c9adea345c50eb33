"""`tensordb runs`: what is known of each run."""

from __future__ import annotations

from typing import Annotated

import typer
from bson import json_util

from tensordb_data.api.runs import as_row
from tensordb_data.cli.common import Db, Json, Project, parsed_filter, parsed_sort, warehouse
from tensordb_data.cli.output import say
from tensordb_data.cli.tables import table


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(runs)


def runs(
    filter: Annotated[str, typer.Argument(help='A filter in JSON, such as \'{"status": "lost"}\'.')] = "{}",
    sort: Annotated[
        list[str] | None, typer.Option(help="Sort by a field, best.val_acc; -field for descending. May be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """List runs: status, attempts, checkpoints, configuration, and the last and best of each metric."""
    with warehouse(db, project) as opened:
        found = opened.runs(parsed_filter(filter), sort=parsed_sort(sort), limit=limit).all()
        if as_json:
            for run in found:
                say(json_util.dumps(dict(run), json_options=json_util.RELAXED_JSON_OPTIONS))
            return
        table([as_row(run) for run in found])
        if not found:
            say("no runs")

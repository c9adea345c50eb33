"""`tensordb datasets` and `tensordb storage`: what there is, and how much room it takes."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from bson import json_util

from tensordb_data.cli.common import Db, Json, Project, warehouse
from tensordb_data.cli.output import say
from tensordb_data.cli.tables import table
from tensordb_data.common.text_table import sparkline
from tensordb_data.table.activity.growth import growth
from tensordb_data.table.datasets import Dataset

_BARS = 16
_JSON = json_util.RELAXED_JSON_OPTIONS


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(datasets)
    app.command()(storage)


def datasets(as_json: Json = False, db: Db = None, project: Project = None) -> None:
    """List datasets: how many samples, bytes, fields, when they were made and changed, and how their bytes came in.

    The line goes from the first segment of the project until now.
    """
    with warehouse(db, project) as opened:
        found = opened.data.datasets()
        if as_json:
            for dataset in found:
                say(json_util.dumps(_plain(dataset), json_options=_JSON))
            return
        lines = growth(opened.warehouse, _BARS)
        table([
            {**dict(zip(Dataset.COLUMNS, one.cells(), strict=True)), **_line(lines.get(one.name))} for one in found
        ])  # fmt: skip
        if not found:
            say("no datasets")


def storage(as_json: Json = False, db: Db = None, project: Project = None) -> None:
    """Show what takes how much room: blobs by dataset and run, garbage, the cache, the roots, the index."""
    with warehouse(db, project) as opened:
        found = opened.storage()
        say(json_util.dumps(found.to_json(), json_options=_JSON) if as_json else repr(found))


def _plain(one: Dataset) -> dict[str, object]:
    schema = None if one.schema is None else {name: field.to_doc() for name, field in one.schema.items()}
    return {
        "name": one.name, "count": one.count, "exact": one.exact, "written": one.written, "bytes": one.nbytes,
        "segments": one.segments, "schema": schema, "created": one.created, "changed": one.changed,
    }  # fmt: skip


def _line(bars: Sequence[int] | None) -> dict[str, str]:
    return {} if not bars else {"bytes by time": sparkline(bars, max(bars))}

"""`tensordb logs`: the newest rows of a run, a metric as a picture, rows as files of other tools."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from bson import json_util

from tensordb_data.api.logs import LogSelection
from tensordb_data.cli.common import Db, Json, Project, parsed_filter, warehouse
from tensordb_data.cli.output import say
from tensordb_data.cli.tables import table
from tensordb_data.errors import NotFoundError

Filter = Annotated[str, typer.Option("--filter", help='Which rows, in JSON, such as \'{"tags": "cnn"}\'.')]

app = typer.Typer(no_args_is_help=True, help="Look at the logs of runs, draw them, and export them.")


class Format(str, enum.Enum):
    """A format to export to."""

    csv = "csv"
    tensorboard = "tensorboard"


def register(parent: typer.Typer) -> None:
    """Add the commands to `parent`."""
    parent.add_typer(app, name="logs")


@app.command()
def tail(
    run: Annotated[str | None, typer.Argument(help="The run; all of them without one.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only rows of this kind: train, valid, ...")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the newest rows.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with rows as they are written.")] = False,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Print the newest rows of a run, and with --follow those that are still to come."""
    with warehouse(db, project) as opened:
        filter = {name: value for name, value in (("run", run), ("kind", kind)) if value is not None}
        rows = opened.logs.find(filter)
        watch = rows.watch() if follow else None  # before what is there is read, so that nothing falls between
        newest = opened.logs.find(filter, sort=[("_id", -1)], limit=lines).all()[::-1]
        if not newest and watch is None:
            raise _nothing(rows)
        if as_json:
            for row in newest:
                say(_json(row))
        else:
            table([dict(row) for row in newest])
        seen = {row.id for row in newest}
        for row in watch or ():
            if row.id not in seen:
                say(_json(row) if as_json else _line(row))


@app.command()
def plot(
    metric: Annotated[str, typer.Argument(help="The metric.")],
    filter: Filter = "{}",
    out: Annotated[Path | None, typer.Option(help="The PNG to write; METRIC.png without it.")] = None,
    points: Annotated[int, typer.Option(min=1, help="At most so many points a line.")] = 500,
    db: Db = None,
    project: Project = None,
) -> None:
    """Draw a metric over the steps, a line for each run and kind, into a PNG file."""
    with warehouse(db, project) as opened:
        path = out or Path(f"{metric.replace('/', '_')}.png")
        opened.logs.plot(metric, parsed_filter(filter), path=path, points=points)
        say(f"written: {path}")


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="The file, or for TensorBoard the folder, to write.")],
    filter: Filter = "{}",
    format: Annotated[Format, typer.Option(help="The format.")] = Format.csv,
    db: Db = None,
    project: Project = None,
) -> None:
    """Write rows as a CSV file or as event files of TensorBoard."""
    with warehouse(db, project) as opened:
        rows = opened.logs.find(parsed_filter(filter), sort=[("run", 1), ("kind", 1), ("step", 1)])
        if not rows.head(1):
            raise _nothing(rows)
        if format is Format.csv:
            say(f"{rows.to_csv(out):,} rows written: {out}")
        else:
            say(f"{rows.to_tensorboard(out):,} values written: {out}")


def _nothing(rows: LogSelection) -> NotFoundError:
    return NotFoundError(f"{rows.query!r} matches no rows in project {rows.db.project!r}")


def _json(row: Mapping[str, Any]) -> str:
    return str(json_util.dumps(dict(row), json_options=json_util.RELAXED_JSON_OPTIONS))


def _line(row: Mapping[str, Any]) -> str:
    values = " ".join(f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items() if k not in _HEAD)
    return f"{row['time']:%H:%M:%S} {row['run']} {row['kind']} step {row['step']} {values}"


_HEAD = frozenset(("_id", "run", "kind", "step", "time", "tags"))

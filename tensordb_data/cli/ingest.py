"""`tensordb ingest`: image folders and tables into a dataset."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tensordb_data.cli.common import Db, Json, Project, warehouse
from tensordb_data.cli.output import say

_NAMED = 20


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(ingest)


def ingest(
    source: Annotated[
        Path, typer.Argument(help="A folder with one folder of images a class, or a CSV, Parquet or NPZ file.")
    ],
    dataset: Annotated[str, typer.Option(help="The dataset to add to; made when it does not exist.")],
    split: Annotated[str | None, typer.Option(help="The same as --set split=NAME.")] = None,
    set: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help="A field for every sample. May be repeated.")
    ] = None,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Bring images or a table into a dataset. Run again, it adds nothing twice.

    Exit status 1 when some files were unreadable; the others are in.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from tensordb_data.ingest import Report
    from tensordb_data.ingest import ingest as run

    fields = dict(map(_assignment, set or ()))
    if split is not None:
        fields["split"] = split
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with warehouse(db, project, new=True) as opened:
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("0 samples", total=None)

            def progress(done: int, total: int, report: Report) -> None:
                samples = report.added + report.skipped
                bar.update(task, completed=done, total=total, description=f"{samples:,} samples")

            try:
                report = run(opened, source, dataset, set=fields, progress=progress)
            except KeyboardInterrupt:
                say("tensordb: interrupted; what was added stays, and the next run goes on from there", err=True)
                raise
        if as_json:
            say(json.dumps({"dataset": dataset, **dataclasses.asdict(report)}))
        else:
            say(f"{dataset}: {report.added} samples added, {report.skipped} were there already")
        for name, reason in report.failed[:_NAMED]:
            say(f"unreadable: {name}: {reason}", err=True)
        if len(report.failed) > _NAMED:
            say(f"and {len(report.failed) - _NAMED} more; --json names them all", err=True)
    if report.failed:
        raise typer.Exit(1)


def _assignment(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise typer.BadParameter(f"expected FIELD=VALUE, found {text!r}", param_hint="--set")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value

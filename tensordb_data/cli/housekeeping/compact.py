"""`tensordb compact`: blobs of live writers into segments, mostly dead segments into fewer."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from tensordb_data.cli.common import Db, Json, Project, warehouse
from tensordb_data.cli.output import say

_NAMED = 20


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(compact)


def compact(
    dataset: Annotated[str, typer.Argument(help="The dataset.")],
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Move small blobs of live writers into segments, and rewrite segments that are mostly deleted.

    Safe at any time, beside writers and readers. Exit status 1 when samples were damaged; the others have moved.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from tensordb_data.samples.compact import Compacted

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with warehouse(db, project) as opened:
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("0 samples", total=None)

            def progress(done: int, total: int, report: Compacted) -> None:
                bar.update(task, completed=done, total=total, description=f"{report.samples:,} samples")

            report = opened.data.compact(dataset, progress=progress)
        if as_json:
            say(json.dumps(dataclasses.asdict(report)))
        else:
            say(
                f"{dataset}: {report.samples:,} samples moved into {report.segments} new segments"
                f" ({report.bytes / 1e6:,.1f} MB); {report.dying} segments ({report.dying_bytes / 1e6:,.1f} MB) are"
                " no longer used"
            )
        for text in report.damaged[:_NAMED]:
            say(f"damaged: {text}", err=True)
        if len(report.damaged) > _NAMED:
            say(f"and {len(report.damaged) - _NAMED} more; --json names them all", err=True)
    if report.damaged:
        raise typer.Exit(1)

"""`tensordb gc`: blobs that nothing refers to."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from tensordb_data.cli.common import Db, Json, Project, warehouse
from tensordb_data.cli.output import grid, say


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(gc)


def gc(
    grace: Annotated[
        float, typer.Option("--grace", min=0, help="Seconds that what is unused stays, before and after it is marked.")
    ] = 3600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; only say what is unused.")] = False,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Mark blobs that nothing refers to, in all projects, and remove those marked before the grace period.

    Safe at any time, beside writers, readers, savers and compactions.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    with warehouse(db, project) as opened:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("looking", total=None)
            report = opened.gc(
                grace=grace,
                dry_run=dry_run,
                progress=lambda what, count: bar.update(task, description=f"{count:,} {what}"),
            )
        if as_json:
            say(json.dumps(dataclasses.asdict(report)))
            return
        if report.by:
            grid(["what", "MB"], [[name, f"{nbytes / 1e6:,.1f}"] for name, nbytes in sorted(report.by.items())])
        would = "would be " if dry_run else ""
        for count, nbytes, what in (
            (report.marked, report.marked_bytes, f"{would}marked"),
            (report.removed, report.removed_bytes, f"{would}removed"),
            (report.waiting, report.waiting_bytes, "wait for the grace period or a running save"),
        ):
            say(f"{count:,} blobs {what} ({nbytes / 1e6:,.1f} MB)")
        if report.left:
            say(
                f"{report.left:,} unused blobs left alone: `tensordb fsck` names their places, and `tensordb roots add`"
                " opens one"
            )
        if report.temporary:
            size = f"{report.temporary_bytes / 1e6:,.1f} MB"
            say(f"{report.temporary:,} halves of objects, whose writers were killed, {would}removed ({size})")

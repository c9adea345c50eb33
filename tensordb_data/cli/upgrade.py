"""`tensordb upgrade`: the files of a folder to a newer release of MongoDB."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from tensordb_data.api.database import TensorDB
from tensordb_data.cli.common import Db, one_line_errors
from tensordb_data.cli.housekeeping.backup import progress_bar
from tensordb_data.cli.output import say
from tensordb_data.cli.server import folder_of
from tensordb_data.embedded import upgrade as steps
from tensordb_data.embedded.paths import locate


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(upgrade)


def upgrade(
    mongod: Annotated[
        list[Path] | None,
        typer.Option("--mongod", help="A mongod to use, beside those that are found; several are allowed."),
    ] = None,
    backup: Annotated[
        Path | None, typer.Option("--backup", help="A new folder for the backup; default: beside the warehouse.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which steps there are.")] = False,
    db: Db = None,
) -> None:
    """Bring a warehouse folder to a newer release of MongoDB, step by step through the releases that are found.

    A backup comes first. Nobody may use the folder meanwhile. If this is stopped, make the same call again. There is no
    way back to the release before, but the backup.
    """
    folder = folder_of(db)
    with one_line_errors():
        found = steps.plan(folder, mongod or ())
        if not found:
            now = locate(folder).release()
            say(f"{folder} has the files of MongoDB {now}, and no mongod of the next release was found: see --mongod")
            return
        for step in found:
            say(f"to {step.release} with {step.mongod} ({step.version})")
        if dry_run:
            return
        to = backup or folder.with_name(f"{folder.name}-backup-{dt.datetime.now():%Y%m%d-%H%M%S}")
        with progress_bar() as progress, TensorDB(folder) as opened:
            report = opened.backup(to, progress=progress)
        say(f"backup in {report.folder}")
        if report.damaged:
            say(f"{len(report.damaged)} blobs are missing: see `tensordb fsck`; nothing was upgraded", err=True)
            raise typer.Exit(1)
        steps.upgrade(folder, found, say)

"""`tensordb backup`: a warehouse in a folder, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from tensordb_data.api.database import TensorDB
from tensordb_data.cli.common import Db, Json, one_line_errors, warehouse
from tensordb_data.cli.output import say
from tensordb_data.common.text_table import escaped

_NAMED = 20

backup = typer.Typer(
    help="Write a warehouse into a folder, and bring it back. See `docs/housekeeping.md` for what a backup holds.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(backup, name="backup")


@backup.command()
def create(
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder for the backup.")],
    as_json: Json = False,
    db: Db = None,
) -> None:
    """Write index and blobs of all projects into a new folder, as they are at one instant.

    Safe beside writers, readers, savers and gc, which removes nothing meanwhile. Blobs in object stores stay where they
    are, and are named. Exit status 1 if blobs are missing that the index names.
    """
    with warehouse(db) as opened, progress_bar() as progress:
        report = opened.backup(to, progress=progress)
    if as_json:
        say(json.dumps(dataclasses.asdict(report)))
    else:
        say(
            f"{report.folder}: {sum(report.documents.values()):,} documents and {report.objects:,} blobs"
            f" ({report.bytes / 1e6:,.1f} MB)"
        )
        _say_all("not in the backup", report.left_out)
        _say_all("missing", report.damaged)
    if report.damaged:
        raise typer.Exit(1)


@backup.command()
def restore(
    folder: Annotated[Path, typer.Argument(metavar="BACKUP", help="The folder that `backup create` has written.")],
    blobs: Annotated[
        str | None,
        typer.Option("--blobs", metavar="PLACE", help="Where the blobs go; default: the new folder, or GridFS."),
    ] = None,
    as_json: Json = False,
    db: Db = None,
) -> None:
    """Bring a backup back, into a new folder or an empty database, which --db names.

    Each file is compared with its size and checksum. If this is stopped, the target cannot be opened: make the same
    call again, and it begins anew.
    """
    if not db:
        raise typer.BadParameter("name the new folder, or the address of an empty database", param_hint="--db")
    with one_line_errors(), progress_bar() as progress:
        report = TensorDB.restore(folder, db, blobs=blobs, progress=progress)
    if as_json:
        say(json.dumps(dataclasses.asdict(report)))
        return
    say(
        f"restored as of {report.made}: {sum(report.documents.values()):,} documents and {report.objects:,} blobs"
        f" ({report.bytes / 1e6:,.1f} MB); the blobs are in {report.blobs}"
    )
    _say_all("was not in the backup", report.left_out)
    _say_all("was missing already", report.damaged)


def _say_all(what: str, lines: list[str]) -> None:
    for line in lines[:_NAMED]:
        say(f"{what}: {line}")
    if len(lines) > _NAMED:
        say(f"and {len(lines) - _NAMED:,} more; --json names all")


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on the standard error, if that is a terminal, and the function that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("looking", total=None)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=escaped(what), completed=done, total=total or None)

        yield progress

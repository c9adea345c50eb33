"""`tensordb up`, `down`, `uri` and `status`: the server of a warehouse folder, and what a warehouse holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tensordb_data.cli.common import Db as Address
from tensordb_data.cli.common import Project, one_line_errors, opened
from tensordb_data.cli.config.settings import settings
from tensordb_data.cli.live.status import status_lines
from tensordb_data.cli.output import say
from tensordb_data.embedded import control
from tensordb_data.embedded.binary import far_ahead, known_holes
from tensordb_data.embedded.paths import Layout, locate
from tensordb_data.errors import TensorDBError
from tensordb_data.mongo.address import parse
from tensordb_data.table.activity.facts import facts
from tensordb_data.table.activity.growth import growth

_BARS = 24

Db = Annotated[
    str | None,
    typer.Option("--db", envvar="TENSORDB", metavar="FOLDER", help="The warehouse folder.", show_envvar=True),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    for command in (up, down, uri, status):
        app.command()(command)


def up(
    db: Db = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Listen on this port of 127.0.0.1 too, with generated credentials."),
    ] = None,
) -> None:
    """Start the server of a warehouse folder and keep it running without clients."""
    folder = folder_of(db)
    with one_line_errors():
        control.up(folder, port)
        now = control.status(folder)
        where = f" and on 127.0.0.1:{now.port}" if now.port else ""
        say(f"MongoDB {now.version} runs for {now.folder}{where}, until `tensordb down`")
        say("`tensordb uri` prints the address for other tools")
        if now.port and now.version and (holes := known_holes(now.version)) is not None:
            say(holes, err=True)
        if (newer := _far_ahead(folder)) is not None:
            say(newer, err=True)


def down(db: Db = None) -> None:
    """Stop keeping the server: it ends now, or with the last process that uses it."""
    folder = folder_of(db)
    with one_line_errors():
        was_running = control.status(folder).running
        clients = control.down(folder)
        if clients:
            users = "1 process" if len(clients) == 1 else f"{len(clients)} processes"
            pids = ", ".join(map(str, clients))
            say(f"{users} still connected (pid {pids}): the server of {folder} ends with the last one")
        else:
            say(f"the server of {folder} {'has ended' if was_running else 'was not running'}")


def uri(db: Db = None) -> None:
    """Print the address of the running server, to paste into another tool. It may hold the password."""
    folder = folder_of(db)
    with one_line_errors():
        say(control.uri(folder))


def status(
    db: Address = None,
    project: Project = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say whether the server runs, for whom, and what its warehouse holds. Exit status 1 when it does not run.

    It starts no server. Of a folder, it says who is connected; of an address, what the warehouse there holds.
    """
    with one_line_errors():
        where = settings({"db": db})["db"].value
    now = None
    if not (where or "").startswith(("mongodb://", "mongodb+srv://")):  # only a folder has a server that is ours
        folder = folder_of(where)
        with one_line_errors():
            now = control.status(folder)
    state = {} if now is None else dataclasses.asdict(now) | {"folder": str(now.folder)}
    lines = [] if now is None else list(_lines(now))
    if now is None or (now.running and Layout(now.folder).manifest.exists()):
        held, more = _held(where, project, alone=now is None)
        state, lines = state | {"warehouse": held}, [*lines, *more]
    if as_json:
        say(json.dumps(state))
    else:
        for line in lines:
            say(line)
        if now is not None and (newer := _far_ahead(now.folder)) is not None:
            say(f"newer    {newer}")
    if now is not None and not now.running:
        raise typer.Exit(1)


def _held(where: str | None, project: str | None, *, alone: bool) -> tuple[dict[str, Any] | None, list[str]]:
    """What a warehouse holds, for programs and for people.

    Args:
        where: The warehouse.
        project: The project.
        alone: Whether nothing else is told, so that an error is the answer.
    """
    with one_line_errors():
        try:
            with opened(where, project, read_only=True) as found:
                known = facts(found.warehouse)
                lines = list(status_lines(known, growth(found.warehouse, _BARS)))
                if alone:
                    lines = [f"server   MongoDB {known.version}, {found.warehouse.address}", *lines]
                return known.to_json(), lines
        except TensorDBError as error:
            if alone:
                raise
            return None, [f"unknown  {' '.join(str(error).split())}"]


def _lines(now: control.Status) -> Iterator[str]:
    yield f"folder   {now.folder}"
    if not now.running:
        yield "server   not running; it starts with the first client, or by `tensordb up`"
        if now.error:
            yield f"error    {now.error}"
        return
    life = "kept running until `tensordb down`" if now.kept else "ends with its last client"
    yield f"server   MongoDB {now.version}, pid {now.mongod}, {life}"
    yield f"tcp      {f'127.0.0.1:{now.port}, with credentials' if now.port else 'closed; Unix socket only'}"
    yield f"clients  {', '.join(f'pid {pid}' for pid in now.clients) or 'none'}"


def _far_ahead(folder: Path) -> str | None:
    """One line about a mongod that is too new for the files of a folder."""
    written_by = locate(folder).release()
    return None if written_by is None else far_ahead(written_by)


def folder_of(db: str | None) -> Path:
    """The folder that the option names; anything else is a mistake in the command line."""
    with one_line_errors():
        db = settings({"db": db})["db"].value
    if not db:
        raise typer.BadParameter(
            "name the warehouse folder, or set TENSORDB, or `tensordb config set db ...`", param_hint="--db"
        )
    try:
        folder = parse(db).folder
    except TensorDBError as error:
        raise typer.BadParameter(str(error), param_hint="--db") from None
    if folder is None:
        raise typer.BadParameter(
            "a folder is expected here: a MongoDB with an address is not ours to start or stop", param_hint="--db"
        )
    return folder

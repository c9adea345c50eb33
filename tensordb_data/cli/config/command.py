"""`tensordb config`: the settings of this user, and where each of them comes from."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tensordb_data.cli.common import Db, Json, Project, one_line_errors
from tensordb_data.cli.config.settings import (
    DEFAULT,
    VARIABLES,
    note_setting,
    remove_setting,
    rows_of_roots,
    settings,
    without_password,
)
from tensordb_data.cli.output import say
from tensordb_data.cli.places import Blobs, Cache
from tensordb_data.cli.tables import table
from tensordb_data.warehouse import user_config

config = typer.Typer(
    help="The settings of this user: which warehouse, project, blobs and cache are meant where a command line does not "
    "say so. An option comes first, then an environment variable, then the config file. Without a subcommand, shows "
    "all and where each comes from.",
)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(config, name="config")


@config.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
    blobs: Blobs = None,
    cache: Cache = None,
) -> None:
    """Show the settings: which warehouse, project, blobs and cache are meant where a command line does not say so.

    An option comes first, then an environment variable, then the config file. Passwords are not shown.
    """
    if context.invoked_subcommand is not None:
        return
    with one_line_errors():
        values = {"db": db, "project": project, "blobs": blobs, "cache": cache}
        found = settings(values)
        rows = [(each.key, None if each.value is None else each.shown, each.origin) for each in found.values()]
        rows += rows_of_roots()
        if as_json:
            for key, value, origin in rows:
                say(json.dumps({"key": key, "value": value, "from": origin}, ensure_ascii=False))
            return
        table([
            {"key": key, "value": found[key].shown if origin == DEFAULT else value, "from": origin}
            for key, value, origin in rows
        ])  # fmt: skip


@config.command("set")
def set_(
    key: Annotated[str, typer.Argument(metavar="KEY", help=f"One of {', '.join(VARIABLES)}.")],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="Its value. A path is noted from the root on.")],
) -> None:
    """Note a setting in the config file of this user."""
    with one_line_errors():
        noted = note_setting(key, value)
        say(f"{key} is {without_password(noted)}, in {user_config.path()}")
        if without_password(noted) != noted:
            say("the password stands in that file, which nobody else may read", err=True)


@config.command()
def unset(key: Annotated[str, typer.Argument(metavar="KEY", help="The setting.")]) -> None:
    """Take a setting out of the config file of this user."""
    with one_line_errors():
        there = remove_setting(key)
        say(f"{key} {'is out of' if there else 'is not in'} {user_config.path()}")


@config.command()
def path() -> None:
    """Print where the config file of this user is, or would be."""
    with one_line_errors():
        say(str(user_config.path()))

"""`tensordb changes` and `tensordb history`: who changed what, when."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from collections.abc import Iterable
from typing import Annotated

import typer
from bson import ObjectId, json_util

from tensordb_data.cli.common import Db, Json, Project, warehouse
from tensordb_data.cli.output import say
from tensordb_data.cli.tables import table
from tensordb_data.errors import QueryError
from tensordb_data.samples.changes.history import Change

_ROWS = 50
_AGE = re.compile(r"([1-9][0-9]{0,5})([dhm])", re.ASCII)
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(changes)
    app.command()(history)


def changes(
    dataset: Annotated[str, typer.Argument(help="The dataset.")],
    limit: Annotated[int, typer.Option(min=1, help="Only so many, the newest ones.")] = _ROWS,
    prune: Annotated[
        str | None, typer.Option(help="Remove entries that are older than this first: 90d, 12h or 30m.", metavar="AGE")
    ] = None,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Print what was done to the samples of a dataset, when and by whom, the newest last."""
    with warehouse(db, project, read_only=prune is None) as opened:
        if prune is not None:
            removed = opened.data.prune_changes(dataset, older_than=_age(prune))
            say(f"{removed:,} entries removed", err=True)
        _print(opened.data.changes(dataset, limit=limit), as_json)


def history(
    id: Annotated[str, typer.Argument(help="The _id of the sample, which may be deleted.")],
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Print who changed a sample, when, and from what to what."""
    with warehouse(db, project, read_only=True) as opened:
        if not ObjectId.is_valid(id):
            raise QueryError(f"the _id of a sample has 24 hexadecimal digits; found {id:.100}")
        _print(opened.data.history(ObjectId(id)), as_json)


def _print(found: Iterable[Change], as_json: bool) -> None:
    rows = list(found)
    if as_json:
        for change in rows:
            say(json_util.dumps(dataclasses.asdict(change), json_options=json_util.RELAXED_JSON_OPTIONS))
        return
    table([dict(zip(change.COLUMNS, change.cells(), strict=True)) for change in rows])
    if not rows:
        say("no changes are known")


def _age(text: str) -> dt.timedelta:
    found = _AGE.fullmatch(text)
    if found is None:
        raise QueryError(f"--prune takes an age such as 90d, 12h or 30m; found {text:.100}")
    return dt.timedelta(**{_UNITS[found[2]]: int(found[1])})

"""What the commands share: the warehouse, and errors as one line."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from tensordb_data.api.database import TensorDB
from tensordb_data.cli.config.settings import settings
from tensordb_data.cli.output import say
from tensordb_data.cli.places import given
from tensordb_data.embedded.paths import Layout
from tensordb_data.embedded.read_only import is_writable
from tensordb_data.errors import NotFoundError, QueryError, TensorDBError
from tensordb_data.mongo.address import parse

Db = Annotated[
    str | None,
    typer.Option(
        "--db", envvar="TENSORDB", metavar="WAREHOUSE", help="Folder or address of the warehouse.", show_envvar=True
    ),
]
Project = Annotated[
    str | None,
    typer.Option("--project", envvar="TENSORDB_PROJECT", help="The project; default: default.", show_envvar=True),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON; of several, one a line.")]


@contextlib.contextmanager
def warehouse(
    db: str | None,
    project: str | None = None,
    *,
    new: bool = False,
    read_only: bool = False,
) -> Iterator[TensorDB]:
    """The warehouse that the options name, with the places of `given`; errors are those of `one_line_errors`.

    Args:
        db: The folder or address. Of what is None, the environment says what is meant, or the config file of this user.
        project: The project.
        new: Whether the command has a use for a folder that does not hold a warehouse yet.
        read_only: Whether the command only reads. One that has no right to write in the folder does so anyway.
    """
    with one_line_errors(), opened(db, project, new=new, read_only=read_only) as found:
        yield found


@contextlib.contextmanager
def opened(
    db: str | None,
    project: str | None = None,
    *,
    new: bool = False,
    read_only: bool = False,
) -> Iterator[TensorDB]:
    """The same, with errors as they are.

    Raises:
        TensorDBError: The warehouse cannot be opened.
        BadParameter: None is named.
    """
    places = given.get()
    meant = settings({"db": db, "project": project, "blobs": places.get("blobs"), "cache": places.get("cache")})
    where = meant["db"].value
    if not where:
        raise typer.BadParameter(
            "name the warehouse (a folder or a mongodb:// address), or set TENSORDB, or `tensordb config set db ...`",
            param_hint="--db",
        )
    named = dict(_root(text) for text in places.get("roots") or ())
    folder = parse(where).folder
    there = folder is not None and Layout(folder).manifest.exists()
    if not new and folder is not None and not there:
        raise NotFoundError(f"there is no warehouse in {folder}; `tensordb ingest` and `tensordb up` make one")
    read_only = read_only or (there and folder is not None and not is_writable(Layout(folder)))
    project, blobs, cache = (meant[key].value for key in ("project", "blobs", "cache"))
    with TensorDB(where, project=project, read_only=read_only, blobs=blobs, cache=cache, roots=named or None) as found:
        yield found


def _root(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise typer.BadParameter(f"expected NAME=PATH, found {text!r}", param_hint="--root")
    return name, path


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors that a user can act on become one line and exit status 1."""
    try:
        yield
    except TensorDBError as error:
        say(f"tensordb: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None
    except PermissionError as error:
        say(f"tensordb: {error.filename}: permission denied; the warehouse belongs to another user", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        raise typer.Exit(0) from None


def parsed_filter(text: str) -> dict[str, Any]:
    """The filter that an argument holds as JSON."""
    return parsed_object("the filter", text, '{"label": 3}')


def parsed_object(what: str, text: str, example: str) -> dict[str, Any]:
    """The object that an argument holds as JSON.

    Raises:
        QueryError: It does not; names `what`, and shows the example.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise QueryError(f"{what} is not JSON ({error}); write for example '{example}'") from None
    if not isinstance(found, dict):
        raise QueryError(f"{what} is a JSON object such as '{example}'; found {text:.200}")
    return found


def parsed_sort(names: Sequence[str] | None) -> list[tuple[str, int]] | None:
    """The sort that options such as `-val_acc` make; None without any."""
    return [(name[1:], -1) if name.startswith("-") else (name, 1) for name in names or ()] or None

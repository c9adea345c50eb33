"""`tensordb roots`: the places of blobs that this user has opened, whatever a database says."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tensordb_data.cli.common import Json, one_line_errors
from tensordb_data.cli.output import say
from tensordb_data.common.options import nearest
from tensordb_data.errors import NotFoundError, StorageError
from tensordb_data.warehouse.catalog import resolve_blobs
from tensordb_data.warehouse.user_config import path, roots_of_user, write_roots

roots = typer.Typer(
    help="The places of blobs that this user has opened. Blobs are read, written and deleted there, whatever warehouse "
    "names them. A place that only a database names is refused.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(roots, name="roots")


@roots.command()
def add(
    name: Annotated[str, typer.Argument(help="A name of your choice.")],
    place: Annotated[str, typer.Argument(metavar="PATH", help="A folder, or a URL such as s3://bucket/prefix.")],
) -> None:
    """Open a place for all warehouses that have blobs there. It is noted in this user's config file."""
    with one_line_errors():
        known, url = roots_of_user(), resolve_blobs(place, None, "PATH")
        if known.get(name, url) != url:
            raise StorageError(f"the name {name!r} is taken by {known[name]}; choose another, or remove that first")
        write_roots({**known, name: url})
        say(f"{name} is {url}, in {path()}")


@roots.command("list")
def list_roots(as_json: Json = False) -> None:
    """List the places that this user has opened."""
    with one_line_errors():
        known = roots_of_user()
        if as_json:
            say(json.dumps(known))
            return
        for name, url in sorted(known.items()):
            say(f"{name}  {url}")


@roots.command()
def remove(name: Annotated[str, typer.Argument(help="The name that it was added by.")]) -> None:
    """Close a place again. Its blobs stay."""
    with one_line_errors():
        known = roots_of_user()
        if name not in known:
            raise NotFoundError(f"no place is named {name!r}{nearest(name, known)}")
        write_roots({other: url for other, url in known.items() if other != name})
        say(f"{name} is closed; its blobs stay in {known[name]}")

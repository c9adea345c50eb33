"""`tensordb roots`: the places of blobs and of files that this user has opened, whatever a database says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tensordb_data.blobs.stores.foreign import Root
from tensordb_data.cli.common import Json, one_line_errors
from tensordb_data.cli.output import say
from tensordb_data.common.options import nearest
from tensordb_data.errors import NotFoundError, StorageError
from tensordb_data.warehouse.catalog import resolve_blobs
from tensordb_data.warehouse.roots import check_root_name
from tensordb_data.warehouse.user_config import files_of_user, path, roots_of_user, write_files, write_roots

roots = typer.Typer(
    help="The places that this user has opened, for all warehouses: of blobs, and of files that samples point into. "
    "Places of blobs are read and written, and blobs are deleted there. A place that only a database names is refused.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(roots, name="roots")


@roots.command()
def add(
    name: Annotated[str, typer.Argument(help="A name of your choice; of files, the one that the samples have.")],
    place: Annotated[str, typer.Argument(metavar="PATH", help="A folder, or a URL such as s3://bucket/prefix.")],
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Only for files that samples point into: nothing is written there.")
    ] = False,
) -> None:
    """Open a place for all warehouses that have blobs there, or whose samples point into its files.

    It is noted in this user's config file.
    """
    with one_line_errors():
        opened, files = roots_of_user(), files_of_user()
        folder = Root(place).path if read_only else None
        if folder is not None and not folder.is_dir():
            raise StorageError(f"there is no folder {folder}")
        url = resolve_blobs(place, None, "PATH") if folder is None else folder.as_uri()
        for taken in ({name: Path(each).as_uri() for name, each in files.items()}, opened):
            if taken.get(name, url) != url:
                raise StorageError(f"the name {name!r} is taken by {taken[name]}; choose another, or remove that first")
        if folder is None:
            write_roots({**opened, name: url})
            say(f"{name} is {url}, in {path()}")
        else:
            write_files({**files, check_root_name(name): str(folder)})
            say(f"{name} is {folder}, in {path()}; nothing is written there")


@roots.command("list")
def list_roots(as_json: Json = False) -> None:
    """List the places that this user has opened."""
    with one_line_errors():
        opened, files = roots_of_user(), files_of_user()
        if as_json:
            say(json.dumps({**files, **opened}))
            return
        for name, place in sorted({**files, **opened}.items()):
            say(f"{name}  {place}" if name in opened else f"{name}  {place}  (read only)")


@roots.command()
def remove(name: Annotated[str, typer.Argument(help="The name that it was added by.")]) -> None:
    """Close a place again. What is there stays."""
    with one_line_errors():
        opened, files = roots_of_user(), files_of_user()
        known = {**files, **opened}
        if name not in known:
            raise NotFoundError(f"no place is named {name!r}{nearest(name, known)}")
        if name in opened:
            write_roots({other: url for other, url in opened.items() if other != name})
        if name in files:
            write_files({other: folder for other, folder in files.items() if other != name})
        what = "its blobs stay" if name in opened else "its files stay"
        say(f"{name} is closed; {what} in {known[name]}")

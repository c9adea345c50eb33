"""`tensordb export`: samples into files that other libraries read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from tensordb_data.cli.common import Db, Json, Project, parsed_filter, parsed_sort, warehouse
from tensordb_data.cli.output import say
from tensordb_data.export.plan import DEFAULT_SPLIT
from tensordb_data.export.run import FORMATS
from tensordb_data.query.query import Query


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(export)


def export(
    path: Annotated[Path, typer.Argument(help="The folder to make.")],
    filter: Annotated[str, typer.Argument(help="A filter in JSON, such as '{\"label\": 3}'.")] = "{}",
    dataset: Annotated[str | None, typer.Option(help="Only samples of this dataset.")] = None,
    format: Annotated[
        str, typer.Option(help=f"{', '.join(FORMATS)}.", autocompletion=lambda: list(FORMATS))
    ] = "parquet",
    fields: Annotated[str | None, typer.Option(help="Names of the fields to write, with commas between.")] = None,
    sort: Annotated[
        list[str] | None, typer.Option(help="Sort by a field; -field for descending order. May be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many samples.")] = None,
    split: Annotated[
        str, typer.Option(help="The field that divides the samples into files or folders; empty for none.")
    ] = DEFAULT_SPLIT,
    shard_bytes: Annotated[str | None, typer.Option(metavar="SIZE", help="Bytes of a file, such as 500MB.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export of that name.")] = False,
    nan: Annotated[bool, typer.Option("--nan", help="Write NaN and infinities as JSON, which lacks them.")] = False,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Write samples into a folder that other libraries read. Blobs are copied as they were stored.

    If it is interrupted, the same command goes on.
    """
    with warehouse(db, project) as opened:
        asked = parsed_filter(filter)
        if dataset is not None:
            asked = {"$and": [{"dataset": dataset}, asked]} if asked else {"dataset": dataset}
        selection = opened.select(Query("data", asked, sort=parsed_sort(sort), limit=limit))
        try:
            report = selection.export(
                path,
                format,
                fields=None if fields is None else [name.strip() for name in fields.split(",") if name.strip()],
                shard_bytes=int(shard_bytes) if shard_bytes and shard_bytes.isdecimal() else shard_bytes,
                split=split or None,
                overwrite=overwrite,
                nan=nan,
                progress=True,
            )
        except KeyboardInterrupt:
            say("tensordb: interrupted; what is complete is kept, and the same command goes on", err=True)
            raise
        say(json.dumps(dataclasses.asdict(report)) if as_json else str(report))

"""`tensordb find`: entities by query."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from bson import json_util

from tensordb_data.cli.common import Db, Json, Project, parsed_filter, parsed_sort, warehouse
from tensordb_data.cli.output import say
from tensordb_data.cli.tables import table
from tensordb_data.common.bson_values import COLLECTIONS
from tensordb_data.query.query import Query
from tensordb_data.samples.sample import Sample

_ROWS = 20


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(find)


def find(
    collection: Annotated[
        str,
        typer.Argument(help="data, architectures, params, jobs or logs.", autocompletion=lambda: list(COLLECTIONS)),
    ],
    filter: Annotated[str, typer.Argument(help="A filter in JSON, such as '{\"label\": 3}'.")] = "{}",
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"At most so many; a table shows {_ROWS} unless told.")
    ] = None,
    sort: Annotated[
        list[str] | None, typer.Option(help="Sort by a field; -field for descending order. May be repeated.")
    ] = None,
    fields: Annotated[str | None, typer.Option(help="Names of the fields to show, with commas between.")] = None,
    count: Annotated[bool, typer.Option("--count", help="Print only how many match.")] = False,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Print the entities that match a filter, in MongoDB's query language."""
    with warehouse(db, project) as opened:
        names = None if fields is None else [name.strip() for name in fields.split(",") if name.strip()]
        query = Query(collection, parsed_filter(filter), sort=parsed_sort(sort), limit=limit, fields=names)
        selection = opened.select(query)
        if count:
            say(json.dumps(selection.count()) if as_json else f"{selection.count()}")
        elif as_json:
            for entity in selection:
                say(json_util.dumps(shown(entity), json_options=json_util.RELAXED_JSON_OPTIONS))
        else:
            table([shown(entity) for entity in selection.head(limit or _ROWS)])
            matching = opened.select(query.replace(limit=None)).count()
            say(f"{matching} match{'' if matching != 1 else 'es'}")


def shown(entity: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an entity, with blobs named and not read."""
    if isinstance(entity, Sample):
        blobs = entity.blobs
        return {name: repr(blobs[name]) if name in blobs else entity[name] for name in entity}
    return dict(entity)

"""`tensordb search`: what has some words in its name, tags or texts."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from bson import json_util
from pymongo.errors import ExecutionTimeout

from tensordb_data.api.search import Hit
from tensordb_data.cli.common import Db, Json, Project, warehouse
from tensordb_data.cli.output import say
from tensordb_data.cli.tables import table
from tensordb_data.common.bson_values import COLLECTIONS

_COUNT_MS = 200


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(search)


def search(
    words: Annotated[list[str], typer.Argument(help="Words, or beginnings of words.")],
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only of this collection. May be repeated.", autocompletion=lambda: list(COLLECTIONS)),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Find entities of all kinds by words in their names, tags and texts; the best come first."""
    with warehouse(db, project) as opened:
        hits = opened.search(" ".join(words), kind=kind or None, limit=limit)
        for hit in hits if as_json else ():
            line = {
                "kind": hit.kind, "name": hit.name, "tags": list(hit.tags), "score": hit.score,
                "query": json.loads(hit.query.to_json()), "_id": hit.id,
            }  # fmt: skip
            say(json_util.dumps(line, json_options=json_util.RELAXED_JSON_OPTIONS))
        if not as_json:
            table([
                {
                    "score": f"{hit.score:.2f}", "kind": hit.kind, "name": hit.name, "tags": list(hit.tags),
                    "matches": _matches(hit), "_id": hit.id,
                }
                for hit in hits
            ])  # fmt: skip
            say(f"{len(hits)} found")


def _matches(hit: Hit) -> int | str:
    """How many there are, as far as that is counted at once: the table is not worth more time."""
    found = hit.selection.bound
    if hit.query.frozen is not None:
        return hit.selection.count()
    try:
        return int(found.collection.count_documents(found.filter(), maxTimeMS=_COUNT_MS))
    except ExecutionTimeout:
        return "many"

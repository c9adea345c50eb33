"""`tensordb freeze`, `frozen` and `diff`: frozen sets of samples."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer
from bson import json_util

from tensordb_data.api.database import TensorDB
from tensordb_data.cli.common import Db, Json, Project, parsed_filter, parsed_sort, warehouse
from tensordb_data.cli.output import note, say
from tensordb_data.cli.tables import table
from tensordb_data.time.cards import FrozenCard
from tensordb_data.time.diff import Change

_ROWS = 20


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(freeze)
    app.command()(frozen)
    app.command()(diff)


def freeze(
    query: Annotated[str, typer.Argument(help='A filter of samples in JSON, such as \'{"dataset": "fashion"}\'.')],
    name: Annotated[str, typer.Argument(help="The name of the set.")],
    sort: Annotated[
        list[str] | None, typer.Option(help="Sort by a field; -field for descending order. May be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many samples.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag of the set. May be repeated.")] = None,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Give a name to samples with their values, for ever."""
    with warehouse(db, project) as opened:
        found = opened.data.find(parsed_filter(query), sort=parsed_sort(sort), limit=limit).freeze(name, tags=tag or ())
        card = opened.data.frozen(name).card
        say(_json(_card(card)) if as_json else f"{name}: {found.count():,} samples are frozen")


def frozen(
    drop: Annotated[str | None, typer.Option(metavar="NAME", help="Remove this set.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also if checkpoints or jobs refer to it.")] = False,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """List the frozen sets, the newest first, or remove one."""
    with warehouse(db, project) as opened:
        if drop is not None:
            opened.data.frozen(drop).drop(force=force)
            say(_json({"dropped": drop}) if as_json else f"{drop} is dropped; the next gc removes what only it had")
            return
        cards = opened.data.frozen()
        if as_json:
            for card in cards:
                say(_json(_card(card)))
            return
        table([dict(zip(card.COLUMNS, card.cells(), strict=True)) for card in cards])
        say(f"{len(cards)} frozen set{'' if len(cards) == 1 else 's'}")


def diff(
    old: Annotated[str, typer.Argument(help="The name of a frozen set, or a filter of samples in JSON.")],
    new: Annotated[str, typer.Argument(help="The same.")],
    limit: Annotated[int, typer.Option(min=0, help="Show at most so many changed samples.")] = _ROWS,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Compare two frozen sets, or one with the samples of now.

    With --json, the first line has the counts. Then comes a line for each sample that was added, removed or changed.
    """
    with warehouse(db, project) as opened:
        found = opened.data.diff(_state(opened, old), _state(opened, new))
        if as_json:
            counts = {"added": len(found.added), "removed": len(found.removed), "changed": len(found.changed)}
            say(_json({**counts, "same": found.same, "fields": found.changed.fields}))
            for what, some in (("added", found.added), ("removed", found.removed)):
                for id in some.ids:
                    say(_json({what: id}))
            for change in found.changed:
                say(_json({"changed": change.id, "fields": _shown(change)}))
            return
        say(repr(found))
        shown = found.changed[:limit]
        table([{"_id": change.id, **{name: f"{a!r} -> {b!r}" for name, (a, b) in _shown(change).items()}}
               for change in shown])  # fmt: skip
        if len(shown) < len(found.changed):
            note(f"and {len(found.changed) - len(shown):,} more changed samples: --limit, or --json for all")


def _state(opened: TensorDB, text: str) -> Any:
    return opened.data.find(parsed_filter(text)) if text.lstrip().startswith("{") else text


def _shown(change: Change) -> dict[str, tuple[Any, Any]]:
    """The old and the new values; of blobs only that they differ."""
    blobs = {*change.old.blobs, *(change.new.blobs if change.new is not None else ())}
    return {name: ("…", "…") if name in blobs else change[name] for name in change}


def _card(card: FrozenCard) -> dict[str, Any]:
    fields = dataclasses.asdict(dataclasses.replace(card, query=None))
    return {**fields, "query": None if card.query is None else card.query.to_json()}


def _json(value: Any) -> str:
    return json_util.dumps(value, json_options=json_util.RELAXED_JSON_OPTIONS)

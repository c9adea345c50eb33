"""`tensordb forget` and `forgotten`: samples that are deleted with all that is stored of them."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer
from bson import json_util

from tensordb_data.cli.common import Db, Json, Project, parsed_filter, warehouse
from tensordb_data.cli.output import note, say
from tensordb_data.cli.tables import table
from tensordb_data.time.forget.server_files import check_embedded, compact_server


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(forget)
    app.command()(forgotten)


def forget(
    reason: Annotated[str, typer.Option(help="Why, such as 'GDPR 2026-114'. It stays in a record.")],
    dataset: Annotated[str | None, typer.Option(help="Samples of this dataset.")] = None,
    filter: Annotated[str | None, typer.Option(help="Those that match this filter, in JSON.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, and say what would be done.")] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Have an embedded server rewrite its collections, so that free pages go.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Forget without a question.")] = False,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Delete samples with all that is stored of them, at once.

    Frozen sets that have them must be dropped first. What is not reached is named.
    """
    if dataset is None and filter is None:
        raise typer.BadParameter("name the samples by --dataset, by --filter, or both", param_hint="--dataset")
    with warehouse(db, project) as opened:
        if compact:
            check_embedded(opened.warehouse)
        asked = [] if filter is None else [parsed_filter(filter)]
        selection = opened.data.find({"$and": [*asked, *([] if dataset is None else [{"dataset": dataset}])]})
        if not (dry_run or yes) and not typer.confirm(f"Forget {selection.count():,} samples for ever?", err=True):
            raise typer.Exit(1)
        report = opened.data.forget(selection, reason=reason, dry_run=dry_run)
        if compact and not dry_run:
            compact_server(opened.warehouse)
        if as_json:
            say(_json(dataclasses.asdict(report)))
            return
        would = "would be " if dry_run else ""
        say(f"{report.samples:,} samples {would}forgotten, {report.segments:,} segments {would}removed")
        named = {"seen by": report.trained_on, "scored": report.scored_on, "in stored plans, perhaps": report.plans}
        for what, ids in named.items():
            if ids:
                say(f"{what}: {', '.join(map(str, ids))}")
        for left in (*report.files, *report.not_reached):
            note(f"not reached: {left}")


def forgotten(as_json: Json = False, db: Db = None, project: Project = None) -> None:
    """List what was forgotten: when, by whom and why."""
    with warehouse(db, project) as opened:
        records = opened.data.forgotten()
        if as_json:
            for record in records:
                say(_json(dataclasses.asdict(record)))
            return
        table([dict(zip(record.COLUMNS, record.cells(), strict=True)) for record in records])


def _json(value: Any) -> str:
    return json_util.dumps(value, json_options=json_util.RELAXED_JSON_OPTIONS)

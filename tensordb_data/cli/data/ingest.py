"""`tensordb ingest`: files of all kinds into a dataset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from tensordb_data.cli.common import Db, Json, Project, warehouse
from tensordb_data.cli.output import say

_NAMED = 20


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(ingest)


def ingest(
    source: Annotated[
        list[str],
        typer.Argument(help="Files, folders, globs or URLs; {000..099} stands for many.", metavar="SOURCE..."),
    ],
    dataset: Annotated[str, typer.Option(help="The dataset to add to; made when it does not exist.")],
    key: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="A row is known by this column. May be repeated.")
    ] = None,
    source_id: Annotated[str | None, typer.Option(help="A name for the source, if it may be moved.")] = None,
    on_change: Annotated[str, typer.Option(metavar="update|skip|error", help="What a changed row does.")] = "update",
    prune: Annotated[bool, typer.Option(help="Delete samples whose rows are gone.")] = False,
    fields: Annotated[
        list[str] | None, typer.Option("--field", metavar="COLUMN", help="Take this column only. May be repeated.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Leave this column out. May be repeated.")
    ] = None,
    rename: Annotated[list[str] | None, typer.Option(metavar="OLD=NEW", help="A new name. May be repeated.")] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="COLUMN=KIND", help="str, int, json, image, … May be repeated."),
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help="A field for every sample. May be repeated.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="The same as --set split=NAME.")] = None,
    files: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="A column of paths of images. May be repeated.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The folder below which such files are.")] = None,
    format: Annotated[str | None, typer.Option(help="The reader, where the suffix does not tell.")] = None,
    encoding: Annotated[str, typer.Option(help="That of CSV files.")] = "utf-8",
    images: Annotated[str | None, typer.Option(help="The folder of the images, for annotations.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="KEYWORD", help="A tag of DICOM that becomes a field. May be repeated.")
    ] = None,
    on_error: Annotated[str, typer.Option(metavar="collect|raise|N", help="Go on, or stop after N.")] = "collect",
    on_damage: Annotated[str, typer.Option(metavar="fail|keep", help="What a damaged image does.")] = "fail",
    verify: Annotated[str, typer.Option(metavar="decode|header|none", help="How images are checked.")] = "decode",
    workers: Annotated[int | None, typer.Option(help="Threads that read and check.")] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Files stay where they are, and samples point into them.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Write nothing, and say what would be done.")] = False,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Bring images, tables or other files into a dataset. Run again, it adds nothing twice.

    Exit status 1 when something did not come in; the rest is in.
    """
    options: dict[str, Any] = {
        "key": key, "source_id": source_id, "on_change": on_change, "prune": prune, "fields": fields,
        "skip": skip or (), "rename": dict(_pairs("--rename", rename)), "types": dict(_pairs("--type", types)),
        "set": {name: _value(text) for name, text in _pairs("--set", set)}, "files": dict.fromkeys(files or ()),
        "base": base, "format": format, "encoding": encoding, "images": images, "tags": tag or (),
        "on_error": int(on_error) if on_error.isdecimal() else on_error, "on_damage": on_damage, "verify": verify,
        "workers": workers,
    }  # fmt: skip
    if split is not None:
        options["set"]["split"] = split
    with warehouse(db, project, new=not dry_run) as opened:
        try:
            given: Any = source[0] if len(source) == 1 else source
            report = opened.data.ingest(given, dataset, in_place=in_place, progress=True, dry_run=dry_run, **options)
        except KeyboardInterrupt:
            say("tensordb: interrupted; what was added stays, and the next run goes on from there", err=True)
            raise
        say(report.to_json() if as_json else f"{dataset}: {report}")
        for note in report.notes:
            say(f"note: {note}", err=True)
        for name, reason in report.failed[:_NAMED]:
            say(f"failed: {name}: {reason}", err=True)
        if report.failures > _NAMED:
            say(f"and {report.failures - _NAMED} more; --json names them all", err=True)
    if report.failures:
        raise typer.Exit(1)


def _pairs(option: str, texts: Sequence[str] | None) -> list[tuple[str, str]]:
    found = []
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or (not name and option == "--set"):
            raise typer.BadParameter(f"expected NAME=VALUE, found {text!r}", param_hint=option)
        found.append((name, value))
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text

"""`tensordb import`: the runs of another tracker."""

from __future__ import annotations

from typing import Annotated

import typer

from tensordb_data.cli.common import Db, Json, Project, warehouse
from tensordb_data.cli.output import say
from tensordb_data.logs.imported.run import KINDS

_NAMED = 20


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("import")(import_)


def import_(
    kind: Annotated[str, typer.Argument(help=f"The tracker: {', '.join(KINDS)}.", metavar="|".join(KINDS))],
    source: Annotated[str, typer.Argument(help="Its folder of runs, or a file of them.", metavar="SOURCE")],
    prefix: Annotated[str, typer.Option(help="Comes before the name of each run.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="A tag of each run. May be repeated.")] = None,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Bring the runs of another tracker into this warehouse, beside its own. Run again, it adds nothing twice.

    Exit status 1 when something did not come in; the rest is in.
    """
    if kind not in KINDS:
        raise typer.BadParameter(f"expected one of {', '.join(KINDS)}, found {kind!r}", param_hint="the tracker")
    with warehouse(db, project, new=True) as opened:
        report = opened.logs.import_runs(kind, source, prefix=prefix, tags=tag or ())
        say(report.to_json() if as_json else f"{kind}: {report}")
        for note in report.notes[:_NAMED]:
            say(f"note: {note}", err=True)
        for where, why in report.failed[:_NAMED]:
            say(f"failed: {where}: {why}", err=True)
        for what, count in (("notes", len(report.notes)), ("failures", report.failures)):
            if count > _NAMED:
                say(f"and {count - _NAMED} more {what}; --json names them", err=True)
    if report.failures:
        raise typer.Exit(1)

"""`tensordb fsck`: whether everything that the index refers to is there, and whole."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from tensordb_data.api.database import TensorDB
from tensordb_data.cli.common import Db, Json, Project, warehouse
from tensordb_data.cli.output import say
from tensordb_data.common.text_table import escaped
from tensordb_data.housekeeping.fsck.report import Checked
from tensordb_data.housekeeping.rebuild_report import Rebuilt

_NAMED = 20


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(fsck)


def fsck(
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Instead, bring back samples and sets of a lost index from the blobs."),
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="First mend what can be mended without guessing. It is named first.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare sizes and times alone, and no checksums of blobs.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Mend without a question.")] = False,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Verify every reference and every checksum, of all projects. It reads all bytes, and changes nothing.

    Safe at any time, with --repair too. Exit status 0 when everything is as it should be, 1 when there are findings.
    """
    if rebuild and repair:
        raise typer.BadParameter("--rebuild and --repair are two calls", param_hint="--repair")
    if rebuild and quick:
        raise typer.BadParameter("--rebuild reads what it brings back", param_hint="--quick")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    mended: list[str] = []
    with warehouse(db, project, new=rebuild) as opened:
        if repair:
            mended = _repair(opened, yes, as_json)
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("looking", total=None)

            def progress(what: str, done: int, total: int) -> None:
                bar.update(task, description=escaped(what), completed=done, total=total)

            report = opened.rebuild(progress=progress) if rebuild else opened.fsck(quick=quick, progress=progress)
    if as_json:
        say(json.dumps(dataclasses.asdict(report) | ({"mended": mended} if repair else {})))
    elif isinstance(report, Rebuilt):
        _print_rebuilt(report)
    else:
        _print_checked(report, quick)
    if report.skipped if isinstance(report, Rebuilt) else report.findings:
        raise typer.Exit(1)


def _repair(opened: TensorDB, yes: bool, as_json: bool) -> list[str]:
    """Name what can be mended, ask, and mend it; returns a line for each thing that was mended."""
    found = opened.repairs()
    for each in found:
        say(f"can be mended: {each.what}", err=as_json)
    if not found:
        say("there is nothing that can be mended without guessing", err=as_json)
        return []
    if not yes and not typer.confirm(f"Mend these {len(found)}?", err=True):
        say("nothing was mended", err=True)
        return []
    for each in found:
        each.mend()
    return [each.what for each in found]


def _print_checked(report: Checked, quick: bool) -> None:
    for finding in report.findings[:_NAMED]:
        say(f"{finding.kind}: {finding.where}: {finding.what}")
    if len(report.findings) > _NAMED:
        say(f"and {len(report.findings) + report.more - _NAMED:,} more; --json names {len(report.findings):,}")
    for text in report.warnings:
        say(f"warning: {text}")
    done = "looked at, without checksums" if quick else "verified"
    say(
        f"{report.segments:,} segments, {report.samples:,} samples, {report.tensors:,} tensors and {report.sets:,}"
        f" sets {done} ({report.bytes / 1e6:,.1f} MB): {len(report.findings) + report.more or 'no'} findings"
    )


def _print_rebuilt(report: Rebuilt) -> None:
    for dataset, samples in sorted(report.datasets.items()):
        say(f"{dataset}: {samples:,} samples")
    for run, sets in sorted(report.runs.items()):
        say(f"{run}: {sets:,} parameter sets")
    say(
        f"{report.samples:,} samples from {report.segments:,} segments, {report.sets:,} parameter sets;"
        f" {report.deleted:,} stay deleted. What the blob store does not tell:"
    )
    for text in report.unknown:
        say(f"- {text}")
    for name in report.projects:
        say(f"project {name!r} has blobs here, too: rebuild it with --project {name}")
    for text in report.skipped:
        say(f"not used: {text}", err=True)

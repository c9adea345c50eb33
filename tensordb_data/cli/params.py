"""`tensordb params`: the saved sets of parameters, and which of them to keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tensordb_data.cli.common import Db, Json, Project, warehouse
from tensordb_data.cli.output import grid, say
from tensordb_data.errors import CheckpointError
from tensordb_data.params.prune import Pruned
from tensordb_data.params.retention import Keep

_HIDDEN = frozenset(("_id", "run", "step", "tags", "created", "lineage", "provenance"))


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help="Saved sets of parameters: list them, and delete those that no policy keeps.")
    group.callback(invoke_without_command=True)(params)
    group.command()(prune)
    app.add_typer(group, name="params")


def params(
    context: typer.Context,
    run: Annotated[str | None, typer.Option("--run", help="Those of this run only.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 50,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """List the saved sets of parameters, the newest first; `tensordb params prune` deletes some of them."""
    if context.invoked_subcommand is not None:
        return
    with warehouse(db, project) as opened:
        filter = {} if run is None else {"run": run}
        found = opened.params.find(filter, sort=[("_id", -1)], limit=limit).all()
        rows = [_row(each, each.nbytes) for each in found]
        if as_json:
            for row in rows:
                say(json.dumps(row, default=str))
        else:
            _table(rows, "no parameter sets" if run is None else f"run {run!r} has no parameter sets")


def prune(
    run: Annotated[str, typer.Option("--run", help="The run.")],
    last: Annotated[int | None, typer.Option("--last", min=0, help="Keep the newest so many.")] = None,
    best: Annotated[
        str | None,
        typer.Option("--best", metavar="METRIC:N[:min|max]", help="Keep the best N: val_acc:2, or val_loss:2:min."),
    ] = None,
    every: Annotated[
        int | None, typer.Option("--every", min=1, help="Keep the first at or after each multiple of so many steps.")
    ] = None,
    tagged: Annotated[list[str] | None, typer.Option("--tagged", help="Keep those with this tag; repeatable.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Delete the sets of a run that no rule keeps. The newest always stays; `tensordb gc` frees the bytes."""
    if last is None and best is None and every is None and not tagged:
        raise typer.BadParameter("say what to keep: --last, --best, --every or --tagged")
    try:
        keep = Keep(last=last or 0, best=_best(best), every=every, tagged=tuple(tagged or ()))
    except CheckpointError as error:
        raise typer.BadParameter(str(error)) from None
    with warehouse(db, project) as opened:
        sets = {each.id: _row(each, each.nbytes) for each in opened.params.find({"run": run})} if not as_json else {}
        report = opened.params.prune(run, keep, dry_run=dry_run)
        if as_json:
            say(json.dumps(_json(report, dry_run)))
            return
        verdicts = {**{id: "kept: " + ", ".join(rules) for id, rules in report.kept.items()},
                    **dict.fromkeys(report.deleted, "would go" if dry_run else "deleted")}  # fmt: skip
        _table([{**row, "verdict": verdicts[id]} for id, row in sets.items() if id in verdicts], "")
        what = "would be deleted" if dry_run else "deleted"
        say(f"{run}: {len(report.kept)} sets stay, {len(report.deleted)} {what} ({report.bytes / 1e6:,.1f} MB)")


def _best(text: str | None) -> Any:
    if text is None:
        return None
    metric, *rest = text.split(":")
    try:
        return (metric, int(rest[0]), *rest[1:])
    except (IndexError, ValueError):
        raise typer.BadParameter(
            f"expected METRIC:N or METRIC:N:min, val_acc:2 say; found {text!r}", param_hint="--best"
        ) from None


def _json(report: Pruned, dry_run: bool) -> dict[str, Any]:
    return {
        "run": report.run,
        "dry_run": dry_run,
        "kept": {str(id): rules for id, rules in report.kept.items()},
        "deleted": [str(id) for id in report.deleted],
        "bytes": report.bytes,
    }


def _row(document: Mapping[str, Any], nbytes: int) -> dict[str, Any]:
    metrics = {name: value for name, value in document.items() if name not in _HIDDEN}
    return {"id": str(document["_id"]), "run": document.get("run"), "step": document.get("step"),
            "created": document["created"].strftime("%Y-%m-%d %H:%M:%S"), "bytes": nbytes,
            "tags": list(document.get("tags", ())), "metrics": metrics}  # fmt: skip


def _table(rows: list[dict[str, Any]], empty: str) -> None:
    if not rows:
        say(empty)
        return
    names = ["run", "step", "MB", "metrics", "tags", "saved (UTC)", "id"]
    names += ["verdict"] if "verdict" in rows[0] else []
    lines = []
    for row in rows:
        metrics = " ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in row["metrics"].items()
        )
        step = "" if row["step"] is None else str(row["step"])
        cells = [row["run"] or "", step, f"{row['bytes'] / 1e6:,.1f}", metrics, ", ".join(row["tags"]), row["created"]]
        lines.append([*cells, row["id"], *([row["verdict"]] if "verdict" in row else [])])
    grid(names, lines)

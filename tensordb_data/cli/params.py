"""`tensordb params`: the saved sets of parameters, and which of them to keep."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from bson import ObjectId

from tensordb_data.cli.common import Db, Json, Project, parsed_filter, parsed_sort, warehouse
from tensordb_data.cli.output import grid, say
from tensordb_data.errors import CheckpointError, NotFoundError, QueryError
from tensordb_data.params.exchange.source import shown
from tensordb_data.params.prune import Pruned
from tensordb_data.params.retention import Keep

_HIDDEN = frozenset(("_id", "run", "step", "tags", "created", "lineage", "provenance"))


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help="Saved sets of parameters: list, prune, import and export them.")
    group.callback(invoke_without_command=True)(params)
    group.command()(prune)
    group.command("import")(import_)
    group.command()(export)
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
    attempts: Annotated[
        bool, typer.Option(help="Keep the newest of each earlier attempt, where the run began anew since.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Delete the sets of a run that no rule keeps. The newest always stays; `tensordb gc` frees the bytes."""
    if last is None and best is None and every is None and not tagged:
        raise typer.BadParameter("say what to keep: --last, --best, --every or --tagged")
    try:
        keep = Keep(last=last or 0, best=_best(best), every=every, tagged=tuple(tagged or ()), attempts=attempts)
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


def import_(
    file: Annotated[Path, typer.Argument(help="A safetensors file, one of torch.save, or a folder of Hugging Face.")],
    run: Annotated[str | None, typer.Option("--run", help="The run that it becomes a set of.")] = None,
    step: Annotated[int | None, typer.Option("--step", min=0, help="Its step; default: that of the file.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag of the set; repeatable.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME=VALUE", help="A metric of the set; repeatable.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="The entry of the file that has the parameters.")] = None,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Save the parameters of a file of another program as a set. Code that is pickled in it never runs."""
    values = dict(map(_metric, metric or ()))
    with warehouse(db, project, new=True) as opened:
        done = opened.params.import_file(file, run=run, step=step, tags=tag or (), key=key, **values)
        if as_json:
            say(json.dumps({**dataclasses.asdict(done), "id": str(done.id)}))
        else:
            say(str(done))


def export(
    query: Annotated[str, typer.Argument(help='Which set: its id, or a filter in JSON: \'{"run": "cnn-1"}\'.')],
    file: Annotated[Path, typer.Argument(help="The file: .safetensors, or .pt, .pth or .bin of torch.save.")],
    sort: Annotated[
        list[str] | None, typer.Option(help="Take the first by a field; -field for descending order. May be repeated.")
    ] = None,
    part: Annotated[str, typer.Option(help="The part of the set.")] = "model",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of this name.")] = False,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Write the parameters of a set into a file for other programs. It is there whole or not at all."""
    with warehouse(db, project) as opened:
        filter = {"_id": ObjectId(query)} if ObjectId.is_valid(query) else parsed_filter(query)
        found = opened.params.find(filter, sort=parsed_sort(sort), limit=2).all()
        if not found:
            raise NotFoundError(f"no parameter set matches {query}; `tensordb params` lists them")
        if len(found) > 1 and not sort:
            raise QueryError(f"several parameter sets match {query}: add a field, or take the first by --sort=-val_acc")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what is left out is said below
            done = found[0].export(file, part=part, overwrite=overwrite)
        if as_json:
            say(json.dumps({**dataclasses.asdict(done), "path": str(done.path), "id": str(found[0].id)}))
        else:
            left_out = f"; left out: {shown(done.left_out)}" if done.left_out else ""
            say(f"{file}: {done.tensors:,} tensors, {done.nbytes:,} bytes, of {found[0].id}{left_out}")


def _metric(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"expected NAME=VALUE, val_acc=0.9 say; found {text!r}", param_hint="--metric")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return name, kind(value)
    return name, value


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

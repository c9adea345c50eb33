"""`tensordb evaluate` and `tensordb deploy`: the loops of continuous learning."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from bson import json_util

from tensordb_data.cli.common import Db, Json, Project, parsed_filter, parsed_sort, warehouse
from tensordb_data.cli.output import grid, say
from tensordb_data.common.text_table import escaped

if TYPE_CHECKING:
    from tensordb_data.continuous import Deployment

Filter = Annotated[str, typer.Option("--filter", help='Which parameter sets, in JSON: \'{"run": "cnn-1"}\'.')]
Allow = Annotated[
    list[str] | None,
    typer.Option(help='What may be imported and run: a package ("mypkg.") or a module. May be repeated.'),
]
Once = Annotated[bool, typer.Option("--once", help="Do what there is to do now, and end.")]
Part = Annotated[str, typer.Option(help="The part of a set.")]
Name = Annotated[str | None, typer.Option(help="How it is called in the warehouse.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(evaluate)
    app.command()(deploy)


def evaluate(
    score: Annotated[
        str, typer.Option(help="A function of a set's state (or a model) and the batches: mypkg.scores:accuracy.")
    ],
    metric: Annotated[str, typer.Option(help="The name of what it returns.")],
    data: Annotated[str, typer.Option(help="The validation samples, as a filter in JSON.")],
    filter: Filter = "{}",
    allow: Allow = None,
    architecture: Annotated[
        str | None, typer.Option(help="The name of an architecture, into which the parameters are loaded first.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a batch.")] = 256,
    part: Part = "model",
    name: Name = None,
    lease: Annotated[float, typer.Option(help="Seconds until others take over what a dead evaluator had.")] = 60.0,
    attempts: Annotated[int, typer.Option(min=1, help="How often a set is tried.")] = 3,
    once: Once = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Give a score to each parameter set that has none, now and as they are saved.

    Any number of evaluators may run; each set is scored once. SIGTERM ends the loop after the set under way.

    Example: tensordb evaluate --filter '{"run": "cnn-1"}' --metric val_acc --data '{"split": "valid"}'
    --score mypkg.scores:accuracy --allow mypkg.
    """
    from tensordb_data.api.architectures import Built
    from tensordb_data.continuous import Evaluator

    with warehouse(db, project, new=True) as opened, _told():
        named = {"name": architecture}
        chosen = None if architecture is None else opened.architectures.find(named, sort=[("version", -1)])
        evaluator = Evaluator(
            opened, opened.params.find(parsed_filter(filter)), _function(score, allow), metric=metric,
            data=opened.data.find(parsed_filter(data)), batch_size=batch_size, name=name,
            model=Built(architecture=chosen, allow=allow or (), part=part), lease=lease, attempts=attempts,
        )  # fmt: skip
        _go(evaluator, once)


def deploy(
    to: Annotated[Path | None, typer.Argument(help="A folder; it gets numbered versions and a link `current`.")] = None,
    filter: Filter = "{}",
    sort: Annotated[
        list[str] | None, typer.Option(help="What makes the best: a field, or -field for the highest. May be repeated.")
    ] = None,
    check: Annotated[
        str | None, typer.Option(help="A function of state and fields, that raises if a set is not fit: a smoke batch.")
    ] = None,
    notify: Annotated[
        str | None, typer.Option(help="A function of the fields, called after a swap; the swap is undone if it raises.")
    ] = None,
    allow: Allow = None,
    keep: Annotated[int, typer.Option(min=1, help="Versions to keep besides the current one.")] = 1,
    part: Part = "model",
    name: Name = None,
    once: Once = False,
    roll_back: Annotated[
        str | None, typer.Option(metavar="REASON", help="Go back to the version before, and refuse the current set.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try sets again that were refused.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Print what is deployed where, and what was refused.")] = False,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Keep a folder at the best parameter set that a query finds.

    Each set is verified, and swapped in at once; the one before stays at hand. SIGTERM ends the loop.

    Example: tensordb deploy models --filter '{"run": "cnn-1"}' --sort -val_acc
    --check mypkg.checks:smoke --allow mypkg.
    """
    from tensordb_data.continuous import Deployer
    from tensordb_data.deploy.ledger import deployments

    with warehouse(db, project, new=True) as opened, _told():
        if show:
            _show(deployments(opened), as_json)
            return
        if to is None or not sort:
            raise typer.BadParameter("give a folder, and --sort; or --list")
        best = opened.params.find(parsed_filter(filter), sort=parsed_sort(sort))
        options: dict[str, Any] = {"keep": keep, "part": part, "name": name}
        for option, reference in (("check", check), ("notify", notify)):
            options[option] = None if reference is None else _function(reference, allow)
        with Deployer(opened, best, to, **options) as deployer:
            if roll_back is not None:
                deployer.roll_back(roll_back)
                return
            if retry:
                deployer.ledger.forgive()
            _go(deployer, once)


def _function(reference: str, allow: list[str] | None) -> Callable[..., Any]:
    from tensordb_data.common.import_paths import Allow as Allowed
    from tensordb_data.common.import_paths import resolve

    if "" not in sys.path:
        sys.path.append("")  # a module in the working directory; last, so that it hides no other
    return resolve(reference, Allowed(allow or ()))


def _go(loop: Any, once: bool) -> None:
    if once:
        loop.once()
    else:
        loop.run()


class _Escaping(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What the loops do, as lines on stderr."""
    told = logging.getLogger("tensordb.continuous")
    handler = logging.StreamHandler()
    handler.setFormatter(_Escaping("%(asctime)s %(message)s", "%H:%M:%S"))
    level = told.level
    told.addHandler(handler)
    told.setLevel(logging.INFO)
    try:
        yield
    finally:
        told.setLevel(level)
        told.removeHandler(handler)


def _show(found: list[Deployment], as_json: bool) -> None:
    if as_json:
        for one in found:
            say(json_util.dumps(dataclasses.asdict(one), json_options=json_util.RELAXED_JSON_OPTIONS))
        return
    rows = [
        [one.target, one.id, one.run, one.step, one.state, one.version, f"{one.at:%F %T}", one.reason] for one in found
    ]
    if found:
        names = ["target", "set", "run", "step", "state", "version", "at", "reason"]
        grid(names, [["" if cell is None else str(cell) for cell in row] for row in rows])
    say(f"{len(found)} deployment{'' if len(found) == 1 else 's'}")

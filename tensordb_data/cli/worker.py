"""`tensordb worker`: run jobs."""

from __future__ import annotations

import contextlib
import signal
import time
from types import FrameType
from typing import Annotated

import typer

from tensordb_data.api.database import TensorDB
from tensordb_data.cli.common import Db, Project, warehouse
from tensordb_data.cli.output import say
from tensordb_data.common.telemetry.exposition import exposition
from tensordb_data.common.telemetry.measures import collect
from tensordb_data.errors import QueryError
from tensordb_data.table.activity.measured import Measured


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(worker)


def worker(
    allow: Annotated[
        list[str] | None, typer.Option(help="What may be run: a package (mypkg.), module or function. Repeatable.")
    ] = None,
    kinds: Annotated[str | None, typer.Option(help="Kinds of jobs to take, with commas between; default: all.")] = None,
    allow_scripts: Annotated[
        bool, typer.Option("--allow-scripts", help="Also run jobs that bring their own program. Trusts all writers.")
    ] = False,
    has: Annotated[
        list[str] | None, typer.Option(metavar="NAME=AMOUNT", help="What there is, gpu=1 say; default: the machine's.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The worker's name; default: host and process number.")] = None,
    lease: Annotated[float, typer.Option(help="Seconds until a job of a dead worker is given to another.")] = 60.0,
    grace: Annotated[float, typer.Option(help="Seconds that a cancelled job has to end, and to obey SIGTERM.")] = 10,
    metrics: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="PORT", help="Serve metrics for Prometheus at 127.0.0.1."),
    ] = None,
    until_empty: Annotated[bool, typer.Option("--until-empty", help="End when no job is left for it.")] = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Run jobs, each in a process of its own, until stopped.

    SIGTERM or Ctrl-C: finish the job that runs, and end. A second one: hand it back to the queue, and end.

    Example: tensordb worker --kinds train --allow mypkg.
    """
    from tensordb_data.job_runner.worker import Worker
    from tensordb_data.jobs.permissions import Permissions

    with warehouse(db, project, new=True) as opened:
        may = Permissions(allow=allow or (), scripts=allow_scripts)
        worker = Worker(
            opened, kinds=None if kinds is None else [kind.strip() for kind in kinds.split(",") if kind.strip()],
            may=may, name=name, lease=lease, grace=grace, on_event=_say,
            resources=None if has is None else dict(map(_amount, has)),
        )  # fmt: skip

        def stop(number: int, frame: FrameType | None) -> None:
            if worker.draining:
                worker.stop()
            else:
                _say("ends after the job that runs; once more to hand that back")
                worker.drain()

        with contextlib.ExitStack() as open_meanwhile:
            if metrics is not None:
                _serve_metrics(opened, metrics, open_meanwhile)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, stop)
            _say(f"worker {worker.name} waits for jobs")
            count = worker.run(until_empty=until_empty)
            _say(f"worker {worker.name} has run {count} jobs")


def _serve_metrics(db: TensorDB, port: int, open_meanwhile: contextlib.ExitStack) -> None:
    from tensordb_data.common.telemetry.endpoint import serving

    # Without names of datasets: every user of this machine can ask.
    measured = Measured(db.warehouse, names=False)
    port = open_meanwhile.enter_context(serving(port, lambda: exposition([*collect(), *measured.values()])))
    _say(f"metrics at http://127.0.0.1:{port}/metrics")


def _say(line: str) -> None:
    say(f"{time.strftime('%H:%M:%S')} {line}", err=True)


def _amount(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    try:
        return name, float(amount)
    except ValueError:
        raise QueryError(f"--has is a name and an amount, such as gpu=1; found {text!r}") from None

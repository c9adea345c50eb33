"""`tensordb top`: what happens in a warehouse just now."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from tensordb_data.api.database import TensorDB
from tensordb_data.cli import output
from tensordb_data.cli.common import Db, Project, warehouse
from tensordb_data.cli.live.screen import screen
from tensordb_data.cli.output import say
from tensordb_data.errors import ConnectError
from tensordb_data.table.activity.history import History
from tensordb_data.table.activity.look import look


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(top)


def top(
    once: Annotated[bool, typer.Option("--once", help="Show it once, and end. Rates are of the interval.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each look.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between looks.")] = 2.0,
    db: Db = None,
    project: Project = None,
) -> None:
    """Show what happens: samples, log rows and saves as they are written, open changes, jobs and workers.

    It reads the index every few seconds, and changes nothing. Ctrl-C ends it. Streams of other processes are not shown:
    a reader writes nothing that others could see.
    """
    with warehouse(db, project, read_only=True) as opened:
        history = History()
        where = f"{opened.warehouse.address} · project {opened.project}"
        with contextlib.suppress(KeyboardInterrupt):
            if once:
                _once(opened, history, interval)
                _print(history, where, interval, as_json)
            else:
                _follow(opened, history, where, interval, as_json)


def _once(db: TensorDB, history: History, interval: float) -> None:
    history.add(look(db.warehouse))
    time.sleep(interval)
    history.add(look(db.warehouse))


def _follow(db: TensorDB, history: History, where: str, interval: float, as_json: bool) -> None:
    with _shown(history, where, interval, as_json) as show:
        while True:
            began = time.monotonic()
            wrong = None
            try:
                history.add(look(db.warehouse))
            except ConnectError as error:
                wrong = " ".join(str(error).split())
            show(wrong)
            time.sleep(max(0.0, interval - (time.monotonic() - began)))


@contextlib.contextmanager
def _shown(history: History, where: str, interval: float, as_json: bool) -> Iterator[Callable[[str | None], None]]:
    """A function that shows the newest look: in place on a terminal, one after the other in a pipe."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if as_json or not console.is_terminal:

        def show(wrong: str | None) -> None:
            if wrong is not None:
                say(f"tensordb: {wrong}; trying again", err=True)
            else:
                _print(history, where, interval, as_json)

        yield show
        return
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda wrong: live.update(screen(history, where, interval, wrong), refresh=True)


def _print(history: History, where: str, interval: float, as_json: bool) -> None:
    if as_json:
        say(json.dumps(history.to_json(), ensure_ascii=False))
    else:
        output.show(screen(history, where, interval))

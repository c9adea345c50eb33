"""The command `tensordb`."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from tensordb_data.cli import (
    continuous,
    jobs,
    logs,
    params,
    roots,
    search,
    server,
    ui,
    upgrade,
    worker,
)
from tensordb_data.cli.config import command as config
from tensordb_data.cli.data import changes, export, find, ingest, stream
from tensordb_data.cli.examples import add_examples
from tensordb_data.cli.housekeeping import backup, compact, fsck, gc, shard, storage
from tensordb_data.cli.live import top
from tensordb_data.cli.output import say
from tensordb_data.cli.places import add_places
from tensordb_data.cli.runs import importing
from tensordb_data.cli.runs import listing as runs
from tensordb_data.cli.time import forget, frozen

app = typer.Typer(
    name="tensordb",
    help="A machine-learning data warehouse on MongoDB. The warehouse is named by --db, $TENSORDB or `config set db`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
MODULES = (
    server, ingest, storage, find, export, frozen, forget, search, runs, importing, logs, stream, compact, changes,
    jobs, worker, continuous, params, gc, fsck, backup, upgrade, shard, roots, config, ui, top,
)  # fmt: skip
for module in MODULES:
    module.register(app)
add_places(app)
add_examples(app)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"tensordb-data {version('tensordb-data')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the entry point of `tensordb`."""
    try:
        app()
    finally:
        # The work is done, or has been interrupted and said so: the driver's threads end without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()

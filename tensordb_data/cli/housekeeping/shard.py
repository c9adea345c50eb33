"""`tensordb shard`: a warehouse over the shards of a cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from tensordb_data.cli.common import Db, warehouse
from tensordb_data.cli.output import say
from tensordb_data.housekeeping.sharding import execute, plan


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(shard)


def shard(
    run: Annotated[
        bool, typer.Option("--execute/--dry-run", help="Run the commands, on a mongos; or only print them.")
    ] = False,
    db: Db = None,
) -> None:
    """Divide a warehouse over the shards of a cluster: print the commands for mongosh, or run them.

    By design, and not tried on a cluster: make a backup first. What is not divided stays on the primary shard.

    Example: tensordb shard --db mongodb://mongos1/tensordb --dry-run
    """
    with warehouse(db, read_only=not run) as opened:
        if not run:
            for step in plan(opened.warehouse):
                say(str(step))
            return
        say(f"{execute(opened.warehouse, say)} commands done")

"""`tensordb stream`: what a stream delivers, how fast, and what limits it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tensordb_data.cli.common import Db, Json, Project, parsed_filter, warehouse
from tensordb_data.cli.output import grid, say
from tensordb_data.common.import_paths import resolve
from tensordb_data.errors import QueryError
from tensordb_data.stream.benchmark import Bench, bench


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(stream)


def stream(
    filter: Annotated[str, typer.Argument(help="A filter in JSON, such as '{\"label\": 3}'.")] = "{}",
    dataset: Annotated[str | None, typer.Option(help="Only samples of this dataset.")] = None,
    measure: Annotated[bool, typer.Option("--bench", help="Measure: rate, time by stage, what limits it.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in a batch.")] = 256,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="In a new order in each pass.")] = False,
    fields: Annotated[str | None, typer.Option(help="Names of the fields to deliver, with commas between.")] = None,
    transform: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="Apply this function to each sample.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of each measurement.")] = 10.0,
    step: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="A training step, called with each batch.")
    ] = None,
    step_ms: Annotated[
        float | None, typer.Option(min=0.0, help="A stand-in for one: milliseconds that each step would take.")
    ] = None,
    as_json: Json = False,
    db: Db = None,
    project: Project = None,
) -> None:
    """Show what a stream delivers: its fields, or with --bench its rate and what limits it.

    With a training step, it is measured as well how much faster training could go if loading were free: by replaying
    batches from memory.
    """
    if step is not None and step_ms is not None:
        raise typer.BadParameter("give --step or --step-ms", param_hint="--step")
    loop = _imported(step, "--step") if step is not None else None
    if step_ms is not None:
        loop = _pause(step_ms / 1e3)
    function = None if transform is None else _imported(transform, "--transform")
    with warehouse(db, project) as opened:
        asked = parsed_filter(filter)
        if dataset is not None:
            asked = {"$and": [{"dataset": dataset}, asked]} if asked else {"dataset": dataset}
        names = None if fields is None else [name.strip() for name in fields.split(",") if name.strip()]
        made = opened.data.find(asked).stream(batch_size=batch_size, fields=names, shuffle=shuffle, transform=function)
        if not measure:
            _describe(made.element_spec(), as_json)
            return
        found = bench(made, loop, seconds=seconds)
        if as_json:
            say(json.dumps({**dataclasses.asdict(found), "batch_seconds": found.batch_seconds}))
        else:
            _show(found, batch_size)


def _imported(path: str, option: str) -> Callable[..., Any]:
    sys.path.insert(0, os.getcwd())
    try:
        return resolve(path)
    except QueryError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
    finally:
        sys.path.pop(0)


def _pause(seconds: float) -> Callable[[Any], object]:
    return lambda batch: time.sleep(seconds)


def _describe(spec: dict[str, Any], as_json: bool) -> None:
    if as_json:
        say(json.dumps({name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in spec.items()}))
        return
    rows = []
    for name, (dtype, shape) in spec.items():
        sizes = ", ".join("varies" if size is None else str(size) for size in shape)
        rows.append([name, dtype or "list of objects", f"({sizes})" if dtype else ""])
    grid(["field", "dtype", "shape of a sample"], rows)


def _show(found: Bench, batch_size: int) -> None:
    stats = found.stats or {}
    elapsed = sum(stats["seconds"].values())
    say(
        f"{found.samples_per_second:,.0f} samples/s, {stats['bytes_per_second'] / 1e6:,.0f} MB/s, in batches of"
        f" {batch_size:,}: one each {1e3 * found.batch_seconds:,.3g} ms"
    )
    rows = [
        [stage, f"{part['work']:.2f}", f"{part['wait']:.2f}", f"{sum(part.values()) / elapsed:.2f}"]
        for stage, part in stats["stages"].items()
        if sum(part.values())
    ]
    loop = stats["seconds"]
    rows.append(["loop", f"{loop['loop']:.2f}", f"{loop['start'] + loop['wait']:.2f}", f"{loop['loop'] / elapsed:.2f}"])
    numbers = ["work", "wait", "threads busy"]
    say("Seconds by stage")
    grid(["stage", *numbers], rows, numbers=numbers)
    say(f"{stats['advice']}.")
    if found.speedup is None:
        text = (
            f"A training step of more than {1e3 * found.batch_seconds:.3g} ms would not wait for batches. Give yours"
            " with --step or --step-ms to measure that."
        )
    else:
        text = (
            f"If loading were free, the loop would run at {found.replayed_per_second:,.0f} samples/s,"
            f" {found.speedup:.2f} times as fast (measured on batches from memory)."
        )
    say(text)

"""Show how far long work is: a bar on a terminal or in a notebook, or what the user makes of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from tensordb_data.errors import QueryError

R = TypeVar("R")

Progress = Callable[[int, int, R], None]
"""Called with what is done, all that there is to do, and the report so far."""


@contextlib.contextmanager
def showing(progress: bool | Progress[R] | None, samples: Callable[[R], int] | None = None) -> Iterator[Progress[R]]:
    """What is called as the work goes on.

    Args:
        progress: True for a bar; or the user's own function.
        samples: Counts the samples in a report, where what is done are bytes. Without it, they are samples.

    Raises:
        QueryError: `progress` is something else.
    """
    if progress is None or progress is False:
        yield lambda done, total, report: None
    elif progress is not True:
        if not callable(progress):
            raise QueryError(f"progress is True, or a function of (done, total, report). Found: {progress!r}")
        yield progress
    elif "ipykernel" in sys.modules:
        with _notebook(samples) as show:
            yield show
    else:
        with _terminal(samples) as show:
            yield show


@contextlib.contextmanager
def _terminal(samples: Callable[[R], int] | None) -> Iterator[Progress[R]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    counts = (MofNCompleteColumn(),) if samples is None else (DownloadColumn(), TransferSpeedColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("samples", total=None)

        def show(done: int, total: int, report: R) -> None:
            said = "samples" if samples is None else f"{samples(report):,} samples"
            bar.update(task, completed=done, total=total or None, description=said)

        yield show


@contextlib.contextmanager
def _notebook(samples: Callable[[R], int] | None) -> Iterator[Progress[R]]:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        with _terminal(samples) as show:
            yield show
        return
    options = {"unit": " samples"} if samples is None else {"unit": "B", "unit_scale": True}
    with tqdm(total=0, **options) as shown:
        bar: Any = shown

        def show(done: int, total: int, report: R) -> None:
            bar.total = total or None
            bar.update(done - bar.n)
            if samples is not None:
                bar.set_postfix(samples=samples(report))

        yield show

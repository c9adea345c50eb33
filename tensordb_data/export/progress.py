"""Show how far an export is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tensordb_data.errors import QueryError
from tensordb_data.export.report import ExportReport

Progress = Callable[[int, int, ExportReport], None]
"""Called with the samples that are written, those in all, and the report so far."""


@contextlib.contextmanager
def showing(progress: bool | Progress | None) -> Iterator[Progress]:
    """What is called as an export goes on: a bar on a terminal or in a notebook with True, or the user's function."""
    if progress is None or progress is False:
        yield lambda done, total, report: None
    elif progress is not True:
        if not callable(progress):
            raise QueryError(f"progress is True, or a function of (done, total, report). Found: {progress!r}")
        yield progress
    elif "ipykernel" in sys.modules:
        with _notebook() as show:
            yield show
    else:
        with _terminal() as show:
            yield show


@contextlib.contextmanager
def _terminal() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("samples", total=None)
        yield lambda done, total, report: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def _notebook() -> Iterator[Progress]:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        with _terminal() as show:
            yield show
        return
    with tqdm(total=0, unit=" samples") as bar:
        shown: Any = bar

        def show(done: int, total: int, report: ExportReport) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield show

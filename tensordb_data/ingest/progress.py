"""Show how far an ingest is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import QueryError

if TYPE_CHECKING:
    from tensordb_data.ingest.report import Report

Progress = Callable[[int, int, "Report"], None]
"""Called with the bytes done, the bytes in all, and the report so far."""


@contextlib.contextmanager
def showing(progress: bool | Progress | None) -> Iterator[Progress]:
    """What is called as an ingest goes on: a bar on a terminal or in a notebook with True, or the user's function."""
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
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("0 samples", total=None)

        def show(done: int, total: int, report: Report) -> None:
            samples = report.added + report.updated + report.unchanged
            bar.update(task, completed=done, total=total or None, description=f"{samples:,} samples")

        yield show


@contextlib.contextmanager
def _notebook() -> Iterator[Progress]:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        with _terminal() as show:
            yield show
        return
    with tqdm(total=0, unit="B", unit_scale=True) as bar:
        shown: Any = bar

        def show(done: int, total: int, report: Report) -> None:
            shown.total = total or None
            shown.update(done - shown.n)
            shown.set_postfix(samples=report.added + report.updated + report.unchanged)

        yield show

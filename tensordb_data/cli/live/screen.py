"""What `tensordb top` shows: tables of the newest look, with lines of how it has been."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tensordb_data.common.sizes import show_size
from tensordb_data.common.text_table import brief, escaped, sparkline

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tensordb_data.table.activity.history import History
    from tensordb_data.table.activity.look import Look

_LONG = 10  # rows of the longer tables
_SHORT = 6
_WIDE = 24  # bars of a line
NOT_SHOWN = "not shown: streams of other processes, which write nothing into the index; each knows its own stats()"
_UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))


def screen(history: History, where: str, every: float, wrong: str | None = None) -> RenderableType:
    """All that is shown. Stored text is escaped.

    Args:
        history: The looks so far.
        where: The warehouse, without secrets.
        every: Seconds between looks.
        wrong: Why there is no newer look.
    """
    from rich.console import Group
    from rich.text import Text

    now = history.now
    if now is None:
        return Text(escaped(wrong or "looking …"))
    head = Text(escaped(f"{where}  {now.time:%H:%M:%S} UTC  every {every:g} s"), style="bold")
    parts: list[RenderableType] = [head]
    if wrong is not None:
        parts.append(Text(escaped(f"{wrong}; trying again"), style="bold red"))
    parts += [Text(line) for line in _totals(history)]
    parts += [*_datasets(history), *_runs(history), *_jobs(now), *_saves(now)]
    for name, why in now.missing.items():
        parts.append(Text(escaped(f"{name}: not known, {brief(why)}"), style="yellow"))
    parts.append(Text(f"\n{NOT_SHOWN}", style="dim"))
    return Group(*parts)


def _totals(history: History) -> Iterable[str]:
    shown = {name: rate_text(rate) for name, rate in history.totals.items()} | {
        "bytes": f"{show_size(history.totals['bytes'])}/s"
    }
    names = {"samples": "samples/s", "bytes": "segments", "changes": "changes/s", "rows": "log rows/s",
             "saves": "saves/s", "jobs": "jobs/s"}  # fmt: skip
    for name, title in names.items():
        yield f"{title:>11}  {shown[name]:>10}  {line_of(history, name)}"


def _datasets(history: History) -> Iterable[RenderableType]:
    now = history.now
    rows = [
        [each.name, f"{each.written:,}", rate_text(each.samples), line_of(history, f"dataset {each.name}"),
         f"{show_size(each.nbytes)}/s" if each.nbytes else "", str(each.writing or ""), rate_text(each.changes)]
        for each in history.datasets[:_LONG]
    ]  # fmt: skip
    names = ["dataset", "written", "samples/s", "", "segments", "being written", "changes/s"]
    yield from _table(names, rows, len(history.datasets) - _LONG)
    opened = [] if now is None else list(now.open)
    rows = [[one.dataset, one.kind, f"{one.host}:{one.pid}", span(one.seconds)] for one in opened[:_SHORT]]
    yield from _table(["open change of", "kind", "by", "for"], rows, len(opened) - _SHORT)


def _runs(history: History) -> Iterable[RenderableType]:
    now = history.now
    runs = [] if now is None else sorted(now.runs.items(), key=lambda item: -item[1].rows_per_second)
    rows = [
        [name, one.saver or "", "" if one.step is None else f"{one.step:,}", rate_text(one.rows_per_second),
         line_of(history, f"run {name}")]
        for name, one in runs[:_LONG]
    ]  # fmt: skip
    yield from _table(["run", "saved by", "step", "rows/s", ""], rows, len(runs) - _LONG)


def _jobs(now: Look) -> Iterable[RenderableType]:
    from rich.text import Text

    if now.jobs:
        counts = ", ".join(f"{n:,} {status}" for status, n in now.jobs.items() if n) or "none"
        yield Text(escaped(f"\njobs: {counts}"))
    rows = [
        [one.id, one.kind, one.worker, "" if one.progress is None else f"{one.progress:.0%}", span(one.seconds)]
        for one in now.running[:_LONG]
    ]
    yield from _table(["running job", "kind", "worker", "done", "for"], rows, len(now.running) - _LONG)
    rows = [
        [one.name, f"{one.host}:{one.pid}", one.job or "", "ends" if one.draining else ""]
        for one in now.workers[:_SHORT]
    ]
    yield from _table(["worker", "at", "job", ""], rows, len(now.workers) - _SHORT)


def _saves(now: Look) -> Iterable[RenderableType]:
    from rich.text import Text

    under_way = [f"{now.saving} under way in all projects"] if now.saving else []
    under_way += [f"{now.backups} backups under way"] if now.backups else []
    under_way += [f"{now.passes} passes of shared streams opened in ten minutes, in all projects"] if now.passes else []
    if under_way:
        yield Text(f"\nsaves and passes: {', '.join(under_way)}")
    rows = [
        ["(none)" if one.run is None else one.run, "" if one.step is None else f"{one.step:,}", show_size(one.nbytes),
         span(one.seconds), ", ".join(one.evaluators)]
        for one in now.saves[:_SHORT]
    ]  # fmt: skip
    yield from _table(["newest save of", "step", "bytes", "ago", "evaluated by"], rows, 0)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], more: int) -> Iterable[RenderableType]:
    """A table with a line for each row; nothing without rows."""
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    made = Table(box=None, pad_edge=False, show_edge=False, header_style="dim")
    numbers = ("written", "samples/s", "segments", "being written", "changes/s", "step", "rows/s", "bytes", "done")
    for name in names:
        right = name in numbers
        made.add_column(Text(name), no_wrap=True, overflow="ellipsis", justify="right" if right else "left")
    for row in rows:
        made.add_row(*(Text(brief(cell)) for cell in row))
    yield Text("")
    yield made
    if more > 0:
        yield Text(f"and {more:,} more", style="dim")


def line_of(history: History, name: str) -> str:
    """How a rate has been, as a line of bars; nothing if it was always 0."""
    rates = list(history.before.get(name, ()))[-_WIDE:]
    return sparkline(rates, max(rates)) if any(rates) else ""


def rate_text(rate: float) -> str:
    """A number by second; nothing for 0."""
    return "" if not rate else f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def span(seconds: float | None) -> str:
    """A time span in one unit: `5 s`, `12 min`."""
    if seconds is None:
        return ""
    for length, unit in _UNITS:
        if abs(seconds) >= length:
            return f"{seconds / length:.0f} {unit}"
    return "0 s"

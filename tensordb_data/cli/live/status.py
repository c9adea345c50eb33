"""What `tensordb status` says of a warehouse whose server runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tensordb_data.cli.live.screen import span
from tensordb_data.common.sizes import show_size
from tensordb_data.common.text_table import sparkline

if TYPE_CHECKING:
    from tensordb_data.table.activity.facts import Facts

_SHOWN = 3


def status_lines(found: Facts, growth: Mapping[str, list[int]]) -> Iterator[str]:
    """A line for each thing that is known.

    Args:
        found: What is known.
        growth: How the bytes of each dataset came in, see `table.activity.growth`.
    """
    now = found.look
    yield f"project  {now.project}, format {'?' if found.format is None else found.format}"
    bars = [sum(each) for each in zip(*growth.values(), strict=True)]
    line = f"  {sparkline(bars, max(bars))}" if any(bars) else ""
    size = show_size(found.nbytes["data"]) if "data" in found.nbytes else "bytes not known"
    yield f"data     {len(now.datasets):,} datasets, {found.written:,} samples written, {size}{line}"
    size = show_size(found.nbytes["params"]) if "params" in found.nbytes else "bytes not known"
    yield f"params   {size}"
    for save in now.saves[:_SHOWN]:
        step = "" if save.step is None else f" step {save.step:,},"
        run = "without a run" if save.run is None else f"of run {save.run}"
        yield f"saved    {span(save.seconds)} ago {run},{step} {show_size(save.nbytes)}"
    held = [f"{name} by {each.saver}" for name, each in now.runs.items() if each.saver is not None]
    if held:
        yield f"runs     {len(held):,} being saved: {', '.join(held[:_SHOWN])}{' …' if len(held) > _SHOWN else ''}"
    jobs = ", ".join(f"{n:,} {status}" for status, n in now.jobs.items() if n) or "none"
    names = ", ".join(each.name for each in now.workers[:_SHOWN])
    more = " …" if len(now.workers) > _SHOWN else ""
    yield f"jobs     {jobs}; {len(now.workers):,} workers alive{f': {names}{more}' if names else ''}"
    for one in now.open[:_SHOWN]:
        yield f"open     {one.kind} of {one.dataset} by {one.host}:{one.pid}, for {span(one.seconds) or '?'}"
    if len(now.open) > _SHOWN:
        yield f"open     and {len(now.open) - _SHOWN:,} more changes"
    for name, why in {**now.missing, **found.missing}.items():
        yield f"unknown  {name}: {why}"

"""Draws a JSON result of a benchmark: bars with the spread of its rounds, or curves over the number of agents.

python benchmarks/shared/plot.py benchmarks/results/small_tensors.json      # writes small_tensors.png beside it
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        print(draw(path))


def draw(path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    result = json.loads(path.read_text())
    if "memory_mb" in result:
        return draw_memory(path, result)
    if "agents" in result:
        return _agents(result, path)
    if result["question"].startswith("B9"):
        return _stalls(result, path)
    rates = {name: entry["samples_per_s"] for name, entry in result["rates"].items() if "samples_per_s" in entry}
    names = sorted(rates, key=lambda name: statistics.median(rates[name]))
    medians = [statistics.median(rates[name]) for name in names]
    low = [median - min(rates[name]) for name, median in zip(names, medians, strict=True)]
    high = [max(rates[name]) - median for name, median in zip(names, medians, strict=True)]
    colors = ["tab:blue" if name.startswith("TensorDB") else "silver" for name in names]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.32 * len(names)), layout="constrained")
    axes.barh(names, medians, xerr=(low, high), color=colors, error_kw={"elinewidth": 1})
    if max(medians) > 30 * min(medians):
        axes.set_xscale("log")
    for row, median in enumerate(medians):
        axes.annotate(f" {median:,.0f}", (median + high[row], row), va="center", fontsize=8)
    axes.set_xlabel("samples a second, median and range of the rounds")
    axes.margins(x=0.12)
    return _saved(figure, result, path)


def _agents(result: Mapping[str, Any], path: Path) -> Path:
    """Rate and latency against the number of agents, beside the two points that TensorLayer published."""
    from matplotlib import pyplot

    def medians(key: str) -> list[float]:
        return [statistics.median(run[key] for run in runs) for runs in result["agents"].values()]

    counts = [int(count) for count in result["agents"]]
    figure, (rate, latency) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    rate.plot(counts, medians("samples_per_s"), "o-", label="TensorDB")
    rate.plot(counts, [count * result["context"]["paced_to_each"] for count in counts], ":", color="silver",
              label="what the agents' games allow")  # fmt: skip
    published = result["context"]["published"]
    rate.plot([int(count) for count in published], list(published.values()), "s", color="grey", label="TensorLayer")
    rate.set_ylabel("samples a second, into the trainer")
    latency.plot(counts, [1e3 * seconds for seconds in medians("p50_s")], "o-", label="median")
    latency.plot(counts, [1e3 * seconds for seconds in medians("p95_s")], "o--", label="95th percentile")
    latency.set_ylabel("ms from insert to batch")
    for axes in (rate, latency):
        axes.set_xlabel("agents")
        axes.set_ylim(bottom=0)
        axes.legend()
    return _saved(figure, result, path)


def _saved(figure: Any, result: Mapping[str, Any], path: Path) -> Path:
    machine = result["machine"]
    where = f"{machine.get('gpu') or machine['cpu']}, {machine['cores']} cores, {result['date'][:10]}"
    figure.suptitle(f"{result['question']}\n{where}", fontsize=9)
    target = path.with_suffix(".png")
    figure.savefig(target, dpi=110)
    return target


def draw_memory(path: Path, result: dict[str, Any]) -> Path:
    """Memory along each run."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    for name, curve in result["memory_mb"].items():
        at = [(number + 1) / len(curve) for number in range(len(curve))]
        axes.plot(at, curve, marker="." if len(curve) < 30 else "", label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("part of the run")
    axes.set_ylabel("resident memory, MB")
    axes.legend(fontsize=8)
    machine = result["machine"]
    axes.set_title(f"{result['question']}\n{machine['cpu']}, {result['date'][:10]}", fontsize=9)
    target = path.with_suffix(".png")
    figure.savefig(target, dpi=110)
    return target


def _stalls(result: Mapping[str, Any], path: Path) -> Path:
    """What a loop waits for a save, a panel for each size and number of steps."""
    from matplotlib import pyplot

    panels = result["results"]
    figure, row = pyplot.subplots(1, len(panels), figsize=(5.5 * len(panels), 3.4), layout="constrained", squeeze=False)
    for axes, panel in zip(row[0], panels, strict=True):
        stalls = {name: entry["stall_ms"] for name, entry in panel["savers"].items() if "stall_ms" in entry}
        names = sorted(stalls, key=lambda name: -statistics.median(stalls[name]))
        medians = [statistics.median(stalls[name]) for name in names]
        low = [median - min(stalls[name]) for name, median in zip(names, medians, strict=True)]
        high = [max(stalls[name]) - median for name, median in zip(names, medians, strict=True)]
        colors = ["tab:blue" if name == "TensorDB" else "silver" for name in names]
        axes.barh(names, medians, xerr=(low, high), color=colors, error_kw={"elinewidth": 1})
        axes.set_xscale("log")
        axes.set_xlabel("ms that a save makes the loop wait, median and range")
        axes.set_title(f"{panel['parameters'] / 1e6:,.0f}M parameters, every {panel['every']} steps", fontsize=9)
    return _saved(figure, result, path)


if __name__ == "__main__":
    main(sys.argv[1:])

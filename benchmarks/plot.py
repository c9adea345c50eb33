"""Draws a JSON result of a benchmark as bars with the spread of its rounds.

    python benchmarks/plot.py benchmarks/results/small_tensors.json      # writes small_tensors.png beside it
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        print(draw(path))


def draw(path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    result = json.loads(path.read_text())
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
    machine = result["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {result['date'][:10]}"
    axes.set_title(f"{result['question']}\n{where}", fontsize=9)
    axes.margins(x=0.12)
    target = path.with_suffix(".png")
    figure.savefig(target, dpi=110)
    return target


if __name__ == "__main__":
    main(sys.argv[1:])

"""Compares results with the figures that were committed last, on a machine of the same kind, by their ratios.

    make bench-check                                     # runs the benchmarks that have figures, then this
    .venv/bin/python benchmarks/shared/check.py          # of results that are there

A ratio of a contender over its baseline is taken within each round. One has fallen if its median is below all that the
rounds of the committed figure have seen. The exit status is 1 then, and 2 if there was nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parents[1]
_KIND = ("cpu", "gpu", "cores")


class Compared(NamedTuple):
    """A ratio now, and what the committed figure saw."""

    name: str
    now: float
    before: float
    least: float
    most: float

    @property
    def fell(self) -> bool:
        """Whether it is below all that was seen."""
        return self.now < self.least


def ratios(result: Mapping[str, Any]) -> dict[str, list[float]]:
    """The ratio of each verdict in each round."""
    rates = {name: found.get("samples_per_s", []) for name, found in result.get("rates", {}).items()}
    found = {}
    for verdict in result.get("verdicts", ()):
        ours, base = rates.get(verdict["contender"], []), rates.get(verdict["baseline"], [])
        if ours and len(ours) == len(base):
            name = f"{verdict['contender']} / {verdict['baseline']}"
            found[name] = [a / b for a, b in zip(ours, base, strict=True)]
    return found


def compare(result: Mapping[str, Any], figure: Mapping[str, Any]) -> Iterator[Compared]:
    """Each ratio that both have.

    Raises:
        ValueError: They cannot be compared, and why.
    """
    for one, what in ((result, "result"), (figure, "figure")):
        if one.get("quick"):
            raise ValueError(f"the {what} is of a --quick run")
    kinds = [tuple(one.get("machine", {}).get(key) for key in _KIND) for one in (result, figure)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"the figure is of another kind of machine: {kinds[1]}; this is {kinds[0]}")
    if result.get("context") != figure.get("context"):
        raise ValueError(f"the figure is of other data: {figure.get('context')}; this is {result.get('context')}")
    now = ratios(result)
    for name, before in ratios(figure).items():
        if name in now:
            middle = statistics.median(before)
            yield Compared(name, statistics.median(now[name]), middle, min(before), max(before))


def main(argv: list[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--figures", type=Path, default=HERE / "figures")
    options = parser.parse_args(argv)
    table = Table("benchmark", "ratio", "now", "committed", "its rounds", "")
    compared: list[Compared] = []
    for path in sorted(options.figures.glob("*.json")):
        try:
            if not (options.results / path.name).exists():
                raise ValueError("there is no result")
            found = list(compare(*(json.loads((folder / path.name).read_text()) for folder in
                                   (options.results, options.figures))))  # fmt: skip
            if not found:
                raise ValueError("there are no ratios in it")
        except ValueError as error:
            table.add_row(path.stem, "", "", "", "", f"not compared: {error}")
            continue
        for one in found:
            verdict = "[red]fell[/]" if one.fell else "rose" if one.now > one.most else "within"
            spread = f"{one.least:.2f} – {one.most:.2f}"
            table.add_row(path.stem, one.name, f"{one.now:.2f}", f"{one.before:.2f}", spread, verdict)
        compared += found
    Console(width=140).print(table)
    return 2 if not compared else int(any(one.fell for one in compared))


if __name__ == "__main__":
    sys.exit(main())

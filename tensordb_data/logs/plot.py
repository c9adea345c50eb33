"""Plot series as a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from tensordb_data.errors import MissingExtraError
from tensordb_data.logs.series import Series

_NAMED = 20  # lines that a legend can tell apart


class Picture(bytes):
    """A PNG: bytes to write to a file, and a picture in a notebook."""

    def _repr_png_(self) -> bytes:
        return bytes(self)

    def __repr__(self) -> str:
        return f"<PNG of {len(self):,} bytes>"


def draw(series: Sequence[Series], name: str) -> Picture:
    """A line for each series, with a band from its lowest to its highest value where rows were taken together.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("a plot needs matplotlib: pip install 'tensordb-data[plot]'") from None
    figure: Any = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bad = 0
    for one in series:
        (line,) = axes.plot(one.step, one.mean, label=f"{one.run} {one.kind}", linewidth=1.4,
                            marker="o" if len(one.step) < 3 else None)  # fmt: skip
        if (one.low < one.high).any():
            axes.fill_between(one.step, one.low, one.high, color=line.get_color(), alpha=0.18, linewidth=0)
        where = one.step[one.nonfinite > 0]
        if len(where):
            bad += int(one.nonfinite.sum())
            axes.plot(where, [0.01] * len(where), "x", color=line.get_color(), transform=axes.get_xaxis_transform())
    axes.set_xlabel("step")
    axes.set_ylabel(name)
    axes.set_title(name if not bad else f"{name}  (×: {bad:,} values that are nan or infinite)")
    axes.grid(alpha=0.25)
    if 1 <= len(series) <= _NAMED:
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Picture(buffer.getvalue())

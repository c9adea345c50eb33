r"""Tables of text, and stored text that is safe to print.

A control character is shown as it is written in Python, `\x1b`. So are characters that change the direction of what
follows, and halves of characters, which no terminal can show.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
LONGEST = 60
"""Characters of a cell at most."""
_BARS = "▁▂▃▄▅▆▇█"


def escaped(text: str) -> str:
    """A text without control characters, but for tabs and ends of lines."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def text_table(names: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Collection[str] = ()) -> str:
    """Rows as lines of text, with columns that stand below their names.

    Args:
        names: The names of the columns. One without a value in any row is left out.
        rows: The values.
        numbers: The columns that stand on the right.
    """
    shown = [i for i in range(len(names)) if any(row[i] is not None for row in rows)] or list(range(len(names)))
    lines = [[names[i] for i in shown], *([brief(row[i]) for i in shown] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [names[i] in numbers for i in shown]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if on_right else cell.ljust(width)
            for cell, width, on_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def brief(value: Any, deep: int = 6) -> str:
    """A value in at most 60 characters, on one line; None is empty. What is nested deeper is `…`."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dt.datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, Mapping):
        items = value.items() if deep else ()
        text = _joined(f"{escaped(str(name)[:LONGEST])}={brief(item, deep - 1)}" for name, item in items)
        text = text if deep or not value else "…"
    elif isinstance(value, (list, tuple, set, frozenset)):
        text = _joined(brief(item, deep - 1) for item in value) if deep else "…"
    else:
        text = escaped(" ".join(str(value)[: LONGEST * 20].split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _joined(parts: Iterable[str]) -> str:
    """Parts as a list, no further than a cell is long: a value may be large, and nested."""
    text = ""
    for i, part in enumerate(parts):
        text += f", {part}" if i else part
        if len(text) > LONGEST:
            break
    return text


def sparkline(values: Sequence[float], most: float | None = None) -> str:
    """Values as a line of bars, one character each: `▁▂▅█`. One that is not finite is a blank.

    Args:
        values: The values, from 0 on if `most` is given.
        most: The value of the highest bar; None to draw from the least value to the greatest.
    """
    finite = [value for value in values if math.isfinite(value)]
    low = 0.0 if most is not None or not finite else min(finite)
    high = most if most is not None else max(finite, default=0.0)
    return "".join(_bar(value, low, high) for value in values)


def _bar(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return " "
    # Halves: the difference of the greatest floats is infinite.
    width = high / 2 - low / 2
    part = (value / 2 - low / 2) / width if width > 0 else 0.0
    return _BARS[min(len(_BARS) - 1, max(0, int(part * len(_BARS))))]

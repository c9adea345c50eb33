"""Print tables: each row is one line, for any width of the terminal and any number of columns."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from tensordb_data.cli import output
from tensordb_data.common.text_table import brief, escaped

_LEAST = 10  # to which a column is cut before others are left out
_IDS = ("_id", "id")  # never cut: they are copied into other commands


def table(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str] | None = None) -> None:
    """Prints rows as a table with a column for every field that any of them has; nothing without rows.

    Args:
        rows: From names to values.
        colors: Of cells that hold exactly this text.
    """
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if value not in (None, [], {}, "")))
    if not names:
        return
    lines = [[brief(row.get(name)) for name in names] for row in rows]
    names = list(map(escaped, names))
    wanted = [max(map(len, column)) for column in zip(names, *lines, strict=True)]
    least = [length if name in _IDS else min(length, _LEAST) for name, length in zip(names, wanted, strict=True)]
    shown = _fitting(least, output.width())
    output.grid(names[:shown], [line[:shown] for line in lines], least=least[:shown], colors=colors)
    if shown < len(names):
        output.note(f"not shown for want of width: {', '.join(names[shown:])}")


def _fitting(least: Sequence[int], width: int) -> int:
    """How many of the columns have room."""
    ends = [1 + total + 3 * (i + 1) for i, total in enumerate(itertools.accumulate(least))]
    return max(1, sum(end <= width for end in ends))

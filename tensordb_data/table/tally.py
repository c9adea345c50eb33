"""What the values of one field are, counted one by one in bounded memory."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Hashable
from typing import Any

from tensordb_data.table.counts import keyed, most_frequent
from tensordb_data.table.paths import values_at

DISTINCT = 10_000
"""Different values that are counted; of a field with more, none are."""


class Tally:
    """Counts what a field holds in the documents that it is shown.

    Args:
        name: The field; a dotted name looks within it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.present = self.missing = self.nan = self.numbers = 0
        self.total = 0.0
        self.low: Any = None
        self.high: Any = None
        self.kinds: dict[str, int] = {}
        self.values: dict[tuple[str | None, Any], int] | None = {}

    def add(self, doc: dict[str, Any]) -> None:
        """Count the values of one more document."""
        found = False
        for value in values_at(doc, self.name):
            found = True
            self._count(value)
        if found:
            self.present += 1
        else:
            self.missing += 1

    def _count(self, value: Any) -> None:
        kind = _KINDS.get(type(value)) or type(value).__name__
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if kind == "number":
            if math.isnan(value):
                self.nan += 1
                return
            self.numbers += 1
            self.total += value
        if kind in ("number", "datetime") and set(self.kinds) <= {kind}:
            self.low = value if self.low is None or value < self.low else self.low
            self.high = value if self.high is None or value > self.high else self.high
        if self.values is None:
            return
        if not isinstance(value, Hashable):
            self.values = None
            return
        key = keyed(value)
        self.values[key] = self.values.get(key, 0) + 1
        if len(self.values) > DISTINCT:
            self.values = None

    @property
    def range(self) -> tuple[Any, Any]:
        """The least and the greatest value, where all are numbers or all are times; else a pair of None."""
        return (self.low, self.high) if len(self.kinds) == 1 else (None, None)

    @property
    def mean(self) -> float | None:
        """The mean of the numbers, where all values are numbers."""
        return self.total / self.numbers if self.numbers and len(self.kinds) == 1 else None

    @property
    def distinct(self) -> int | None:
        """How many different values there are; None if there are very many, or they are no single values."""
        return None if self.values is None else len(self.values)

    def top(self, n: int) -> dict[Any, int]:
        """The most frequent values."""
        return most_frequent((self.values or {}).items(), n)


_KINDS: dict[type, str] = {
    int: "number", float: "number", bool: "bool", str: "text", dt.datetime: "datetime", dict: "dict", list: "list",
}  # fmt: skip

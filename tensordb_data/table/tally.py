"""What the values of one field are, counted in bounded memory."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bson import Int64

from tensordb_data.table.counts import most_frequent
from tensordb_data.table.paths import values_at

DISTINCT = 10_000
"""Different values that are counted; of a field with more, none are."""

_KINDS: dict[type, str] = {
    int: "number", Int64: "number", float: "number", bool: "bool", str: "text", dt.datetime: "datetime", dict: "dict",
    list: "list",
}  # fmt: skip
_NESTED = frozenset((dict, list))
_NOTHING = type(None)


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
        self._parts = name.split(".")
        self._values: dict[str, Counter[Any]] | None = {}

    def add(self, docs: Sequence[Mapping[str, Any]]) -> None:
        """Count the values of some more documents; many at a time is faster."""
        values = [_value(doc, self._parts) for doc in docs]
        types = set(map(type, values))
        if types & _NESTED:
            found = [list(values_at(doc, self.name)) for doc in docs]
            values = [value for some in found for value in some]
            present = sum(map(bool, found))
        else:
            values = [value for value in values if value is not None] if _NOTHING in types else values
            present = len(values)
        self.present += present
        self.missing += len(docs) - present
        for type_ in set(map(type, values)):
            self._count(type_, [value for value in values if type(value) is type_])

    def _count(self, type_: type, values: list[Any]) -> None:
        kind = _KINDS.get(type_) or type_.__name__
        self.kinds[kind] = self.kinds.get(kind, 0) + len(values)
        if kind == "number":
            there = [value for value in values if value == value] if type_ is float else values
            self.nan += len(values) - len(there)
            self.numbers += len(there)
            self.total += sum(there)
            values = there
        if kind in ("number", "datetime") and values:
            low, high = min(values), max(values)
            self.low = low if self.low is None or not _ordered(self.low, low) else self.low
            self.high = high if self.high is None or not _ordered(high, self.high) else self.high
        counts = self._values
        if counts is None:
            return
        if getattr(type_, "__hash__", None) is None:
            self._values = None
            return
        counts.setdefault(kind, Counter()).update(values)
        if sum(map(len, counts.values())) > DISTINCT:
            self._values = None

    @property
    def values(self) -> dict[tuple[str | None, Any], int] | None:
        """How often each value occurs, by kind and value; None if there are very many, or they are no single values."""
        if self._values is None:
            return None
        return {(kind, value): n for kind, counts in self._values.items() for value, n in counts.items()}

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
        """How many different values there are; None as for `values`."""
        return None if self._values is None else sum(map(len, self._values.values()))

    def top(self, n: int) -> dict[Any, int]:
        """The most frequent values."""
        return most_frequent((self.values or {}).items(), n)


def _value(doc: Any, parts: Sequence[str]) -> Any:
    """The value at a name, as far as dicts lead to it; a list where one is in between."""
    for part in parts:
        if type(doc) is not dict:
            return doc if type(doc) is list else None
        doc = doc.get(part)
    return doc


def _ordered(one: Any, two: Any) -> bool:
    """Whether two numbers or two times are in order; those of another kind come later."""
    try:
        return bool(one <= two)
    except TypeError:
        return True

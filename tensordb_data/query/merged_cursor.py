"""A cursor over the documents of several finds, in order."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Order = Sequence[tuple[str, int]]


class MergedCursor:
    """Iterates over what several cursors find. A document that more than one finds is there once.

    Args:
        find: Makes the cursors. They have the order that is given, and nobody has begun to read them.
        order: A total order, of fields that hold text, numbers or ids. The documents have these fields.
        limit: The most documents to deliver; None for all.
    """

    def __init__(self, find: Callable[[], Sequence[Any]], order: Order, limit: int | None = None) -> None:
        self._find, self._order, self._limit = find, order, limit
        self._cursors: Sequence[Any] = ()
        self._docs: Iterator[dict[str, Any]] | None = None

    def __iter__(self) -> MergedCursor:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._docs is None:
            self._cursors = self._find()
            merged = heapq.merge(*self._cursors, key=self._key)
            once = (next(same) for _, same in itertools.groupby(merged, self._key))
            self._docs = itertools.islice(once, self._limit)
        return next(self._docs)

    def clone(self) -> MergedCursor:
        """The same, from the beginning."""
        return MergedCursor(self._find, self._order, self._limit)

    def close(self) -> None:
        """Release the server's cursors."""
        for cursor in self._cursors:
            cursor.close()

    def _key(self, doc: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(_value(doc, name) if way > 0 else -_value(doc, name) for name, way in self._order)


def _value(doc: Any, name: str) -> Any:
    for key in name.split("."):
        doc = doc[key]
    return doc

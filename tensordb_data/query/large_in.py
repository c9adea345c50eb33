"""Split a filter with so large an `$in` that the server does not take it into several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bson
from bson import ObjectId

from tensordb_data.common.bson_values import MAX_DOCUMENT

_LARGEST = MAX_DOCUMENT - 64 * 1024  # something is added to the filter of a user
_PART = 8 * 2**20  # the bytes of a part at most

Filter = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """Filters that together match what a large one matches. They differ in one `$in`.

    An entity whose field holds a list may match several of them. If the field is `_id`, each matches one.
    """

    field: str
    """The field of the `$in`."""
    parts: tuple[Filter, ...]
    _path: tuple[Any, ...]

    def with_values(self, values: Sequence[Any]) -> Filter:
        """The large filter with other values in this `$in`."""
        found: Filter = _replaced(self.parts[0], self._path, list(values))
        return found


def size_of(filter: Mapping[str, Any]) -> int:
    """The bytes of a filter."""
    return len(bson.encode(filter))


def is_large(filter: Mapping[str, Any]) -> bool:
    """Whether the server does not take this filter."""
    return size_of(filter) > _LARGEST


def split(filter: Filter) -> Split | None:
    """Split a filter by the longest `$in` that everything which matches has to fulfil; None if that does not help."""
    path = max(_paths(filter, ()), key=lambda path: len(_at(filter, path)), default=None)
    if path is None:
        return None
    field, values = str(path[-2]), _at(filter, path)
    if field == "_id":
        if not all(isinstance(value, ObjectId) for value in values):
            return None
        values = list(dict.fromkeys(values))
    parts = _halved(filter, path, values)
    return None if parts is None else Split(field, tuple(parts), path)


def _halved(filter: Filter, path: tuple[Any, ...], values: list[Any]) -> list[Filter] | None:
    part = _replaced(filter, path, values)
    if size_of(part) <= _PART:
        return [part]
    if len(values) < 2:
        return None
    middle = len(values) // 2
    one = _halved(filter, path, values[:middle])
    two = None if one is None else _halved(filter, path, values[middle:])
    return None if one is None or two is None else one + two


def _paths(filter: Mapping[str, Any], before: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Where the lists of the `$in` are, outside of alternatives and negations."""
    for key, value in filter.items():
        if key == "$and" and isinstance(value, list):
            for i, part in enumerate(value):
                if isinstance(part, dict):
                    yield from _paths(part, (*before, key, i))
        elif not key.startswith("$") and isinstance(value, dict) and isinstance(value.get("$in"), list):
            yield (*before, key, "$in")


def _at(filter: Any, path: tuple[Any, ...]) -> list[Any]:
    for key in path:
        filter = filter[key]
    found: list[Any] = filter
    return found


def _replaced(filter: Any, path: tuple[Any, ...], values: list[Any]) -> Any:
    if not path:
        return values
    copied = list(filter) if isinstance(filter, list) else dict(filter)
    copied[path[0]] = _replaced(filter[path[0]], path[1:], values)
    return copied

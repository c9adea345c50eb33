"""The values at a dotted name of a document, as MongoDB finds them: through lists, and by positions in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def values_at(doc: Any, name: str) -> Iterator[Any]:
    """The values at a name. Where a value is a list, its items; nothing where there is no value, or only None."""
    for value in _found(doc, name.split(".")):
        for item in value if isinstance(value, list) else (value,):
            if item is not None:
                yield item


def _found(value: Any, parts: list[str]) -> Iterator[Any]:
    if not parts:
        yield value
    elif isinstance(value, dict):
        if parts[0] in value:
            yield from _found(value[parts[0]], parts[1:])
    elif isinstance(value, list):
        if parts[0].isdigit() and int(parts[0]) < len(value):
            yield from _found(value[int(parts[0])], parts[1:])
        for item in value:
            if isinstance(item, dict):
                yield from _found(item, parts)


def is_simple(name: str) -> bool:
    """Whether an expression `$name` of the server means the same: it knows no positions in lists."""
    return not any(part.isdigit() for part in name.split("."))

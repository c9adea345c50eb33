"""Filters on fields that are stored as blobs: the index knows whether a sample has one, and not what is in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tensordb_data.errors import QueryError

BlobDatasets = Mapping[str, frozenset[str]]
"""Name of a field to the datasets in which it is a blob."""

_LOGICAL = ("$and", "$or", "$nor")
_NEVER_BLOBS = ("_id", "_tdb", "dataset", "tags")


def mentioned(filter: Mapping[str, Any]) -> set[str]:
    """The top-level fields that a filter may look at, whether in conditions or in expressions."""
    found = {name for name in _mentioned(filter) if name not in _NEVER_BLOBS}
    return {name for name in found if name and not name.startswith("$") and "." not in name and "\0" not in name}


def with_presence(filter: Mapping[str, Any], blobs: BlobDatasets, named: Sequence[str] | None) -> dict[str, Any]:
    """The filter, with conditions on the references to blobs in place of those on blobs.

    Args:
        filter: The filter of a user.
        blobs: The fields it mentions that are blobs in a dataset that it may match.
        named: The datasets that it is restricted to, or None.

    Raises:
        QueryError: It asks for more of a blob than whether it is there.
    """
    return _Translation(blobs, named).part(filter) if blobs else dict(filter)


class _Translation:
    def __init__(self, blobs: BlobDatasets, named: Sequence[str] | None) -> None:
        self._blobs, self._named = blobs, named

    def part(self, filter: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        apart: list[dict[str, Any]] = []
        for key, value in filter.items():
            if key in _LOGICAL and isinstance(value, list):
                out[key] = [self.part(item) if isinstance(item, dict) else item for item in value]
            elif key.startswith("$"):
                for name in _mentioned({key: value}):
                    if name in self._blobs:
                        raise self._refusal(name, {key: value})
                out[key] = value
            elif (root := key.split(".")[0]) not in self._blobs:
                out[key] = value
            elif key != root or not _asks_for_presence(value):
                raise self._refusal(root, {key: value})
            elif self._named is not None and self._blobs[root].issuperset(self._named):
                out[f"_tdb.b.{root}"] = value
            else:
                stored = sorted(self._blobs[root])
                apart.append(
                    {"$or": [
                        {"dataset": {"$in": stored}, f"_tdb.b.{root}": value},
                        {"dataset": {"$nin": stored}, root: value},
                    ]}
                )  # fmt: skip
        return {"$and": [*([out] if out else []), *apart]} if apart else out

    def _refusal(self, name: str, found: Mapping[str, Any]) -> QueryError:
        stored = self._blobs[name]
        others = "" if self._named is not None and stored.issuperset(self._named) else (
            f', or narrow the query to the datasets where it is a value: {{"dataset": {{"$nin": {sorted(stored)}}}}}'
        )  # fmt: skip
        return QueryError(
            f"field {name!r} is a blob in dataset {', '.join(map(repr, sorted(stored)))}, and a filter sees only if "
            f'a sample has it: {{{name!r}: {{"$exists": True}}}}, or {{{name!r}: None}} for those without; found '
            f"{found!r:.200}. Write what you want to compare as a field of its own{others}"
        )


def _asks_for_presence(condition: Any) -> bool:
    """Whether a condition only asks if there is a value, so that it may be asked of the reference."""
    if not isinstance(condition, dict):
        return condition is None
    if not condition or not all(key.startswith("$") for key in condition):
        return False
    for operator, operand in condition.items():
        if operator == "$exists":
            continue
        if operator in ("$eq", "$ne") and operand is None:
            continue
        if operator in ("$in", "$nin") and operand == [None]:
            continue
        if operator == "$not" and isinstance(operand, dict) and _asks_for_presence(operand):
            continue
        return False
    return True


def _mentioned(filter: Mapping[str, Any]) -> Iterator[str]:
    for key, value in filter.items():
        if key in _LOGICAL and isinstance(value, list):
            for part in value:
                if isinstance(part, dict):
                    yield from _mentioned(part)
        elif key == "$expr":
            yield from _paths(value)
        elif key == "$jsonSchema":
            yield from _texts(value)
        elif not key.startswith("$"):
            yield key.split(".")[0]


def _paths(value: Any) -> Iterator[str]:
    """The fields that an expression reads."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$getField":
                field = item.get("field") if isinstance(item, dict) else item
                if isinstance(field, str):
                    yield field
            if key != "$literal":
                yield from _paths(item)
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item)
    elif isinstance(value, str) and value.startswith("$"):
        parts = value.lstrip("$").split(".")
        yield parts[1] if value.startswith("$$") and len(parts) > 1 else "" if value.startswith("$$") else parts[0]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value

"""Ids in filters: an id that is written as text, as a repr and the command line show it, becomes the id."""

from __future__ import annotations

from typing import Any

from bson import ObjectId

from tensordb_data.errors import QueryError

ID_FIELDS = {
    "data": frozenset({"_id"}),
    "architectures": frozenset({"_id"}),
    "params": frozenset({"_id", "lineage.parent"}),
    "jobs": frozenset({"_id", "after"}),
    "logs": frozenset({"_id"}),
}
"""The fields that hold ids, by collection."""

_LOGICAL = ("$and", "$or", "$nor")
_COMPARE = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$all")
_OF_TEXT = ("$regex", "$options")
_ROOTS = ("$", "$$ROOT.", "$$CURRENT.")


def with_ids(collection: str, filter: dict[str, Any]) -> dict[str, Any]:
    """The filter, with ids in place of their texts, wherever a field that holds ids is compared with them.

    Raises:
        QueryError: Such a field is compared with a text that is no id, and would match nothing, or everything.
    """
    fields = ID_FIELDS[collection]
    return {key: _part(key, value, fields) for key, value in filter.items()}


def _part(key: str, value: Any, fields: frozenset[str]) -> Any:
    if key in _LOGICAL and isinstance(value, list):
        return [
            {inner: _part(inner, item, fields) for inner, item in part.items()} if isinstance(part, dict) else part
            for part in value
        ]
    if key == "$expr":
        return _expression(value, frozenset(root + name for root in _ROOTS for name in fields))
    return _condition(key, value) if key in fields else value


def _condition(field: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return _id(field, value)
    out: dict[str, Any] = {}
    for operator, operand in value.items():
        if operator in _OF_TEXT:
            raise QueryError(f"filter: {field!r} holds ids, which are no text and match no {operator}; compare it with "
                             '$in and whole ids, or with $gte and $lt')  # fmt: skip
        if operator in _COMPARE:
            operand = _id(field, operand)
        elif operator in ("$not", "$elemMatch"):
            operand = _condition(field, operand)
        out[operator] = operand
    return out


def _expression(value: Any, paths: frozenset[str]) -> Any:
    """Operands that stand beside an id in an expression are ids."""
    if isinstance(value, dict):
        return {key: item if key == "$literal" else _expression(item, paths) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    found = next((item for item in value if isinstance(item, str) and item in paths), None)
    if found is None:
        return [_expression(item, paths) for item in value]
    return [_expression(item, paths) if isinstance(item, dict) else _id(found, item) for item in value]


def _id(field: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_id(field, item) for item in value]
    if not isinstance(value, str) or value.startswith("$"):
        return value
    if len(value) == 24 and ObjectId.is_valid(value):
        return ObjectId(value)
    raise QueryError(f"filter: {field!r} holds ids, of 24 hexadecimal digits each, such as '65f0c0ffee65f0c0ffee65f0' "
                     f"or bson.ObjectId('65f0c0ffee65f0c0ffee65f0'); found the text {value!r:.100}")  # fmt: skip

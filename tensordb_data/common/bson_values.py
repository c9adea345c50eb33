"""Bring values into the one form in which the index holds them, before they are compared, stored or sent."""

from __future__ import annotations

import datetime as dt
import enum
import re
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import numpy as np
from bson import (
    Binary,
    DBRef,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
    json_util,
)
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError

COLLECTIONS = ("data", "architectures", "params", "jobs", "logs")
MAX_DEPTH = 90  # the server refuses documents nested deeper than 100
MAX_DOCUMENT = 16 * 1024 * 1024

# Operators whose argument the server would run as code, or write somewhere.
CODE_OPERATORS = frozenset({"$where", "$function", "$accumulator"})
# Those that the server has for itself. Two of them, for its map-reduce, run code.
INTERNAL_OPERATORS = "$_internal"

# Extended JSON, canonical and relaxed. `$regex` is left out: as an operator it stands beside others, and
# json_util would swallow those.
_WRAPPERS = {
    frozenset(keys)
    for keys in (
        {"$oid"}, {"$date"}, {"$numberInt"}, {"$numberLong"}, {"$numberDouble"}, {"$numberDecimal"},
        {"$regularExpression"}, {"$binary"}, {"$uuid"}, {"$timestamp"}, {"$minKey"}, {"$maxKey"},
    )
}  # fmt: skip
_KEPT = (ObjectId, Decimal128, Timestamp, MinKey, MaxKey, DBRef, Regex)
JSON = json_util.CANONICAL_JSON_OPTIONS
DATETIMES = DatetimeConversion.DATETIME_AUTO
"""How dates are read: as datetimes, and those before the year 1 or after 9999 as `DatetimeMS`."""
LENIENT: CodecOptions[dict[str, Any]] = CodecOptions(datetime_conversion=DATETIMES)


def plain(value: Any, fail: Callable[[str], Exception], *, filter: bool = False, path: str = "") -> Any:
    """A deep copy of `value` made of BSON types only; equal values come out identical.

    Scalars of NumPy, torch and TensorFlow become Python numbers, tuples lists, aware datetimes naive UTC in
    milliseconds.

    Args:
        value: Anything JSON- or BSON-able.
        fail: Makes the exception to raise from a message.
        filter: Whether this is query language: operators are allowed, those that run code are refused,
            and extended JSON (`{"$oid": …}`) is read as the value it stands for.
        path: Where in the document `value` lies, for messages.
    """
    return _plain(value, fail, filter, path, 0)


def member_value(value: Any) -> Any:
    """The value of a member of an Enum, of whatever kind; any other value unchanged."""
    while isinstance(value, enum.Enum):
        value = value.value
    return value


def _plain(value: Any, fail: Callable[[str], Exception], filter: bool, path: str, depth: int) -> Any:
    value = member_value(value)
    if value is None or isinstance(value, (bool, str)):
        if isinstance(value, str):
            _encodable(value, fail, path)
            return str.__str__(value)
        return value
    if isinstance(value, int):  # Int64 and IntEnum too
        if not -(2**63) <= value < 2**63:
            raise fail(f"{_at(path)}{value} does not fit a 64-bit integer; store it as a string or a float")
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        item = value.item()
        if isinstance(item, (bool, int, float, str, bytes, dt.datetime)):
            return _plain(item, fail, filter, path, depth)
        raise fail(f"{_at(path)}a NumPy {value.dtype} has no counterpart in the index; convert it first")
    if depth > MAX_DEPTH:
        raise fail(f"{_at(path)}nested deeper than {MAX_DEPTH} levels; flatten it")
    if isinstance(value, Mapping):
        return _mapping(value, fail, filter, path, depth)
    if isinstance(value, (list, tuple)):
        return [
            item if type(item) is ObjectId else _plain(item, fail, filter, f"{path}.{i}", depth + 1)
            for i, item in enumerate(value)
        ]
    if isinstance(value, (set, frozenset)):
        raise fail(f"{_at(path)}a set has no order; pass a list")
    if isinstance(value, dt.datetime):
        return _datetime(value, fail, path)
    if isinstance(value, UUID):
        return Binary.from_uuid(value)
    if isinstance(value, Binary):
        return value if value.subtype else bytes(value)
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, re.Pattern):
        return Regex(value.pattern, value.flags & ~re.UNICODE)
    if isinstance(value, _KEPT):
        return value
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        shape = tuple(getattr(value, "shape", ()))
        if shape == ():
            return _plain(single(value), fail, filter, path, depth + 1)
        raise fail(
            f"{_at(path)}an array of shape {shape} cannot stand here; pass .tolist(), or a single number with .item()"
        )
    if isinstance(value, dt.date):
        raise fail(f"{_at(path)}a date without a time; pass a datetime.datetime")
    if (instead := getattr(value, "instead", None)) is not None:
        raise fail(f"{_at(path)}{value!r:.200}: {instead}")
    raise fail(f"{_at(path)}a {type(value).__name__} cannot be stored in the index; "
               "use numbers, strings, booleans, None, datetimes, bytes, lists and dicts")  # fmt: skip


def single(value: Any) -> Any:
    """The Python number in an array of one element: NumPy's, torch's, TensorFlow's."""
    item: Callable[[], Any] | None = getattr(value, "item", None)
    return np.asarray(value).item() if item is None else item()


def _mapping(value: Mapping[Any, Any], fail: Callable[[str], Exception], filter: bool, path: str, depth: int) -> Any:
    out: dict[str, Any] = {}
    for key, item in value.items():
        key = member_value(key)
        if not isinstance(key, str):
            if (instead := getattr(key, "instead", None)) is not None:
                raise fail(f"{_at(path)}{key!r:.200}: {instead}")
            raise fail(f"{_at(path)}key {key!r} is a {type(key).__name__}; keys must be strings")
        if "\0" in key:
            raise fail(f"{_at(path)}key {key!r} holds a NUL character")
        _encodable(key, fail, path)
        if filter and key in CODE_OPERATORS:
            raise fail(f"{_at(path)}{key} runs code on the server and is refused; "
                       "use comparison operators, or $expr with ordinary expressions")  # fmt: skip
        if filter and key.startswith(INTERNAL_OPERATORS):
            raise fail(f"{_at(path)}{key} is an operator that the server has for itself, and is refused")
        if not filter and key.startswith("$"):
            raise fail(f"{_at(path)}key {key!r} begins with '$', which is kept for operators; rename it")
        out[key] = _plain(item, fail, filter, f"{path}.{key}" if path else key, depth + 1)
    if filter and frozenset(out) in _WRAPPERS:
        try:
            decoded = json_util.object_hook(out, JSON)
        except (BSONError, TypeError, ValueError, KeyError, ArithmeticError) as error:
            raise fail(f"{_at(path)}{out!r} is not valid extended JSON: {error}") from None
        if not isinstance(decoded, dict):
            return _plain(decoded, fail, filter, path, depth + 1)
    return out


def _datetime(value: dt.datetime, fail: Callable[[str], Exception], path: str) -> dt.datetime:
    if value.tzinfo is not None:
        try:
            value = value.astimezone(dt.timezone.utc).replace(tzinfo=None)
        except OverflowError:
            raise fail(f"{_at(path)}{value.isoformat()} is not within the years 1 to 9999 of UTC") from None
    return value.replace(microsecond=value.microsecond // 1000 * 1000, fold=0)


def _encodable(text: str, fail: Callable[[str], Exception], path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise fail(f"{_at(path)}{text!r} is not valid Unicode (a lone surrogate)") from None


def _at(path: str) -> str:
    return f"at {path!r}: " if path else ""


__all__ = ["CODE_OPERATORS", "COLLECTIONS", "JSON", "MAX_DOCUMENT", "Int64", "plain"]

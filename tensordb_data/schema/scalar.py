"""Values that live in the index, where queries see them."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any, ClassVar

import numpy as np
from bson import Int64

from tensordb_data.common.bson_values import member_value
from tensordb_data.errors import SchemaError
from tensordb_data.schema.field import Element, Field, describe
from tensordb_data.schema.missing import is_missing

SCALAR_KINDS = ("bool", "int", "float", "str", "datetime", "json")

_MAX_DEPTH = 90  # MongoDB refuses documents nested deeper than 100


@dataclasses.dataclass(frozen=True, repr=False)
class Scalar(Field):
    """A value in the index. It is mutable, and filters can use it.

    Args:
        kind: "bool", "int" (64 bits), "float", "str", "datetime" (milliseconds, UTC), or "json" for nested lists
            and dicts of those and None.
        optional: whether samples may leave the field out.
    """

    kind: str

    is_blob: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.kind not in SCALAR_KINDS:
            raise SchemaError(f"expected a kind of {', '.join(SCALAR_KINDS)}, found {self.kind!r}")

    def to_doc(self) -> dict[str, Any]:
        return self._doc(kind=self.kind)

    @property
    def element(self) -> Element:
        dtype = {"bool": "bool", "int": "int64", "float": "float64"}.get(self.kind)
        return (None, None) if dtype is None else (dtype, ())

    def encode(self, value: Any) -> Any:
        """`value` as the plain Python value that goes into the document.

        Raises:
            SchemaError: it does not fit.
        """
        kind = type(value)
        if (kind is float and self.kind == "float") or (kind is int and self.kind == "int" and _fits(value)):
            return value
        plain = _plain(value)
        if plain is None and self.optional:
            return None
        if self.kind == "json":
            return _json(plain, _MAX_DEPTH)
        if self.kind == "float" and type(plain) is int:
            plain = _exact(plain)
        if not _TESTS[self.kind](plain):
            raise SchemaError(f"expected {self.kind}, found {describe(value)}")
        return _in_range(plain)

    def read(self, stored: Any) -> Any:
        """A value from the index, as `encode` makes it. A whole double is an integer, as a shell may write it.

        Raises:
            SchemaError: it is of another kind: another tool has written it.
        """
        if stored is None or self.kind == "json":
            return stored
        if isinstance(stored, Int64) or (self.kind == "int" and type(stored) is float and stored.is_integer()):
            stored = int(stored)
        return self.encode(stored)

    def encode_rows(self, values: Any) -> list[Any]:
        """A column of n values, an array or a sequence, as a list for n documents."""
        if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in _DTYPE_KINDS.get(self.kind, ""):
            wide = values.dtype.kind in "iu" and values.dtype.itemsize == 8
            if not wide or (self.kind == "int" and values.dtype.kind == "i"):
                column: list[Any] = values.astype(np.float64).tolist() if self.kind == "float" else values.tolist()
                return column
        return [self.encode(value) for value in values]

    def _check(self, value: Any) -> None:
        self.encode(value)


_TESTS: dict[str, Any] = {
    "bool": lambda v: type(v) is bool,
    "int": lambda v: type(v) is int,
    "float": lambda v: type(v) is float,
    "str": lambda v: isinstance(v, str),
    "datetime": lambda v: isinstance(v, datetime.datetime),
}
_DTYPE_KINDS = {"bool": "b", "int": "iu", "float": "fiu"}


def _fits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def _exact(value: int) -> float:
    """An integer as a float that is equal to it.

    Raises:
        SchemaError: there is none.
    """
    if abs(value) < 2**1023 and int(found := float(value)) == value:
        return found
    raise SchemaError(f"expected float, found int {str(value)[:40]}, which no float holds without losing digits")


def _plain(value: Any) -> Any:
    """The Python value of a member of an Enum, of a scalar of numpy or torch, or of a 0-d array; None for a missing
    one; any other value unchanged.
    """
    value = member_value(value)
    if is_missing(value):
        return None
    if isinstance(value, np.datetime64):
        return value.astype("datetime64[ms]").item()
    if isinstance(value, np.generic) or getattr(value, "shape", None) == ():
        if isinstance(value, np.floating):
            return float(value)
        item = getattr(value, "item", None)
        return item() if callable(item) else value
    return value


def _in_range(value: Any) -> Any:
    if type(value) is int and not _fits(value):
        raise SchemaError(f"expected an integer of 64 bits, found {str(value)[:40]}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise SchemaError(f"expected text that UTF-8 can hold, found a lone surrogate at {error.start}") from None
        return str.__str__(value)
    if isinstance(value, datetime.datetime) and hasattr(value, "to_pydatetime"):
        value = value.to_pydatetime(warn=False)  # of pandas, which knows nanoseconds
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        try:
            value.astimezone(datetime.timezone.utc)
        except OverflowError:
            raise SchemaError(f"expected a time within the years 1 to 9999 of UTC, found {value.isoformat()}") from None
    return value


def _json(value: Any, depth: int) -> Any:
    if depth == 0:
        raise SchemaError(f"expected a value nested less than {_MAX_DEPTH} deep, found a deeper one")
    value = _plain(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if value is None or type(value) in (bool, int, float) or isinstance(value, (str, datetime.datetime)):
        return _in_range(value)
    if isinstance(value, dict):
        return {_key(k): _json(v, depth - 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(v, depth - 1) for v in value]
    raise SchemaError(
        f"expected a JSON-able value (bool, number, text, datetime, None, list, dict), found {describe(value)}"
    )


def _key(key: Any) -> str:
    key = member_value(key)
    if not isinstance(key, str) or key.startswith("$") or "." in key or "\0" in key:
        raise SchemaError(f"expected keys that are text without '.', NUL or a leading '$', found {key!r}: rename it")
    return str.__str__(key)

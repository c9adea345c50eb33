"""Check and encode one field of many samples together, as a column."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sized
from typing import Any, cast

import numpy as np
from bson import ObjectId

from tensordb_data.errors import SchemaError
from tensordb_data.mongo.object_ids import new_ids
from tensordb_data.samples.tables import as_column
from tensordb_data.schema import BlobField, Field, Scalar
from tensordb_data.schema.missing import is_missing
from tensordb_data.schema.schema import Schema, located, missing_field
from tensordb_data.warehouse.identity import Identities, row_key

_SHORT = 1000
_BROADCAST = (str, bool, int, float, np.generic, enum.Enum)


class Column:
    """One field of n samples.

    Args:
        dataset: The dataset, for messages.
        name: The field's name.
        field: The field.
        values: Index values as a list, blobs of one size as encoded rows uint8[n, size], other blobs as given.
        repeated: Whether all are one short value.
        start: The row of the first value in what the user gave.
    """

    def __init__(
        self, dataset: str, name: str, field: Field, values: Any, *, repeated: bool = False, start: int = 0
    ) -> None:
        self.dataset, self.name, self.field, self.values = dataset, name, field, values
        self.repeated, self.start = repeated, start

    @property
    def varies(self) -> bool:
        """Whether the values differ in size, so that each document must be measured."""
        return not self.repeated and isinstance(self.field, Scalar) and self.field.kind in ("str", "json")

    def __getitem__(self, rows: slice) -> Column:
        """Some rows.

        Blobs of different sizes are encoded here, and not before, so that few of them are in memory at once.
        """
        values, start = self.values[rows], self.start + rows.start
        if isinstance(self.field, BlobField) and not isinstance(values, np.ndarray):
            values = _encode_each(self.dataset, self.name, self.field, values, start)
        return Column(self.dataset, self.name, self.field, values, repeated=self.repeated, start=start)


def count_rows(dataset: str, columns: Mapping[str, Any]) -> int:
    """How many samples the columns hold.

    Raises:
        SchemaError: The columns differ in length, or there is none.
    """
    lengths: dict[str, int] = {}
    for name, value in columns.items():
        if is_one(value):
            continue
        if not is_column(value):
            raise SchemaError(
                f"dataset {dataset!r}, field {name!r}: expected a column, an array (n, ...) or a list of n values, "
                f"found {type(value).__name__}; only numbers and strings are repeated"
            )
        lengths[name] = len(value)
    if not lengths:
        raise SchemaError(f"dataset {dataset!r}: add_many needs at least one column, an array (n, ...) or a list; "
                          "for a single sample use add")  # fmt: skip
    if len(set(lengths.values())) > 1:
        raise SchemaError(f"dataset {dataset!r}: expected columns of one length, found {lengths}")
    return next(iter(lengths.values()))


def encode_columns(dataset: str, schema: Schema, n: int, given: Mapping[str, Any]) -> dict[str, Column]:
    """Columns of n samples against a schema, whose names were checked.

    Raises:
        SchemaError: A column is missing, or a value does not fit; the message names the row.
    """
    columns: dict[str, Column] = {}
    for name, field in schema.items():
        value = given.get(name)
        if field.optional and is_missing(value):
            continue
        if name not in given:
            raise missing_field(dataset, name, field)
        short = is_one(value) and not (isinstance(value, str) and len(value) > _SHORT)
        columns[name] = Column(dataset, name, field, _encode(dataset, name, field, n, value), repeated=short)
    return columns


def _encode(dataset: str, name: str, field: Field, n: int, value: Any) -> Any:
    if is_one(value):
        if isinstance(field, BlobField):
            raise SchemaError(f"dataset {dataset!r}, field {name!r}: expected a column of {n} values for {field!r}, "
                              f"found one {type(value).__name__}")  # fmt: skip
        return _encode_each(dataset, name, field, [value], 0) * n
    column = as_column(value)
    try:
        if isinstance(field, Scalar):
            return field.encode_rows(column)
        if isinstance(field, BlobField) and hasattr(column, "shape"):
            rows = field.encode_rows(column)
            if rows is not None:
                return rows
    except SchemaError as error:
        if not isinstance(field, Scalar):
            raise SchemaError(located(dataset, name, field, error)) from None
        return _encode_each(dataset, name, field, column, 0)  # finds the row
    return list(column)


def _encode_each(dataset: str, name: str, field: Field, values: Any, start: int) -> list[Any]:
    encoder = cast(Any, field).encode
    encoded: list[Any] = []
    for row, value in enumerate(values):
        try:
            encoded.append(None if field.optional and is_missing(value) else encoder(value))
        except SchemaError as error:
            raise SchemaError(located(dataset, name, field, error, start + row)) from None
    return encoded


def is_one(value: Any) -> bool:
    """Whether the value stands for every row."""
    return is_missing(value) or isinstance(value, _BROADCAST)


def is_column(value: Any) -> bool:
    """Whether the value has one for each row."""
    return (
        not isinstance(value, (bytes, bytearray, dict))
        and isinstance(value, Sized)
        and hasattr(value, "__getitem__")
        and getattr(value, "shape", None) != ()
    )


def make_ids(n: int, given: Any) -> list[ObjectId]:
    """The ids of n samples."""
    if given is None:
        return new_ids(n)
    ids = list(given)
    if len(ids) != n or not all(isinstance(id, ObjectId) for id in ids):
        raise SchemaError(f"_id: expected a list of {n} bson.ObjectId, found {len(ids)} values")
    return ids


def keyed(identities: Identities, keys: Any, n: int, given: Any) -> list[ObjectId]:
    """The ids of n samples that are known by keys: one value each, or a tuple of several.

    Raises:
        SchemaError: There are ids too, there is another number of keys, or one is missing or cannot be a key.
    """
    if given is not None:
        raise SchemaError("_id and _key are two ways to say which sample it is: give one of them")
    if isinstance(keys, (str, bytes, bytearray, Mapping)) or not isinstance(keys, Iterable):
        raise SchemaError(f"_key: expected a list of {n} keys, found {type(keys).__name__}")
    found = keys.tolist() if isinstance(keys, np.ndarray) else list(keys)
    if len(found) != n:
        raise SchemaError(f"_key: expected a list of {n} keys, found {len(found)}")
    ids = []
    for row, key in enumerate(found):
        try:
            ids.append(identities.of_key(row_key(key if isinstance(key, tuple) and key else (key,))))
        except SchemaError as error:
            raise SchemaError(f"_key, row {row}: {error}") from None
    return ids

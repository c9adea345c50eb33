"""The rule for what a transform may return, the same in threads and in worker processes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import numpy as np

from tensordb_data.errors import SampleError, SchemaError, TensorDBError
from tensordb_data.schema.array import as_array, is_array
from tensordb_data.schema.field import describe
from tensordb_data.stream.fetch.decode import Column
from tensordb_data.stream.transform.collate import Batch, ColumnBuilder, Name

_RULE = "arrays, tensors, PIL images, numbers, text, bytes, times, None, and lists, tuples and dicts of them"
_KEYS = (type(None), bool, int, float, complex, str)
_NUMBERS: dict[type, np.dtype[Any]] = {kind: np.dtype(kind) for kind in (bool, int, float, complex)}


def plain(value: Any) -> Any:
    """A value that a transform returned, as batches have it.

    Arrays, tensors of any framework and PIL images become arrays, whatever their dtype and device; arrays of no
    dimension and numbers of NumPy become numbers; and likewise in lists, tuples and dicts.

    Raises:
        SchemaError: It is something else; or a masked array, whose mask would be lost; or a number or array that no
            batch can have.
    """
    kind = type(value)
    if kind is np.ndarray:
        if value.dtype.kind not in "biufcSUMm":
            as_array(value)
        if not value.dtype.isnative:
            value = value.astype(value.dtype.newbyteorder("="))
        return value if value.ndim else _number(value[()])
    if kind in _KEYS or kind is bytes or kind is dt.datetime or kind.__module__.partition(".")[0] == "bson":
        return value
    if isinstance(value, np.generic):
        return _number(value)
    if is_array(value):
        array = as_array(value)
        return array if array.ndim else _number(array[()])
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in _KEYS:
                raise SchemaError(f"expected a dict with keys of text or numbers, found the key {describe(key)}")
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, str):  # an Enum, say
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    raise SchemaError(f"expected {_RULE}; found {describe(value)}")


def _number(value: Any) -> Any:
    """Numbers that Python has are Python's, so that two of one dtype are of one type."""
    if value.dtype.kind in "SU":
        return value.item()
    if value.dtype.kind not in "biufcMm":
        as_array(value)
    return value.item() if value.dtype in _NUMBERS.values() else value


class FieldTypes:
    """The dtype of each field that a transform returns. It is that of the sample that came first; thread-safe."""

    def __init__(self) -> None:
        self._dtypes: dict[str, Any] = {}

    def check(self, field: str, value: Any) -> None:
        """Check that a value of `plain` has the dtype of its field.

        Raises:
            SchemaError: It has another one, or one is a number or an array and the other is not.
        """
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise SchemaError(f"expected a whole number that fits into int64, found {value}; return it as text")
        found = _dtype(value)
        expected = self._dtypes.setdefault(field, found)
        if found != expected:
            raise SchemaError(
                f"expected {_show(expected)} as for another sample, found {_show(found)}; return one dtype for all"
                " samples, such as by .astype() or float()"
            )

    def check_columns(self, columns: Mapping[str, Column], name: Name) -> None:
        """Check the columns that another process has made of values of `plain`.

        Raises:
            SampleError: See `check`.
        """
        for field, column in columns.items():
            for row, value in enumerate(column):
                try:
                    self.check(field, value)
                except SchemaError as error:
                    raise _named(error, name(row), field) from error
                if isinstance(column, np.ndarray):
                    break  # the others have the same dtype


def _named(error: TensorDBError, where: str, field: str) -> SampleError:
    return SampleError(f"{where}, field {field!r}, as the transform returned it: {error}")


def _dtype(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.newbyteorder("=") if value.dtype.kind not in "SU" else "text"
    return _NUMBERS.get(type(value))


def _show(dtype: Any) -> str:
    return "neither a number nor an array" if dtype is None else str(dtype)


class TableBuilder:
    """Builds the columns of the samples that a transform returns; see `ColumnBuilder`.

    Args:
        m: The number of samples.
        stack: Whether values are put into arrays as they come, where that is possible.
        name: Returns how errors speak of the sample in a row.
        types: The dtypes that the transform has returned before.
    """

    def __init__(self, m: int, stack: bool, name: Name, types: FieldTypes) -> None:
        self._m, self._stack, self._name, self._types, self._count = m, stack, name, types, 0
        self._builders: dict[str, ColumnBuilder] = {}

    def add(self, sample: Batch) -> None:
        """Add the next sample.

        Raises:
            SampleError: It does not have the same fields as the first one, or a value is nothing that a transform may
                return.
        """
        if not self._count:
            self._builders = {field: ColumnBuilder(self._m, self._stack) for field in sample}
        elif sample.keys() != self._builders.keys():
            raise SampleError(
                f"{self._name(self._count)}: the transform returned the fields {', '.join(sample)}, and for"
                f" other samples of the batch {', '.join(self._builders)}; return the same fields for every sample"
            )
        for field, value in sample.items():
            try:
                value = plain(value)
                self._types.check(field, value)
            except TensorDBError as error:
                raise _named(error, self._name(self._count), field) from error
            self._builders[field].add(value)
        self._count += 1

    def columns(self) -> dict[str, Column]:
        """The columns of all fields."""
        return {field: builder.column() for field, builder in self._builders.items()}

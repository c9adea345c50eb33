"""The schema that samples ask for. A field whose first values are missing gets its kind from the first that is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from tensordb_data.errors import SchemaError
from tensordb_data.samples.columns import is_one
from tensordb_data.samples.tables import as_column
from tensordb_data.schema.missing import is_missing
from tensordb_data.schema.schema import Schema, check_field_name, check_names


class WaitingFields:
    """The fields of a dataset of which a writer has seen missing values only.

    A missing value tells nothing about a kind. So the field is not in the schema until a sample has a value, and then
    it is optional.

    Args:
        dataset: The name of the dataset.
    """

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._waiting: set[str] = set()

    def of_sample(self, schema: Schema | None, sample: Mapping[str, Any]) -> Schema:
        """The schema with which a sample is written.

        Args:
            schema: The schema so far; None for that of a new dataset.
            sample: The fields of the sample.

        Raises:
            SchemaError: The sample has a field that the schema has not, or no field tells its kind.
        """
        if schema is not None and all(name in schema for name in sample):
            return schema
        return self._grown(schema, sample, ())

    def of_columns(self, schema: Schema | None, columns: Mapping[str, Any]) -> Schema:
        """The schema with which samples in columns are written; see `of_sample`."""
        if schema is not None and all(name in schema for name in columns):
            return schema
        first = {name: first_value(column) for name, column in columns.items()}
        return self._grown(schema, first, [name for name, column in columns.items() if _lacks_some(column)])

    def _grown(self, schema: Schema | None, sample: Mapping[str, Any], partly: Collection[str]) -> Schema:
        missing = [check_field_name(self._dataset, name) for name, value in sample.items() if is_missing(value)]
        told = {name: value for name, value in sample.items() if not is_missing(value)}
        if schema is None:
            found = Schema.inferred(self._dataset, told)
            if not found:
                raise SchemaError(f"dataset {self._dataset!r}: the first sample has no field with a value; give it at "
                                  "least one, or declare them all in schema=")  # fmt: skip
            optional = {name for name in found if name in partly or name in self._waiting}
        else:
            check_names(self._dataset, schema, [name for name in told if name not in self._waiting])
            found = Schema.inferred(self._dataset, {name: v for name, v in told.items() if name not in schema})
            optional = set(found)
        self._waiting.update(missing)
        fields = {
            name: dataclasses.replace(field, optional=True) if name in optional else field
            for name, field in found.items()
        }
        return Schema({**(schema or {}), **fields})


def first_value(column: Any) -> Any:
    """The first value of a column that tells its kind: neither missing nor empty bytes, where there is one."""
    if is_one(column):
        return column
    values = as_column(column)
    if getattr(getattr(values, "dtype", None), "kind", "M") != "M":  # an array of numbers
        return values[0]
    some = None
    for value in values:
        if not is_missing(value):
            if not isinstance(value, (bytes, bytearray)) or value:
                return value
            some = value if some is None else some
    return some


def _lacks_some(column: Any) -> bool:
    if is_one(column):
        return False
    values = as_column(column)
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        return bool(np.isnat(values).any())
    return not hasattr(values, "dtype") and any(map(is_missing, values))

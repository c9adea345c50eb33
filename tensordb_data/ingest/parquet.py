"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tensordb_data.errors import MissingExtraError, SchemaError
from tensordb_data.ingest.source import CHUNK_ROWS, Chunk, row_key
from tensordb_data.schema import Array, Bytes, Field, Scalar, infer


class ParquetFile:
    """A Parquet file: numbers, strings, times, lists and structs become index fields, binaries and lists of one fixed
    size of numbers become blobs (binaries that are JPEG or PNG: images). Fields with nulls are optional.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingExtraError("Parquet needs pyarrow: pip install 'tensordb-data[tables]'") from None
        self._path = path
        self._pyarrow = pyarrow
        self.total = path.stat().st_size
        self.failed: list[tuple[str, str]] = []
        self._fields: dict[str, Field] | None = None
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise SchemaError(f"{path}: expected a Parquet file: {error}") from None
        if not self._file.metadata.num_rows:
            raise SchemaError(f"{path}: expected rows, found none")

    def schema(self, stored: Mapping[str, Field]) -> dict[str, Field]:
        if self._fields is None:
            self._fields = self._infer()
        return {name: stored.get(name, field) for name, field in self._fields.items()}

    def chunks(self, schema: Mapping[str, Field]) -> Iterator[Chunk]:
        start, rows = 0, self._file.metadata.num_rows
        for batch in self._batches():
            columns = {name: _values(batch.column(name)) for name in batch.schema.names}
            keys = [
                row_key(self._path.name, start + row, repr(values).encode(errors="surrogatepass"))
                for row, values in enumerate(zip(*map(_hashable, columns.values()), strict=True))
            ]
            start += len(keys)
            yield Chunk(keys, columns, self.total * len(keys) // rows)

    def _batches(self) -> Iterator[Any]:
        try:
            for batch in self._file.iter_batches(batch_size=CHUNK_ROWS):
                if batch.num_rows:
                    yield batch
        except (self._pyarrow.ArrowException, OSError) as error:
            raise SchemaError(f"{self._path}: damaged Parquet file: {error}") from None

    def _infer(self) -> dict[str, Field]:
        names = self._file.schema_arrow.names
        if len(set(names)) < len(names):
            raise SchemaError(f"{self._path}: expected different names, found {names}")
        nulls = dict.fromkeys(names, 0)
        firsts: dict[str, bytes] = {}
        for batch in self._batches():
            for name in names:
                column = batch.column(name)
                nulls[name] += column.null_count
                if name not in firsts and self._is_binary(column.type) and column.null_count < len(column):
                    firsts[name] = column.drop_null()[0].as_py()
        return {
            name: self._field(name, self._file.schema_arrow.field(name).type, nulls[name] > 0, firsts.get(name))
            for name in names
        }

    def _is_binary(self, kind: Any) -> bool:
        types = self._pyarrow.types
        return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))

    def _field(self, name: str, kind: Any, optional: bool, first: bytes | None) -> Field:
        types = self._pyarrow.types
        if types.is_dictionary(kind):
            kind = kind.value_type
        if self._is_binary(kind):
            return type(infer(first))(optional=optional) if first is not None else Bytes(optional=optional)
        if types.is_fixed_size_list(kind) and _is_number(types, kind.value_type):
            return Array(kind.value_type.to_pandas_dtype()().dtype.name, (kind.list_size,), optional=optional)
        scalars = {
            "bool": types.is_boolean(kind),
            "int": types.is_integer(kind),
            "float": types.is_floating(kind),
            "str": types.is_string(kind) or types.is_large_string(kind),
            "datetime": types.is_timestamp(kind),
            "json": types.is_nested(kind) or types.is_null(kind),
        }
        for scalar, found in scalars.items():
            if found:
                return Scalar(scalar, optional=optional)
        raise SchemaError(
            f"{self._path}, column {name!r}: a {kind} cannot be stored; cast it to a number, string or timestamp"
        )


def _is_number(types: Any, kind: Any) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind))


def _values(column: Any) -> Any:
    if hasattr(column, "dictionary_decode"):
        column = column.dictionary_decode()
    size = getattr(column.type, "list_size", None)
    if size is not None and column.type.num_fields == 1:
        if column.null_count == 0:
            return np.asarray(column.flatten()).reshape(len(column), size)
        dtype = column.type.value_type.to_pandas_dtype()
        return [None if value is None else np.array(value, dtype) for value in column.to_pylist()]
    return column.to_pylist()


def _hashable(column: Any) -> Any:
    return [row.tobytes() for row in column] if isinstance(column, np.ndarray) else column

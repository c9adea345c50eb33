"""Tables in memory: whatever gives a stream of Arrow, DataFrames of pandas, and datasets of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import SchemaError
from tensordb_data.ingest.readers.arrow_table import ArrowTable, Batches
from tensordb_data.ingest.readers.arrow_types import pyarrow
from tensordb_data.ingest.source import CHUNK_ROWS, Chunk, FileInfo
from tensordb_data.schema import Field, Scalar

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_INDEX = "__index_level_"


def is_table(source: Any) -> bool:
    """Whether a value is a table that can be read as Arrow."""
    return (
        hasattr(source, "__arrow_c_stream__") or _module(source) in ("pandas", "pyarrow") or is_huggingface(source)
    ) and not isinstance(source, type)


def is_huggingface(source: Any) -> bool:
    """Whether a value is a dataset of the package `datasets`, or a dict of its splits."""
    return _module(source) == "datasets" and type(source).__name__ in ("Dataset", "DatasetDict")


def open_frame(given: Given) -> Frame:
    """A table in memory."""
    pyarrow()
    source = given.source
    if is_huggingface(source):
        parts = dict(source) if isinstance(source, Mapping) else {None: source}
        given.memo["split"] = isinstance(source, Mapping)
        return Frame(given, {name: _huggingface(part) for name, part in parts.items()})
    if _module(source) == "pandas":
        return Frame(given, {None: _pandas(given, source)})
    return Frame(given, {None: _arrow(source)})


class Frame:
    """A table in memory, or several that are splits."""

    id = ""
    root = ""

    def __init__(self, given: Given, tables: Mapping[str | None, tuple[Any, Batches]]) -> None:
        self._given = given
        self.files = [FileInfo(name or "") for name in tables]
        self._tables = {name: ArrowTable("table", schema, batches) for name, (schema, batches) in tables.items()}
        self._fields: dict[str, Field] = {}

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        for name, table in self._tables.items():
            fields = dict(table.fields(wanted))
            if self._fields and set(fields) != set(self._fields):
                raise SchemaError(f"split {name!r}: expected the columns {list(self._fields)}, found {list(fields)}")
            for column, field in fields.items():
                known = self._fields.get(column)
                self._fields[column] = field if known is None or field.optional else known
        if None not in self._tables and "split" not in self._fields:
            return {**self._fields, "split": wanted.get("split") or Scalar("str")}
        return self._fields

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        for name, table in self._tables.items():
            first = 0
            for part in table.parts(self._fields):
                columns = dict(part.columns)
                for mixed in self._given.memo.get("json", ()):
                    columns[mixed] = [value and json.loads(value) for value in columns[mixed]]
                if name is not None and "split" not in self._fields:
                    columns["split"] = [name] * part.count
                yield Chunk(columns, file=name or "", first=first, nbytes=part.nbytes)
                first += part.count
            file, none = FileInfo(name or ""), dict[str, list[Any]]({column: [] for column in self._fields})
            if name is not None:
                none.setdefault("split", [])
            yield Chunk(none, file=file.name, first=first, done=[file])


def _arrow(source: Any) -> tuple[Any, Batches]:
    import pyarrow as pa
    import pyarrow.compute

    if isinstance(source, (pa.Table, pa.RecordBatch)):
        table = pa.table(source) if isinstance(source, pa.RecordBatch) else source
    elif hasattr(source, "to_batches") and hasattr(source, "schema") and not hasattr(source, "__arrow_c_stream__"):
        return source.schema, lambda columns: iter(source.to_batches(columns=columns))  # a dataset of pyarrow
    else:
        try:
            reader = pa.RecordBatchReader.from_stream(source)
        except (pa.ArrowException, TypeError, AttributeError) as error:
            raise SchemaError(f"expected a table, found {type(source).__name__}: {error}") from None
        table = reader.read_all()
    return table.schema, _batches(table)


def _batches(table: Any) -> Callable[[Sequence[str] | None], Iterator[Any]]:
    def batches(columns: Sequence[str] | None) -> Iterator[Any]:
        some = table if columns is None else table.select(columns)
        return (batch for batch in some.to_batches(max_chunksize=CHUNK_ROWS) if batch.num_rows)

    return batches


def _pandas(given: Given, frame: Any) -> tuple[Any, Batches]:
    """A DataFrame. NaN is a number in columns of floats; in others it is a missing value."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute

    if not hasattr(frame, "columns"):
        raise SchemaError(f"expected a DataFrame, found a {type(frame).__name__}; use .to_frame()")
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    columns: dict[str, Any] = {}
    for at, name in enumerate(frame.columns):
        column, text = frame.iloc[:, at], str(name)
        if text in columns:
            raise SchemaError(f"expected different names of columns, found {text!r} twice")
        floats = isinstance(column.dtype, np.dtype) and column.dtype.kind == "f"
        try:
            columns[text] = pa.array(column.to_numpy() if floats else column, from_pandas=not floats)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            columns[text] = _mixed(given, text, column, error)
    table = pa.table({name: column for name, column in columns.items() if not isinstance(column, list)})
    return table.schema, _batches(table)


def _mixed(given: Given, name: str, column: Any, error: Exception) -> Any:
    """A column that Arrow does not take: mixed values, as JSON texts if the user has said so."""
    import pyarrow as pa

    wanted = (given.columns.types or {}).get(name)
    kind = getattr(wanted, "kind", None)
    values = [None if lacks else value for value, lacks in zip(column.tolist(), column.isna().tolist(), strict=True)]
    if kind == "str":
        return pa.array([None if value is None else str(value) for value in values])
    if kind == "json":
        given.memo.setdefault("json", set()).add(name)
        return pa.array([None if value is None else json.dumps(value, default=str) for value in values])
    first = next((type(value) for value in values if value is not None), type(None))
    row = next((i for i, value in enumerate(values) if value is not None and type(value) is not first), 0)
    other = type(values[row]).__name__
    raise SchemaError(
        f"column {name!r}, row {row}: expected {first.__name__}, as before, found {other}; give the kind, as in"
        f" types={{{name!r}: 'json'}} ({str(error).splitlines()[0]})"
    )


def _huggingface(dataset: Any) -> tuple[Any, Batches]:
    schema = dataset.features.arrow_schema if dataset.features is not None else dataset.data.schema
    found = dataset.with_format("arrow")

    def batches(columns: Sequence[str] | None) -> Iterator[Any]:
        some = found if columns is None else found.select_columns(list(columns))
        for table in some.iter(batch_size=CHUNK_ROWS):
            yield from table.combine_chunks().to_batches()

    return schema, batches


def _module(value: Any) -> str:
    return type(value).__module__.partition(".")[0]

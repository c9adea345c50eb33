"""Samples as Arrow tables: which type each field has, and batches of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from bson import json_util

from tensordb_data.errors import MissingExtraError, QueryError
from tensordb_data.export.rows import Row, blob_names, check_data, fields_of, read_rows, scalar
from tensordb_data.schema import Array, BlobField, Field, Scalar, Text
from tensordb_data.schema.array import numpy_dtype
from tensordb_data.warehouse.bound_query import BoundQuery

MARK = b"tensordb"
"""The key in the metadata of a table under which the schema of its samples is."""


def pyarrow() -> Any:
    """The library.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise MissingExtraError("tables need pyarrow: pip install 'tensordb-data[tables]'") from None
    return pyarrow


def to_arrow(bound: BoundQuery, blobs: Sequence[str]) -> Any:
    """See `Selection.to_arrow`."""
    check_data(bound, "a table")
    return table_of(fields_of(bound), blobs, read_rows(bound, blobs))


def table_of(fields: Mapping[str, Field], blobs: Sequence[str], runs: Iterable[Sequence[Row]]) -> Any:
    """Some samples as a table; see `Selection.to_arrow`.

    Args:
        fields: Their fields.
        blobs: The blob fields to add.
        runs: The samples, which are read when `blobs` was checked.
    """
    if isinstance(blobs, str):
        raise QueryError(f"blobs is a list of names of fields; found {blobs!r}: write blobs=[{blobs!r}]")
    known = blob_names(fields)
    for name in blobs:
        if name not in known:
            raise QueryError(f"blobs: there is no blob {name!r}; the blobs are {', '.join(known) or 'none'}")
    kept = {name: field for name, field in fields.items() if isinstance(field, Scalar) or name in blobs}
    if why := [f"field {name!r}: {reason}" for name in blobs if (reason := fault(kept[name])) is not None]:
        raise QueryError(f"blobs: {why[0]}")
    schema = schema_of(kept)
    batches = [record_batch(schema, kept, rows) for rows in runs]
    return pyarrow().Table.from_batches(batches, schema)


def fault(field: Field) -> str | None:
    """Why a field cannot be in a table; None if it can."""
    if not isinstance(field, Array):
        return None
    if numpy_dtype(field.dtype).kind not in "biuf" or not _arrow_knows(field.dtype):
        return f"a table has no type for {field.dtype}"
    if not field.fixed_nbytes:
        return f"{field!r} has no fixed shape with numbers in it, which a column of lists needs"
    return None


def _arrow_knows(dtype: str) -> bool:
    found = numpy_dtype(dtype)
    return bool(found.type.__module__ == "numpy" and found.itemsize <= 8)


def schema_of(fields: Mapping[str, Field]) -> Any:
    """The schema of a table: `_id`, `dataset`, `tags`, and the fields. Its metadata has the fields as a document."""
    pa = pyarrow()
    columns = [
        pa.field("_id", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        *(pa.field(name, _type(pa, field)) for name, field in fields.items()),
    ]
    doc = {name: field.to_doc() for name, field in fields.items()}
    return pa.schema(columns, metadata={MARK: json.dumps(doc, ensure_ascii=False).encode()})


def _type(pa: Any, field: Field) -> Any:
    if isinstance(field, Scalar):
        kinds = {
            "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string(),
            "datetime": pa.timestamp("ms", tz="UTC"), "json": pa.string(),
        }  # fmt: skip
        return kinds[field.kind]
    if isinstance(field, Array):
        count = int(np.prod(cast(Any, field.fixed_shape), dtype=np.int64))
        return pa.list_(pa.from_numpy_dtype(numpy_dtype(field.dtype)), count)
    return pa.large_string() if isinstance(field, Text) else pa.large_binary()


def record_batch(schema: Any, fields: Mapping[str, Field], rows: Sequence[Row]) -> Any:
    """Some rows as a record batch."""
    pa = pyarrow()
    columns = [
        pa.array([str(row.sample.id) for row in rows], pa.string()),
        pa.array([row.sample.dataset for row in rows], pa.string()),
        pa.array([list(row.sample.tags) for row in rows], pa.list_(pa.string())),
        *(_column(pa, name, field, schema.field(name).type, rows) for name, field in fields.items()),
    ]
    return pa.record_batch(columns, schema=schema)


def _column(pa: Any, name: str, field: Field, kind: Any, rows: Sequence[Row]) -> Any:
    if isinstance(field, Scalar):
        values = [scalar(row, name, field) for row in rows]
        if field.kind == "json":
            values = [None if value is None else json_text(value) for value in values]
        return pa.array(values, kind)
    stored = [row.blobs.get(name) for row in rows]
    if not isinstance(field, Array):
        decode = cast(BlobField, field).decode if isinstance(field, Text) else bytes
        return pa.array([None if value is None else decode(value) for value in stored], kind)
    return pa.array([None if value is None else field.decode(value).reshape(-1) for value in stored], kind)


def json_text(value: Any) -> str:
    """A value of a JSON field as text; times in MongoDB's extended JSON, `{"$date": …}`."""
    return json_util.dumps(value, json_options=json_util.RELAXED_JSON_OPTIONS, ensure_ascii=False)

"""Samples as blocks of Ray Data, which are Arrow tables with tensor columns, and blocks as columns of a writer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data.block import BlockAccessor
from ray.data.extensions import (
    ArrowPythonObjectType,
    ArrowTensorArray,
    ArrowVariableShapedTensorArray,
    get_arrow_extension_tensor_types,
)

from tensordb_data.errors import SchemaError
from tensordb_data.export.partition import Partition
from tensordb_data.export.rows import merged_fields
from tensordb_data.schema import Field, Scalar
from tensordb_data.schema.array import numpy_dtype

BLOCK_BYTES = 16 << 20
"""About how many bytes of blobs become one block."""


def fields_of(part: Partition) -> dict[str, Field]:
    """The fields that a partition reads.

    Raises:
        SchemaError: Two datasets have a field of one name and different kinds.
    """
    names = [name for name in part.fields if name != "_id"]
    return merged_fields(part.state.layout().schemas, names)


def blocks_of(part: Partition, credentials: str | None) -> Iterator[pa.Table]:
    """The samples of a partition as blocks with its fields, in order."""
    rows = max(1, min(len(part), BLOCK_BYTES * len(part) // max(1, part.nbytes)))
    for start in range(0, len(part), rows):
        whole = start == 0 and rows == len(part)
        piece = part if whole else part.take(range(start, min(len(part), start + rows)))
        yield _block(piece, credentials)


def empty_block(part: Partition) -> pa.Table:
    """A block without samples, which has the columns of the others."""
    return _block(part.take(()), None)


def _block(part: Partition, credentials: str | None) -> pa.Table:
    """Values of the index as Arrow has them, with nulls; blobs as tensors, bytes and text."""
    fields = fields_of(part)
    blobs = [name for name, field in fields.items() if not isinstance(field, Scalar)]
    scalars = [name for name in fields if name not in blobs]
    table = part.with_fields([*scalars, "_id"]).to_arrow(credentials=credentials)
    columns = {name: table[name] for name in ("_id", *scalars)}
    if blobs:
        batch = part.with_fields([*blobs, "_id"]).read(credentials=credentials)
        ids = [str(id) for id in batch["_id"]]
        if ids != table["_id"].to_pylist():  # some were deleted in between
            table = table.filter(pc.is_in(table["_id"], pa.array(ids, pa.string())))
            columns = {name: table[name] for name in ("_id", *scalars)}
        columns.update({name: _column(name, fields[name], batch[name]) for name in blobs})
    return pa.table({name: columns[name] for name in part.fields})


def _column(name: str, field: Field, values: Any) -> Any:
    """Blobs as a column."""
    dtype, shape = field.element
    if dtype is None:
        kind = pa.large_string() if len(values) and isinstance(values[0], str) else pa.large_binary()
        return pa.array([value if isinstance(value, str) else bytes(value) for value in values], kind)
    if numpy_dtype(dtype).kind not in "biuf":
        raise SchemaError(f"field {name!r}: Arrow has no tensors of {dtype}; leave it out with fields=[...]")
    sizes = shape or (None,)
    if None not in sizes:
        return ArrowTensorArray.from_numpy(np.asarray(values))
    if not len(values):
        return ArrowTensorArray.from_numpy(np.zeros((0, *(size or 0 for size in sizes)), numpy_dtype(dtype)))
    each = np.empty(len(values), object)
    each[:] = [np.asarray(value) for value in values]
    if len({value.ndim for value in each}) > 1:
        raise SchemaError(
            f"field {name!r}: the arrays of a column of Ray have one number of dimensions, these have several; leave it"
            " out with fields=[...]"
        )
    return ArrowVariableShapedTensorArray.from_numpy(each)


def columns_of(block: Any) -> dict[str, Any]:
    """The columns of a block, as a writer takes them: arrays of tensors, and columns of Arrow with their nulls.

    Raises:
        SchemaError: A column holds objects of Python, which have no place in a warehouse.
    """
    table = BlockAccessor.for_block(block).to_arrow()
    return {name: _given(name, table) for name in table.column_names}


def _given(name: str, table: pa.Table) -> Any:
    kind = table.schema.field(name).type
    if isinstance(kind, ArrowPythonObjectType):
        raise SchemaError(f"column {name!r} holds objects of Python: return arrays, numbers, text, bytes or lists")
    if not isinstance(kind, get_arrow_extension_tensor_types()):
        column = table[name]
        return column if column.null_count or not pa.types.is_nested(kind) else column.to_pylist()
    if table[name].null_count:
        return [None if value is None else np.asarray(value) for value in _tensors(table, name)]
    values = BlockAccessor.for_block(table.select([name])).to_numpy(name)
    return list(values) if values.dtype == object else values


def _tensors(table: pa.Table, name: str) -> Iterator[Any]:
    for chunk in table[name].chunks:
        for row in range(len(chunk)):
            one = chunk[row : row + 1]
            yield None if one.null_count else one.to_numpy(zero_copy_only=False)[0]


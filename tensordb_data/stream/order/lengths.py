"""Lengths: how long the samples of a stream of sequences are, by the index."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.blobs.segments.references import MALFORMED
from tensordb_data.errors import QueryError, SampleError
from tensordb_data.schema import Array, BlobField, Scalar
from tensordb_data.stream.plan.sample_table import FieldLayout, SampleTable
from tensordb_data.stream.tokens import Tokens


def sequence_fields(layout: FieldLayout) -> list[str]:
    """The delivered fields that are arrays of one dimension that varies."""
    return [name for name in layout.fields if any(_is_sequence(schema.get(name)) for schema in layout.schemas.values())]


def _is_sequence(field: object) -> bool:
    return isinstance(field, Array) and field.shape == (None,)


def length_field(tokens: Tokens, layout: FieldLayout) -> str:
    """The field that says how long a sample is.

    Raises:
        QueryError: None is named, and not exactly one of the delivered fields is an array of one dimension.
    """
    if tokens.length is not None:
        return tokens.length
    found = sequence_fields(layout)
    if len(found) != 1:
        which = f"several are ({', '.join(found)})" if found else f"none is; delivered are {', '.join(layout.fields)}"
        raise QueryError(
            "the length of a sample is that of the only delivered field that is an array of one dimension, and"
            f' {which}: name a field, length="n_tokens"'
        )
    return found[0]


def lengths_of(table: SampleTable, name: str) -> NDArray[np.int64]:
    """The lengths of some samples: int64 [m].

    Args:
        table: The samples. It has the field.
        name: A field of whole numbers, or of arrays, text or bytes.

    Raises:
        SampleError: A sample has none, or a negative one. The message names it.
        QueryError: The field has no lengths that the index knows.
    """
    schemas = table.layout.schemas
    fields = [schemas[dataset].get(name) for dataset in table.datasets]
    if name in table.refs:
        return _of_blobs(table, name, fields)
    for field in fields:
        if field is not None and not (isinstance(field, Scalar) and field.kind == "int"):
            raise _no_lengths(name, f"is stored as {field!r}")
    column = table.values[name]
    if column.dtype == object or column.dtype.kind != "i":
        column = _numbers(table, name, column)
    if (wrong := np.flatnonzero(column < 0)).size:
        raise SampleError(f"{table.name(int(wrong[0]))}: {name!r} is a length of {column[wrong[0]]}; update it")
    return column.astype(np.int64, copy=False)


def _numbers(table: SampleTable, name: str, column: NDArray[Any]) -> NDArray[np.int64]:
    items = column.tolist()
    for row, item in enumerate(items):
        if not isinstance(item, int) or isinstance(item, bool) or not -(2**63) <= item < 2**63:
            raise SampleError(
                f"{table.name(row)}: the length {name!r} must be a whole number. Found: {item!r}; narrow the query with"
                f" {{{name!r}: {{'$ne': None}}}}, or update the sample"
            )
    return np.array(items, np.int64)


def _of_blobs(table: SampleTable, name: str, fields: list[Any]) -> NDArray[np.int64]:
    refs = table.refs[name]
    if (absent := np.flatnonzero(refs.length < 0)).size:
        row = int(absent[0])
        found = "something that is no blob" if refs.length[row] == MALFORMED else "nothing"
        raise SampleError(
            f"{table.name(row)} has no length, since its {name!r} is {found}; narrow the query with"
            f" {{{name!r}: {{'$exists': True}}}}, or name another field, length="
        )
    if refs.compressed is not None and refs.compressed.any():
        raise _no_lengths(name, "is compressed, and the index knows its compressed size alone")
    lengths = np.empty(len(table), np.int64)
    for number, field in enumerate(fields):
        mine = np.flatnonzero(table.dataset == number)
        known = field.lengths(refs.length[mine]) if isinstance(field, BlobField) else None
        if known is None:
            raise _no_lengths(name, f"is stored as {field!r}")
        if (wrong := np.flatnonzero(known < 0)).size:
            raise SampleError(
                f"{table.name(int(mine[wrong[0]]))}: the stored {name!r} is no value of {field!r}; run fsck"
            )
        lengths[mine] = known
    return lengths


def _no_lengths(name: str, why: str) -> QueryError:
    return QueryError(
        f"`length` is a field of whole numbers, or of text, bytes or arrays of known dimensions, and {name!r} {why}:"
        " store the length of each sample in a field of its own, and name that"
    )

"""Fetch and decode: turns a table of references into a column of values for each field."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from types import NoneType
from typing import Any, cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from tensordb_data.blobs.reader.reader import BlobReader
from tensordb_data.blobs.segments.references import MALFORMED, REPLACED
from tensordb_data.common.buffer_pool import empty
from tensordb_data.errors import CorruptBlobError, SampleError, SchemaError, StorageError, TensorDBError
from tensordb_data.schema import BlobField, Scalar
from tensordb_data.schema.views.view import View, Views
from tensordb_data.stream.fetch.inline import load_inline
from tensordb_data.stream.plan.inline import gather_inline, inline_rows, read_inline
from tensordb_data.stream.plan.sample_table import SampleTable
from tensordb_data.stream.stats import Clock

Column = NDArray[Any] | list[Any]
"""An array [m, ...], or a list of m values that have no common array form."""


_NUMBERS: dict[str, type[np.generic]] = {"int": np.int64, "float": np.float64, "bool": np.bool_}
_TYPES: dict[str, set[type]] = {
    "str": {str, NoneType}, "datetime": {dt.datetime, NoneType}, "int": set(), "float": set(), "bool": set(),
}  # fmt: skip
"""The types of stored values that need no look at each of them. There may be any in a JSON field, and in tags."""

Values = Column | Iterator[Any]
"""A column, or an iterator of m values that decodes each value when it is drawn."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How the fields of some samples are decoded."""

    views: Views = dataclasses.field(default_factory=dict)
    """How those fields are decoded of which the stream says so."""
    fields: tuple[str, ...] | None = None
    """The fields that were asked for; None for every required one."""
    keys: Sequence[int] = ()
    """For each sample a 64-bit number made of (seed, pass, position), if it is needed."""


def load(table: SampleTable, reader: BlobReader, clock: Clock, decoding: Decoding) -> dict[str, Values]:
    """Load the values of every field that is delivered, in the order of `table.layout`.

    Raises:
        QueryError: A field cannot be decoded as `decoding` says.
        SampleError: A sample lacks a field, or its bytes cannot be read or decoded. The message names the sample and
            the field. An iterator among the values raises it too.
    """
    if table.inline:
        with clock("fetch"):
            table = load_inline(table, reader)
    views = decoding.views
    return {
        name: _blobs(table, name, reader, clock, decoding) if name in table.refs else _values(table, name)
        for name in (table.layout.delivered(views, decoding.fields) if views else table.layout).fields
    }


def values_of(table: SampleTable, rows: NDArray[np.int64]) -> dict[str, Column]:
    """The values of the index fields of those samples at `rows`.

    Raises:
        SampleError: A sample lacks a field, or another tool has written something else there.
    """
    names = [name for name in table.layout.fields if name not in table.refs]
    if any(table.values[name].dtype == object for name in names):
        some = table.take(rows)
        return {name: _values(some, name) for name in names}
    return {name: table.values[name][rows] for name in names}


def _values(table: SampleTable, name: str) -> Column:
    column = table.values[name]
    if column.dtype != object:
        return column
    items: list[Any] = column.tolist()
    fields = [table.layout.schemas[dataset].get(name) for dataset in table.datasets]
    kinds = {str(getattr(field, "kind", "")) for field in fields}
    if None in items and kinds & _NUMBERS.keys():
        row = items.index(None)
        raise SampleError(
            f"{table.name(row)} has no {name!r}, which a batch of numbers needs; narrow the query with"
            f" {{{name!r}: {{'$ne': None}}}}, or leave it out of `fields`"
        )
    found = set(map(type, items))
    if all(found <= _TYPES.get(kind, found) for kind in kinds):
        return items
    for row, item in enumerate(items):
        field = fields[table.dataset[row]]
        if isinstance(field, Scalar):
            try:
                items[row] = field.read(item)
            except SchemaError as error:
                raise SampleError(
                    f"{table.name(row)}, field {name!r}: {error}, as another tool has written it; update it, or narrow"
                    " the query"
                ) from error
    return np.array(items, _NUMBERS[kinds.pop()]) if len(kinds) == 1 and kinds <= _NUMBERS.keys() else items


def _blobs(table: SampleTable, name: str, reader: BlobReader, clock: Clock, decoding: Decoding) -> Values:
    absent = np.flatnonzero(table.refs[name].length < 0)
    if absent.size and table.refs[name].length[absent[0]] == REPLACED:
        raise SampleError(
            f"{table.name(int(absent[0]))}, field {name!r}: its blob was replaced after this pass began, and the"
            " earlier one is gone; begin a new pass, or narrow the query"
        )
    if absent.size and table.refs[name].length[absent[0]] == MALFORMED:
        raise SampleError(
            f"{table.name(int(absent[0]))}, field {name!r}: expected a reference to a blob, found something else, as"
            " another tool has written it; fsck names all such samples"
        )
    if absent.size:
        raise SampleError(
            f"{table.name(int(absent[0]))} has no {name!r}; narrow the query with"
            f" {{{name!r}: {{'$exists': True}}}}, or leave it out of `fields`"
        )
    fields = [cast(BlobField, table.layout.schemas[dataset][name]) for dataset in table.datasets]
    view = decoding.views.get(name)
    if view is not None:
        for one in fields:
            view.check(name, one)
        return _viewed(table, name, fields, reader, clock, view, decoding)
    if all(field.stored_alike(fields[0]) for field in fields[1:]):
        return _decode(table, name, fields[0], reader, clock)
    items: list[Any] = [None] * len(table)
    for index, field in enumerate(fields):
        rows = np.flatnonzero(table.dataset == index)
        for row, item in zip(rows, _decode(table.take(rows), name, field, reader, clock), strict=True):
            items[row] = item
    return items


def _viewed(
    table: SampleTable,
    name: str,
    fields: Sequence[BlobField],
    reader: BlobReader,
    clock: Clock,
    view: View,
    decoding: Decoding,
) -> Iterator[Any]:
    """The values of a field that is decoded as a view says."""
    beside: list[Any] = [None] * len(table)
    with clock("fetch"):
        buffers = _buffers(table, name, reader)
        extra = view.beside(name)
        if extra is not None and extra in table.refs:
            there = np.flatnonzero(table.refs[extra].length >= 0)
            some = table.take(there)
            kinds = [cast(BlobField, table.layout.schemas[dataset][extra]) for dataset in table.datasets]
            for row, data in zip(there.tolist(), _buffers(some, extra, reader), strict=True):
                beside[row] = (kinds[table.dataset[row]], data)
    clock.bytes += sum(map(len, buffers))
    _count(table, name, reader, clock)
    mark = xxhash.xxh3_64_intdigest(name.encode())

    def decode(row: int) -> Any:
        rng = np.random.Generator(np.random.Philox(key=decoding.keys[row] | mark << 64)) if view.draws else None
        found = beside[row]
        more = None if found is None else found[0].decode(found[1])
        return view.decode(fields[table.dataset[row]], buffers[row], rng, more)

    return _each(table, name, decode)


def _decode(table: SampleTable, name: str, field: BlobField, reader: BlobReader, clock: Clock) -> Values:
    try:
        if field.fixed_nbytes is not None:
            with clock("fetch"):
                rows = _gather(table, name, field.fixed_nbytes, reader)
            if rows is None or rows.shape[1] != field.fixed_nbytes:
                raise CorruptBlobError(f"stored blobs do not all have the {field.fixed_nbytes} bytes of the schema")
            clock.bytes += rows.nbytes
            _count(table, name, reader, clock)
            return field.decode_rows(rows)
    except StorageError as error:
        raise _unread(table, name, error) from error
    with clock("fetch"):
        buffers = _buffers(table, name, reader)
    clock.bytes += sum(map(len, buffers))
    _count(table, name, reader, clock)
    return _each(table, name, lambda row: field.decode(buffers[row]))


def _buffers(table: SampleTable, name: str, reader: BlobReader) -> list[Any]:
    """The stored bytes of a field.

    Raises:
        SampleError: They cannot be read.
    """
    try:
        return _read(table, name, reader)
    except StorageError as error:
        raise _unread(table, name, error) from error


def _unread(table: SampleTable, name: str, error: StorageError) -> SampleError:
    return SampleError(f"{table.name(getattr(error, 'row', None) or 0)}, field {name!r}: {error}")


def _each(table: SampleTable, name: str, decode: Callable[[int], Any]) -> Iterator[Any]:
    """What `decode` gives for the row of each sample. Errors name the sample."""
    for row in range(len(table)):
        try:
            yield decode(row)
        except TensorDBError as error:
            raise SampleError(f"{table.name(row)}, field {name!r}: {error}") from error


def _count(table: SampleTable, name: str, reader: BlobReader, clock: Clock) -> None:
    clock.blobs += len(table) if name not in table.inline else int((~inline_rows(table.refs[name])).sum())
    clock.missed += reader.missed()


def _gather(table: SampleTable, name: str, size: int, reader: BlobReader) -> NDArray[np.uint8] | None:
    refs, inline = table.refs[name], table.inline.get(name)
    if inline is None:
        return reader.gather(refs, size)
    mask = inline_rows(refs)
    here, there = np.flatnonzero(mask), np.flatnonzero(~mask)
    found = gather_inline(refs, inline, here, size) if len(here) else None
    if not len(there) or (len(here) and found is None):
        return found
    with _rows(there):
        stored = reader.gather(refs.take(there), size)
    if not len(here) or stored is None or stored.shape[1] != size:
        return stored
    assert found is not None
    rows = empty((len(refs), size), np.uint8)
    rows[here], rows[there] = found, stored
    return rows


def _read(table: SampleTable, name: str, reader: BlobReader) -> list[Any]:
    refs, inline = table.refs[name], table.inline.get(name)
    if inline is None:
        return reader.read(refs)
    mask = inline_rows(refs)
    here, there = np.flatnonzero(mask), np.flatnonzero(~mask)
    buffers: list[Any] = [None] * len(refs)
    with _rows(there):
        stored = reader.read(refs.take(there))
    for rows, blobs in ((here, read_inline(refs, inline, here)), (there, stored)):
        for row, blob in zip(rows.tolist(), blobs, strict=True):
            buffers[row] = blob
    return buffers


@contextlib.contextmanager
def _rows(rows: NDArray[np.int64]) -> Iterator[None]:
    """Make errors name the row in the whole table, where only the references at `rows` are read."""
    try:
        yield
    except StorageError as error:
        if error.row is not None:
            error.row = int(rows[error.row])
        raise

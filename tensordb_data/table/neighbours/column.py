"""The column of a Selection's vectors: finds the field, and reads it in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from bson import ObjectId

from tensordb_data.common.options import nearest
from tensordb_data.errors import QueryError, SampleError
from tensordb_data.query.query import check_name
from tensordb_data.schema import Array
from tensordb_data.schema.array import numpy_dtype
from tensordb_data.stream.deliver.row_loader import RowLoader
from tensordb_data.stream.fetch.failure_budget import FailureBudget
from tensordb_data.stream.passes.planner import Planner
from tensordb_data.stream.plan.cache import plan_key
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import SampleTable
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.stats import Clock, Stats
from tensordb_data.table.fields import schema_fields
from tensordb_data.table.neighbours.vectors import (
    MOST_NUMBERS,
    KeptVectors,
    LeftOut,
    Vectors,
    can_be_kept,
    check_dtype,
    check_width,
    clean,
    join,
    nbytes_of,
    stacked,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tensordb_data.schema import Field
    from tensordb_data.warehouse.bound_query import BoundQuery

_BLOCK = 32 << 20  # bytes of vectors that are read at a time
_FREE = 1024  # of values that say their own shape, at most so many: they may be larger than they look
_MISSING = -1


def open_column(bound: BoundQuery, field: object, what: str) -> VectorColumn | None:
    """The vectors of the selected samples.

    Args:
        bound: The query.
        field: The name of the field.
        what: What is asked for, for messages.

    Returns:
        None if nothing is selected, since there is no dataset.

    Raises:
        QueryError: These are no samples, there is no such field, or it does not hold vectors of one length.
    """
    if bound.query.collection != "data":
        raise QueryError(f"{what}: only samples have vectors: db.data.find(...); this is db.{bound.query.collection}")
    name = check_name(field, what)
    fields = schema_fields(bound)
    if not fields:
        return None
    if name not in fields:
        raise QueryError(f"{what}: no selected dataset has a field {name!r}{nearest(name, fields)}")
    if not any(isinstance(kind, Array) for kind in fields[name].values()):
        raise _no_array(what, name, next(iter(fields[name].values())))
    spec = StreamSpec(bound.query, 1, (name,))
    return VectorColumn(bound, spec, Planner(bound.warehouse, spec).plan(), what)


class VectorColumn:
    """The vectors of one field of the samples of a plan.

    They are of one state of the data. Samples that are deleted while they are read are left out.
    """

    def __init__(self, bound: BoundQuery, spec: StreamSpec, plan: Plan, what: str) -> None:
        (self.field,) = spec.fields or ("",)
        self.plan = plan
        self._warehouse, self._what = bound.warehouse, what
        if self.field not in plan.table.refs:
            for name, schema in plan.table.layout.schemas.items():
                if self.field in schema:  # a value, in all datasets that are left of the query
                    raise _no_array(what, self.field, schema[self.field], name)
        lengths = plan.table.refs[self.field].length if self.field in plan.table.refs else np.zeros(0, np.int64)
        self._rows = np.flatnonzero(lengths != _MISSING)
        self.missing = len(plan) - len(self._rows)
        """How many samples have no such field."""
        self._table = _used(plan.table, self._rows)
        self._width = self._checked_width()
        self._key = plan_key(bound, plan.table.layout, plan.versions, {}).exact, plan.ids
        self._loader = RowLoader(self._warehouse, spec, None, FailureBudget(0, stats := Stats(1)), stats)

    def id(self, row: int) -> ObjectId:
        """The `_id` of the sample in a row of the plan."""
        return self.plan.table.id(row)

    def pieces(self) -> Iterator[Vectors]:
        """All vectors, in the order of the plan, in pieces that take at most `KEPT_BYTES` while they are joined."""
        parts: list[Vectors] = []
        for block in self.blocks():
            if parts and not can_be_kept(2 * (sum(map(len, parts)) + len(block)), block.matrix.shape[1]):
                yield join(parts)
                parts = []
            parts.append(block)
        if parts:
            yield join(parts)

    def blocks(self) -> Iterator[Vectors]:
        """The vectors in the order of the plan: all at once if they can be kept in memory, or else in small blocks.

        Raises:
            QueryError: They do not have one length.
            SampleError: One cannot be read.
        """
        if not len(self._rows):
            return
        if self._width is None:
            # Values that say their own shape: the first one tells how long they are.
            self._width = next((block.matrix.shape[1] for block in self._read(0, 1)), None)
        if self._width is not None and can_be_kept(len(self._rows), self._width):
            yield self._whole(self._width)
        else:
            yield from self._read(0, len(self._rows))

    def blocks_after(self, piece: Vectors) -> Iterator[Vectors]:
        """The vectors that come after a piece, in small blocks."""
        if len(piece) and self._width is not None and not can_be_kept(len(self._rows), self._width):
            yield from self._read(int(np.searchsorted(self._rows, piece.rows[-1], "right")), len(self._rows))

    def _whole(self, width: int) -> Vectors:
        kept: KeptVectors = self._warehouse.memo(KeptVectors, KeptVectors)
        found = kept.get(self._key)
        if found is not None:
            return found
        count = len(self._rows)
        kept.make_room(nbytes_of(count, width))
        whole = Vectors(np.empty(count, np.int64), np.empty((count, width), np.float32), np.empty(count), LeftOut())
        end, left_out = 0, LeftOut()
        for block in self._read(0, count):
            some = slice(end, end + len(block))
            whole.rows[some], whole.matrix[some], whole.squares[some] = block.rows, block.matrix, block.squares
            end, left_out = end + len(block), left_out + block.left_out
        whole = replace(whole.take(0, end), left_out=left_out)
        kept.keep(self._key, whole)
        return whole

    def _read(self, low: int, high: int) -> Iterator[Vectors]:
        """The vectors of the samples that have one, from number `low` to `high` of them."""
        step = self._step()
        for at in range(low, high, step):
            numbers = np.arange(at, min(at + step, high))
            part = self._table.take(numbers)
            (found,) = self._loader.load(part, [], [len(part)], self.plan.versions, Clock())
            if isinstance(found, SampleError):
                raise found
            if not len(found):
                continue
            names = [part.name(row) for row in found.kept.tolist()] if self._is_free else [part.name(0)]
            matrix = stacked(found.columns[self.field], self._width, names, self.field)
            self._width = matrix.shape[1]
            yield clean(self._rows[numbers[found.kept]], matrix)

    def _step(self) -> int:
        """How many vectors to read at a time."""
        lengths = self._table.refs[self.field].length
        each = max(1, int(lengths.max()), 4 * (self._width or 1), *self._fixed_nbytes())
        rows = max(1, _BLOCK // each)
        return min(rows, _FREE) if self._is_free else rows

    # --- the field --------------------------------------------------------------------------------------------------

    @property
    def _arrays(self) -> dict[str, Array]:
        """The field in each dataset of which there are vectors."""
        schemas = self._table.layout.schemas
        found: dict[str, Array] = {}
        for name in self._table.datasets:
            kind = schemas[name].get(self.field) if name in schemas else None
            if not isinstance(kind, Array):
                raise _no_array(self._what, self.field, kind, name)
            found[name] = kind
        return found

    @property
    def _is_free(self) -> bool:
        return any(array.fixed_shape is None for array in self._arrays.values())

    def _fixed_nbytes(self) -> list[int]:
        return [array.fixed_nbytes or 0 for array in self._arrays.values()]

    def _checked_width(self) -> int | None:
        """How many numbers each vector has; None if the schemas do not say so."""
        if not len(self._rows):
            return None
        widths: dict[int, str] = {}
        for name, array in self._arrays.items():
            check_dtype(array.dtype, f"{self._what}: field {self.field!r} of dataset {name!r}")
            if array.fixed_nbytes is not None:
                width = array.fixed_nbytes // numpy_dtype(array.dtype).itemsize
                check_width(width, self.field)
                widths.setdefault(width, name)
        if len(widths) > 1:
            found = " and ".join(f"{width} in {name!r}" for width, name in widths.items())
            raise QueryError(
                f"{self._what}: vectors of one Selection have one length; field {self.field!r} has {found} numbers:"
                " narrow the query to one dataset"
            )
        most = int(self._table.refs[self.field].length.max())
        if most > 32 * MOST_NUMBERS:
            raise QueryError(
                f"{self._what}: field {self.field!r}: expected vectors of at most {MOST_NUMBERS:,} numbers,"
                f" found a value of {most:,} bytes; name a field of embeddings"
            )
        return next(iter(widths), None)


def _used(table: SampleTable, rows: NDArray[np.int64]) -> SampleTable:
    """The samples at some rows, with the names of their own datasets only: the others may not have the field."""
    if len(rows) < len(table):
        table = table.take(rows)
    used = np.unique(table.dataset)
    names = tuple(table.datasets[number] for number in used.tolist())
    return replace(table, datasets=names, dataset=np.searchsorted(used, table.dataset).astype(np.uint16))


def _no_array(what: str, name: str, kind: Field | None, dataset: str = "") -> QueryError:
    place = f" in dataset {dataset!r}" if dataset else ""
    hint = "narrow the query" if dataset else "vectors are stored as arrays, np.float32 say"
    found = "a blob that the schema does not name" if kind is None else repr(kind)
    return QueryError(f"{what}: expected field {name!r} to be an Array, found {found}{place}; {hint}")

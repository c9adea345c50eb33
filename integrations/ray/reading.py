"""read: a Selection as a dataset of Ray Data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.data.expressions import ColumnExpr, Expr

from tensordb_data.api.selection import Selection
from tensordb_data.errors import QueryError
from tensordb_data.export.partition import Partition
from tensordb_data.export.partitions import partitions
from tensordb_data.ray.blocks import BLOCK_BYTES, blocks_of, empty_block, fields_of
from tensordb_data.ray.sink import check_credentials
from tensordb_data.schema import Scalar

_LEAST = 256
"""Partitions, if there are as many samples: Ray decides later how many tasks share them."""


def read(
    sel: Selection[Any],
    fields: Sequence[str] | None = None,
    *,
    concurrency: int | None = None,
    override_num_blocks: int | None = None,
    num_cpus: float | None = None,
    credentials: str | None = None,
) -> ray.data.Dataset:
    """The samples of a Selection as a `ray.data.Dataset`, which tasks read in parallel.

    All of it is of one state of the data, that of this call, however often and late it is run. Blocks are Arrow tables:
    arrays and images are tensors, values of the index are as in `Selection.to_arrow`, JSON as text. The column `_id`
    has the ids as text. `select_columns` and filters that are expressions (`ds.filter(expr=col("label") > 3)`) are
    taken over by the tasks that read: what is not asked for is not fetched. Samples that were deleted since are left
    out.

    Args:
        sel: The samples.
        fields: The fields to read, beside `_id`; None for those that all samples have. An optional one may be named: a
            missing value of the index is null, and a missing blob is an error.
        concurrency: As for `ray.data.read_datasource`: how many tasks read at the same time.
        override_num_blocks: The same: how many tasks there are, at most one for each of 256 partitions of small data.
        num_cpus: The same: the cores that a task takes.
        credentials: `"env:NAME"`, for tasks to which another variable than `$TENSORDB` says the whole address of a
            server with a password.

    Returns:
        The dataset. Nothing is read but the index.

    Raises:
        QueryError: A field does not exist, or it is no Selection of samples.
        SchemaError: Two datasets have a field of one name and different kinds.
        UnsupportedError: The warehouse was opened with `client=`.
    """
    check_credentials(credentials)
    if not isinstance(sel, Selection):
        raise QueryError(f"read takes a Selection of samples, db.data.find(...); found a {type(sel).__name__}")
    names = None if fields is None else [*dict.fromkeys([*fields, "_id"])]
    parts = partitions(sel.bound, None, BLOCK_BYTES, names, least=_LEAST)
    return ray.data.read_datasource(
        SelectionDatasource(parts, credentials),
        concurrency=concurrency, override_num_blocks=override_num_blocks, num_cpus=num_cpus,
    )  # fmt: skip


class SelectionDatasource(Datasource):  # type: ignore[misc]
    """The samples of some partitions, as a source of Ray Data. It holds no secret.

    Args:
        parts: The partitions, at least one.
        credentials: See `read`.
    """

    def __init__(self, parts: Sequence[Partition], credentials: str | None) -> None:
        super().__init__()
        self._parts, self._credentials = list(parts), credentials
        self._columns = parts[0].fields
        self._projection_map: dict[str, str] | None = None
        fields_of(parts[0])  # if kinds differ, it is told now

    def get_name(self) -> str:
        return "TensorDB"

    def estimate_inmemory_data_size(self) -> int:
        return sum(part.nbytes for part in self._parts)

    @property
    def supports_distributed_reads(self) -> bool:
        # A warehouse in a folder serves one machine: that of the driver, which has made the partitions.
        return not self._parts[0].state.address.in_folder

    def supports_projection_pushdown(self) -> bool:
        return True

    def supports_predicate_pushdown(self) -> bool:
        return True

    def apply_predicate(self, predicate_expr: Expr) -> SelectionDatasource:
        # Of a column that is not there, the operator of Ray tells.
        if not _columns_of(predicate_expr) <= {*self._columns}:
            return self
        found: SelectionDatasource = super().apply_predicate(predicate_expr)
        return found

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        wanted = self._get_data_columns()
        # A block of Ray without columns would have no rows either, and some are only counted.
        columns = tuple(self._columns if wanted is None else wanted) or ("_id",)
        predicate = self.get_current_predicate()
        filled = [part for part in self._parts if len(part)] or self._parts[:1]
        n = max(1, min(parallelism, len(filled)))
        schema = _selected(empty_block(self._parts[0].with_fields(_needed(columns, None))), columns).schema
        tasks = []
        for number in range(n):
            mine = filled[number * len(filled) // n : (number + 1) * len(filled) // n]
            count = sum(len(part) for part in mine) if predicate is None else None
            nbytes = sum(part.nbytes for part in mine)
            about = BlockMetadata(num_rows=count, size_bytes=nbytes, exec_stats=None, input_files=None)
            read_fn = functools.partial(read_blocks, mine, columns, predicate, self._credentials)
            read_fn.__name__ = "read_blocks"  # type: ignore[attr-defined]
            tasks.append(ReadTask(read_fn, about, schema, per_task_row_limit))
        return tasks


def read_blocks(
    parts: Sequence[Partition], columns: Sequence[str], predicate: Expr | None, credentials: str | None
) -> Iterator[pa.Table]:
    """What a task does: some partitions as blocks."""
    empty = True
    for part in parts:
        wanted = part.with_fields(_needed(columns, predicate))
        fields = fields_of(wanted)
        asked = () if predicate is None else sorted(_columns_of(predicate))
        early = predicate is not None and all(isinstance(fields.get(name), Scalar | None) for name in asked)
        if early:  # by the values of the index alone, before any blob is read
            wanted = _matching(wanted, predicate, asked, credentials)
        for block in blocks_of(wanted, credentials):
            if predicate is not None and not early:
                block = BlockAccessor.for_block(block).filter(predicate)
            if block.num_rows:
                empty = False
                yield _selected(block, columns)
    if empty:
        yield _selected(empty_block(parts[0].with_fields(_needed(columns, None))), columns)


def _matching(part: Partition, predicate: Any, asked: Sequence[str], credentials: str | None) -> Partition:
    narrow = part.with_fields([*dict.fromkeys([*asked, "_id"])])
    kept: set[str] = set()
    for block in blocks_of(narrow, credentials):
        kept.update(BlockAccessor.for_block(block).filter(predicate)["_id"].to_pylist())
    return part.take(row for row, id in enumerate(part.ids) if str(id) in kept)


def _needed(columns: Sequence[str], predicate: Expr | None) -> list[str]:
    """The columns to read."""
    asked = () if predicate is None else sorted(_columns_of(predicate))
    return [*dict.fromkeys([*columns, *asked])]


def _selected(block: pa.Table, columns: Sequence[str]) -> pa.Table:
    return block if block.column_names == list(columns) else block.select(list(columns))


def _columns_of(expression: Any) -> set[str]:
    """The columns that an expression is about."""
    if isinstance(expression, ColumnExpr):
        return {expression.name}
    if isinstance(expression, (list, tuple)):
        return set().union(*map(_columns_of, expression))
    if isinstance(expression, dict):
        return _columns_of(list(expression.values()))
    if not isinstance(expression, Expr):
        return set()
    return _columns_of([getattr(expression, field.name) for field in dataclasses.fields(expression)])

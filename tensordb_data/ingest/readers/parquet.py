"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import SchemaError
from tensordb_data.ingest.readers.arrow_table import ArrowTable
from tensordb_data.ingest.readers.arrow_types import pyarrow
from tensordb_data.ingest.readers.tables import Tables
from tensordb_data.ingest.source import CHUNK_ROWS, FileInfo

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given


def open_parquet(given: Given) -> Tables:
    """Parquet files: numbers, strings, times, lists and structs become index fields, binaries and tensors blobs."""
    pyarrow()
    return Tables(given, given.choose((".parquet", ".pq")), lambda file: parquet_table(given, file))


def parquet_table(given: Given, file: FileInfo) -> ArrowTable:
    """One Parquet file."""
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.parquet as pq

    where = given.files.path(file)

    def batches(columns: Sequence[str] | None) -> Iterator[Any]:
        try:
            with given.open(file) as opened:
                for batch in pq.ParquetFile(opened).iter_batches(batch_size=CHUNK_ROWS, columns=columns):
                    if batch.num_rows:
                        yield batch
        except (pa.ArrowException, OSError) as error:
            raise SchemaError(f"{where}: damaged Parquet file: {error}") from None

    try:
        with given.open(file) as opened:
            found = pq.ParquetFile(opened)
            schema, metadata = found.schema_arrow, found.metadata
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{where}: expected a Parquet file: {error}") from None
    if not metadata.num_rows:
        raise SchemaError(f"{where}: expected rows, found none")
    return ArrowTable(
        where, schema, batches, size=file.size, rows=metadata.num_rows, whole=_whole(metadata),
        old_name=file.name.rpartition("/")[2],
    )  # fmt: skip


def _whole(metadata: Any) -> list[str]:
    """The plain columns of which the statistics say that they have no nulls."""
    nulls: dict[str, bool] = {}
    for group in range(metadata.num_row_groups):
        for at in range(metadata.num_columns):
            column = metadata.row_group(group).column(at)
            about = column.statistics if column.is_stats_set else None
            known = about is not None and about.has_null_count and about.null_count == 0
            path = column.path_in_schema
            nulls[path] = nulls.get(path, False) or not known
    return [path for path, any_ in nulls.items() if not any_ and "." not in path]

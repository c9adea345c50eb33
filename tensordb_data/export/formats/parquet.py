"""Parquet, with the features of Hugging Face in its metadata."""

from __future__ import annotations

import contextlib
from typing import Any

from tensordb_data.export.features import Columns
from tensordb_data.export.formats.base import Format, ShardWriter, numbered, shard_name
from tensordb_data.export.output import Entry, Output
from tensordb_data.export.plan import Plan, Split
from tensordb_data.export.rows import Row
from tensordb_data.export.work import Shard, WorkFolder

_IMAGES, _ROWS = 100, 10_000
"""Rows of a row group with images, and without."""
_GROUP = 64 << 20


class Parquet(Format):
    """`data/SPLIT-00000-of-00002.parquet`. Images are structs of bytes and path, which are not compressed again."""

    name = "parquet"
    usual_bytes = 512 << 20
    has_empty_shards = True

    def check_fields(self) -> None:
        Columns(self.contents)

    def begin(self, plan: Plan, work: WorkFolder) -> None:
        super().begin(plan, work)
        self.columns = Columns(self.contents, plan.pairs)

    def open(self, work: WorkFolder, split: Split, number: int, first: int) -> ShardWriter:
        return _Writer(self, work, split, number)

    def finish(self, work: WorkFolder) -> list[Entry]:
        return numbered(work, self.plan.splits, lambda entry: True)


class _Writer(ShardWriter):
    def __init__(self, format: Parquet, work: WorkFolder, split: Split, number: int) -> None:
        super().__init__(work)
        import pyarrow.parquet as pq

        self._format, self._columns = format, format.columns
        self._pending: list[Row] = []
        self._nbytes = self._group = 0
        self._most = _IMAGES if format.contents.blobs else _ROWS
        self._output = Output(work.files, shard_name(split, number, "parquet"))
        binary, others = self._columns.binary(), self._columns.others()
        self._writer: Any = pq.ParquetWriter(
            self._output,
            self._columns.schema,
            compression={**dict.fromkeys(others, "zstd"), **dict.fromkeys(binary, "none")},
            use_dictionary=others,
            write_statistics=others,
        )

    def add(self, row: Row) -> bool:
        more = sum(len(data) for data in row.blobs.values()) + 64 * len(self._format.contents.fields)
        if self.rows and self._nbytes + more > self._format.shard_bytes:
            return False
        if self._pending and (len(self._pending) == self._most or self._group + more > _GROUP):
            self._flush()
        self._pending.append(row)
        self._group += more
        self._nbytes += more
        self.rows += 1
        return True

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_batch(self._columns.batch(self._pending), row_group_size=self._most)
        self._pending, self._group = [], 0

    def close(self, split: int) -> Shard:
        self._flush()
        self._writer.close()
        entry = self._output.entry()
        self._output.close()
        return Shard(split, self.rows, [entry])

    def abort(self) -> None:
        with contextlib.suppress(Exception):  # it writes its end, perhaps to a disk that is full
            self._writer.close()
        self._output.close()

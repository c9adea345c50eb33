"""annotate: columns of a dataset of Ray Data as annotations of the samples from which they were made."""

from __future__ import annotations

from collections.abc import Iterable

from ray.data.block import Block

from tensordb_data.api.database import TensorDB
from tensordb_data.errors import SchemaError
from tensordb_data.export.portable import PortableAddress
from tensordb_data.ray.blocks import columns_of
from tensordb_data.ray.sink import Sink, SinkReport
from tensordb_data.samples.existing.annotate_many import annotate_many
from tensordb_data.warehouse.annotation import check_source
from tensordb_data.warehouse.context import Warehouse

_ID = "_id"


def annotate(
    db: TensorDB | PortableAddress, *, source: str, key: str = _ID, credentials: str | None = None
) -> AnnotateSink:
    """A sink that annotates samples: `ds.write_datasink(annotate(db, source="model:1"))`.

    The column `_id` says which sample a row is about, as text or as `ObjectId`; `read` gives it. All other columns are
    annotated, as by `db.data.annotate_many`: tensors become blobs of an optional field. A task that is run again
    annotates the same again, which changes nothing. Each block is seen as a whole or not at all, the dataset is not.

    Args:
        db: The warehouse, or `db.address`.
        source: Who annotates, such as `"model:cnn-1@400"`.
        key: The column that has the `_id` of each sample.
        credentials: As for `write`.

    Raises:
        QueryError: `db` or `source` is malformed.
        UnsupportedError: The warehouse was opened with `client=`.
    """
    check_source(source)
    return AnnotateSink(db, source, key, credentials)


class AnnotateSink(Sink):
    """See `annotate`."""

    def __init__(self, db: TensorDB | PortableAddress, source: str, key: str, credentials: str | None) -> None:
        super().__init__(db, credentials)
        self._source, self._key = source, key

    def store(self, warehouse: Warehouse, blocks: Iterable[Block]) -> SinkReport:
        written, unknown = 0, list[str]()
        for block in blocks:
            columns = columns_of(block)
            if not columns:
                continue
            if self._key not in columns:
                raise SchemaError(f"the rows have no column {self._key!r}, which says what is annotated; they have "
                                  f"{', '.join(columns)}")  # fmt: skip
            ids = columns.pop(self._key)
            if len(ids):
                done = annotate_many(warehouse, ids, columns, self._source)
                written += done.changed
                unknown += map(str, done.unknown)
        return SinkReport(written, 0, tuple(unknown[:1000]), len(unknown))

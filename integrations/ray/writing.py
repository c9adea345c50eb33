"""write: the rows of a dataset of Ray Data as new samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from bson import ObjectId
from ray.data.block import Block

from tensordb_data.api.database import TensorDB
from tensordb_data.errors import SchemaError
from tensordb_data.export.portable import PortableAddress
from tensordb_data.ingest.engine.prepare import digests
from tensordb_data.ray.blocks import columns_of
from tensordb_data.ray.sink import Sink, SinkReport
from tensordb_data.samples.arguments import check_dataset_name, compression_level
from tensordb_data.samples.columns import encode_columns, keyed
from tensordb_data.samples.inference import WaitingFields
from tensordb_data.samples.tables import as_column
from tensordb_data.samples.writer import Writer
from tensordb_data.schema import Field
from tensordb_data.schema.schema import Schema
from tensordb_data.warehouse.context import Warehouse
from tensordb_data.warehouse.identity import Identities, identity_name

_KEY, _ID, _TAGS = "_key", "_id", "tags"


def write(
    db: TensorDB | PortableAddress,
    dataset: str,
    key: str | Sequence[str] | None = None,
    *,
    schema: Mapping[str, Field | type] | None = None,
    compression: str | None = None,
    credentials: str | None = None,
) -> WriteSink:
    """A sink that adds rows to a dataset: `ds.write_datasink(write(db, "embeddings", key="of"))`.

    A row adds nothing twice, however often Ray runs a task again. It is known, and its `_id` is made, by the first of
    these that there is: `key`; the column `_key`; the column `_id`, which a dataset of `read` has, so that each sample
    of the source makes one sample here; or its content. Rows that are known as equal are one sample: the first that
    arrives, the others are skipped and counted in `sink.report`. A key is the same in an `ingest` with `key=`, and in
    a writer with `_key=`.

    The columns `_id` and `_key` are not stored; `tags` gives the tags. Other columns are fields: tensors become arrays.

    Args:
        db: The warehouse, or `db.address`.
        dataset: The name of the dataset. It is made if it does not exist.
        key: The column, or columns, that identify a row. They are stored, too, except `_id`.
        schema: The kinds of the fields, as for `db.data.writer`. Without, each task infers them from its first rows:
            give it where some values are missing, or shapes vary.
        compression: As for `db.data.writer`.
        credentials: `"env:NAME"`, for tasks to which another variable than `$TENSORDB` says the whole address of a
            server with a password.

    Raises:
        QueryError: `db`, `dataset` or `key` is malformed.
        UnsupportedError: The warehouse was opened with `client=`.
    """
    check_dataset_name(dataset)
    compression_level(compression)
    keys = (key,) if isinstance(key, str) else None if key is None else tuple(key)
    if keys is not None and not (keys and all(isinstance(name, str) and name for name in keys)):
        raise SchemaError(f"key is the name of a column, or a list of names; found {key!r:.100}")
    declared = None if schema is None else Schema.declared(dataset, schema)
    return WriteSink(db, dataset, keys, declared, compression, credentials)


class WriteSink(Sink):
    """See `write`."""

    def __init__(
        self,
        db: TensorDB | PortableAddress,
        dataset: str,
        keys: tuple[str, ...] | None,
        schema: Schema | None,
        compression: str | None,
        credentials: str | None,
    ) -> None:
        super().__init__(db, credentials)
        self._dataset, self._keys, self._schema, self._compression = dataset, keys, schema, compression

    def store(self, warehouse: Warehouse, blocks: Iterable[Block]) -> SinkReport:
        writer = Writer(
            warehouse, self._dataset, schema=self._schema, compression=self._compression, flush_every=None,
            existing="skip",
        )  # fmt: skip
        identities = Identities(warehouse.project, identity_name(warehouse, self._dataset))
        with writer:
            for block in blocks:
                columns = columns_of(block)
                n = len(next(iter(columns.values()))) if columns else 0
                if n:
                    self._add(writer, identities, columns, n)
        return SinkReport(writer.written, writer.skipped)

    def _add(self, writer: Writer, identities: Identities, columns: Mapping[str, Any], n: int) -> None:
        fields = {name: column for name, column in columns.items() if name not in (_KEY, _ID, _TAGS)}
        if not fields:
            raise SchemaError(f"dataset {self._dataset!r}: the rows have no column to store beside _id, _key and tags")
        ids = self._ids(writer, identities, columns, fields, n)
        tags = columns.get(_TAGS)
        each = () if tags is None else [list(some or ()) for some in _values(tags)]
        writer.add_many(tags=each, _id=ids, **fields)

    def _ids(
        self, writer: Writer, identities: Identities, columns: Mapping[str, Any], fields: Mapping[str, Any], n: int
    ) -> list[ObjectId]:
        names = self._keys or next(((name,) for name in (_KEY, _ID) if name in columns), None)
        if names is None:
            return self._by_content(writer, identities, fields, n)
        if missing := [name for name in names if name not in columns]:
            raise SchemaError(f"key: the rows have no column {missing[0]!r}; they have {', '.join(columns)}")
        values = [_values(columns[name]) for name in names]
        if names == (_KEY,) and self._keys is None:
            return keyed(identities, [tuple(key) if isinstance(key, list) else key for key in values[0]], n, None)
        return keyed(identities, list(zip(*values, strict=True)), n, None)

    def _by_content(
        self, writer: Writer, identities: Identities, fields: Mapping[str, Any], n: int
    ) -> list[ObjectId]:
        """By the digest of what is stored, as an ingest of the same rows has it."""
        schema = WaitingFields(self._dataset).of_columns(writer.schema, fields)
        encoded = encode_columns(self._dataset, schema, n, fields)
        found, _, _ = digests({name: column[0:n].values for name, column in encoded.items()}, n, split=False)
        return [identities.of_content(digest, 0) for digest in found]


def _values(column: Any) -> list[Any]:
    """The values of a column, one by one."""
    if isinstance(column, (pa.Array, pa.ChunkedArray)):
        found: list[Any] = column.to_pylist()
        return found
    values = as_column(column)
    return values.tolist() if isinstance(values, np.ndarray) else list(values)

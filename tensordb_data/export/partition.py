"""Partition: some samples of a selection, as a value that another process or machine reads."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import bson
import numpy as np
import zstandard
from bson import ObjectId

from tensordb_data.blobs.segments.references import earlier, references_of
from tensordb_data.common.bson_values import LENIENT
from tensordb_data.common.chunks import chunks
from tensordb_data.common.zstd import expand
from tensordb_data.errors import QueryError, SampleError, StorageError
from tensordb_data.export.arrow import pyarrow, table_of
from tensordb_data.export.portable import PortableAddress
from tensordb_data.export.rows import Row, merged_fields, stored_rows
from tensordb_data.query.frozen_set import Frozen
from tensordb_data.query.query import Query
from tensordb_data.samples.sample import Sample
from tensordb_data.schema.array import numpy_dtype
from tensordb_data.schema.schema import Schema
from tensordb_data.stream.deliver.elements import elements_of
from tensordb_data.stream.deliver.row_loader import RowLoader
from tensordb_data.stream.fetch.failure_budget import FailureBudget
from tensordb_data.stream.fetch.relocate import Relocator
from tensordb_data.stream.plan.sample_table import FieldLayout, table_from_docs
from tensordb_data.stream.spec import StreamSpec, field_names
from tensordb_data.stream.state import Versions
from tensordb_data.stream.stats import Clock, Stats
from tensordb_data.stream.transform.collate import Batch, slice_batch
from tensordb_data.warehouse.context import Warehouse

log = logging.getLogger("tensordb_data")

Doc = Mapping[str, Any]

_CHUNK = 256
_LARGEST = 1 << 40  # there is no limit: the rows are our own


@dataclasses.dataclass(frozen=True)
class DataState:
    """What the partitions of one call share: where the samples are, and the state of the data."""

    address: PortableAddress
    fields: tuple[str, ...]
    """The fields of `read`."""
    named: tuple[str, ...] | None
    """The fields of a table; None for all."""
    versions: tuple[tuple[str, tuple[int, int]], ...]
    """Sequence number and mutation counter of each dataset."""
    schemas: bytes
    """The schemas of the datasets, as BSON."""
    frozen: Frozen | None = None
    """The frozen set of which the samples are; they stay as they are."""

    def layout(self) -> FieldLayout:
        """How the fields of `read` are stored."""
        found = bson.decode(self.schemas, LENIENT)
        return FieldLayout(self.fields, {name: Schema.from_doc(doc) for name, doc in found.items()})


@dataclasses.dataclass(frozen=True, repr=False)
class Partition:
    """Some samples of a selection, as they were when it was divided. `Selection.partitions` makes it.

    It is a frozen value, which pickles and holds no password: for Ray, Dask, Spark and multiprocessing. It holds what
    the index says of its samples, compressed, some 5 to 100 bytes a sample, and no blobs. So it is read in the state
    of that time, whatever was updated since. Samples that were deleted since are left out, and a warning is logged.

    A process that reads it connects to the warehouse once. If the address has a password, it comes from `$TENSORDB` of
    that process, or from `credentials=`.
    """

    number: int
    """Which one this is, from 0."""
    of: int
    """How many there are."""
    count: int
    """How many samples there were when the selection was divided. `len(partition)` is the same."""
    nbytes: int
    """About how many bytes `read` reads: those of the blobs as they are stored, and of the values."""
    state: DataState
    rows: bytes
    """The documents of the samples, as BSON, compressed."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that `read` delivers."""
        return self.state.fields

    @property
    def ids(self) -> list[ObjectId]:
        """The `_id` of each sample, in order."""
        return [doc["_id"] for doc in self._documents()]

    def take(self, rows: Iterable[int]) -> Partition:
        """Some of its samples, by their numbers from 0, as a partition.

        Raises:
            QueryError: There is no such number.
        """
        each = list(split_rows(unpacked(self.rows)))
        try:
            mine = [each[row] for row in rows]
        except (IndexError, TypeError):
            raise QueryError(f"take: expected numbers of samples from 0 to {len(each) - 1}") from None
        nbytes = self.nbytes * len(mine) // max(1, len(each))
        return dataclasses.replace(self, count=len(mine), nbytes=nbytes, rows=packed(mine))

    def with_fields(self, fields: Sequence[str]) -> Partition:
        """The same samples with other fields, which may be `_id`.

        Raises:
            QueryError: No dataset of the partition has a field.
        """
        names = field_names(fields) or ()
        known = {"_id", *(name for schema in self.state.layout().schemas.values() for name in schema)}
        if unknown := [name for name in names if name not in known]:
            raise QueryError(f"there is no field {unknown[0]!r}; the fields are {', '.join(sorted(known))}")
        named = tuple(name for name in names if name != "_id")
        return dataclasses.replace(self, state=dataclasses.replace(self.state, fields=names, named=named))

    def __len__(self) -> int:
        return self.count

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Partition {self.number} of {self.of}: {self.count} samples of {self.state.address}>"

    def read(self, *, credentials: str | None = None) -> Batch:
        """The samples as columns, like one batch of a stream: `{field: array [m, ...]}`.

        Arrays of different shapes are a list. Without samples, the columns are empty.

        Args:
            credentials: The address of the warehouse with its password, or `"env:NAME"` for a variable that holds it.

        Raises:
            ConnectError: The warehouse cannot be reached from here; the message says what to do.
            SampleError: A sample cannot be read, such as one whose blob was replaced since, and is gone.
        """
        return self._batch(self._existing(self._documents(), credentials), credentials)

    def batches(self, batch_size: int, *, credentials: str | None = None) -> Iterator[Batch]:
        """The samples in batches, each as `read` gives them, in order. The last batch may be smaller.

        Args:
            batch_size: Samples a batch.
            credentials: See `read`.

        Raises:
            QueryError: `batch_size` is no whole number from 1.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise QueryError(f"batch_size is a whole number from 1; found {batch_size!r:.100}")
        docs = self._existing(self._documents(), credentials)
        return (self._batch(some, credentials) for some in chunks(docs, int(batch_size)))

    def to_arrow(self, *, blobs: Sequence[str] = (), credentials: str | None = None) -> Any:
        """The samples as a `pyarrow.Table`, with the columns of `Selection.to_arrow`.

        Args:
            blobs: Blob fields to add, as there.
            credentials: See `read`.

        Raises:
            QueryError: There is no such blob, or a table cannot hold it.
            StorageError: A blob was replaced since, and is gone.
            MissingExtraError: pyarrow is not installed.
        """
        pyarrow()
        layout = self.state.layout()
        fields = merged_fields(layout.schemas, self.state.named)
        return table_of(fields, blobs, self._rows(layout, blobs, credentials))

    def _documents(self) -> list[Doc]:
        return [*bson.decode_all(unpacked(self.rows), LENIENT)]

    @property
    def _versions(self) -> Versions:
        return dict(self.state.versions)

    def _existing(self, docs: list[Doc], credentials: str | None) -> list[Doc]:
        """The documents of the samples that were not deleted since."""
        if not docs or self.state.frozen is not None:
            return docs
        warehouse = self.state.address.open(credentials)
        table = table_from_docs(FieldLayout((), self.state.layout().schemas), docs)
        _, there = Relocator(warehouse, Stats(1)).relocate(table, self._versions)
        if there.all():
            return docs
        gone = np.flatnonzero(~there)
        log.warning(
            "%d of the %d samples of partition %d of %d were deleted since the selection was divided, and are left out;"
            " the first is %s", len(gone), len(docs), self.number, self.of, docs[gone[0]]["_id"],
        )  # fmt: skip
        return [doc for doc, exists in zip(docs, there.tolist(), strict=True) if exists]

    def _batch(self, docs: Sequence[Doc], credentials: str | None) -> Batch:
        layout, stats = self.state.layout(), Stats(1)
        spec = StreamSpec(Query("data", frozen=self.state.frozen), max(1, len(docs)), self.fields)
        if docs:
            warehouse = self.state.address.open(credentials)
            loader = RowLoader(warehouse, spec, None, FailureBudget(0, stats), stats)
            (found,) = loader.load(table_from_docs(layout, docs), [], [len(docs)], self._versions, Clock())
            if isinstance(found, SampleError):
                raise found
            if len(found):
                return slice_batch(found.columns, 0, len(found), spec.ragged, found.name)
        return {name: _no_rows(*element) for name, element in elements_of(layout, spec).items()}

    def _rows(self, layout: FieldLayout, blobs: Sequence[str], credentials: str | None) -> Iterator[list[Row]]:
        docs = self._existing(self._documents(), credentials)
        if not docs:
            return
        warehouse = self.state.address.open(credentials)
        for some in chunks(docs, _CHUNK):
            located = self._located(warehouse, some, blobs) if blobs and self.state.frozen is None else some
            yield from stored_rows(
                [Sample(warehouse, doc, layout.schemas[doc["dataset"]], []) for doc in located], blobs
            )

    def _located(self, warehouse: Warehouse, docs: Sequence[Doc], blobs: Sequence[str]) -> list[Doc]:
        """The documents with the references to where these blobs are now; of a blob that was replaced, the earlier."""
        now = warehouse.blobs.reader.references([doc["_id"] for doc in docs], list(blobs))
        versions = self._versions
        located: list[Doc] = []
        for doc in docs:
            parts = {}
            for name in {*blobs} & references_of(doc).keys():
                found = now.get(doc["_id"], {}).get(name)
                then = None if found is None else earlier(found, versions[doc["dataset"]][1])
                if then is None:
                    raise StorageError(
                        f"sample {doc['_id']} of {doc['dataset']!r}, field {name!r}: this blob was removed or replaced "
                        "since the selection was divided; make the partitions anew"
                    )
                parts[name] = then
            located.append({**doc, "_tdb": {**doc["_tdb"], "b": parts}})
        return located


def _no_rows(dtype: str | None, shape: Sequence[int | None]) -> Any:
    """A column without values: an array where values have one dtype and shape, otherwise a list."""
    sizes = [size for size in shape if size is not None]
    return [] if dtype is None or len(sizes) < len(shape) else np.zeros((0, *sizes), numpy_dtype(dtype))


def packed(docs: Sequence[bytes]) -> bytes:
    """Documents as the rows of a partition."""
    return zstandard.ZstdCompressor(level=3).compress(b"".join(docs)) if docs else b""


def unpacked(rows: bytes) -> bytes:
    """The documents in the rows of a partition, one after the other."""
    return expand(rows, _LARGEST) if rows else b""


def split_rows(data: bytes) -> Iterator[bytes]:
    """Each of the documents that are one after the other."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        yield data[at : at + size]
        at += size

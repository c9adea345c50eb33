"""What a Selection of samples gives out: encoded bytes, and tables."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.common.system.progress import Progress
from tensordb_data.errors import MissingExtraError, QueryError
from tensordb_data.export.arrow import pyarrow, to_arrow
from tensordb_data.export.hf import to_hf
from tensordb_data.export.partition import Partition
from tensordb_data.export.partitions import partitions
from tensordb_data.export.plan import DEFAULT_SPLIT
from tensordb_data.export.report import ExportReport
from tensordb_data.export.rows import blob_names, check_data, fields_of, read_rows
from tensordb_data.export.run import ExportOptions, export
from tensordb_data.schema import Array

if TYPE_CHECKING:
    from tensordb_data.warehouse.bound_query import BoundQuery


class SamplesOut(abc.ABC):
    """The methods of a `Selection` that give samples out."""

    @property
    @abc.abstractmethod
    def bound(self) -> BoundQuery:
        """The query, bound to its warehouse."""

    def encoded(self, name: str) -> Iterator[bytes | None]:
        """The bytes of one blob field as they were given, of each sample in the order of the Selection.

        It reads a bounded number of bytes at a time. Of an image, the bytes are those of its file; compression that a
        writer has added is removed.

        Args:
            name: The field.

        Yields:
            The bytes; None for a sample that lacks the field.

        Raises:
            QueryError: There is no such blob, or it is an array, which has no encoded form.
        """
        bound = self.bound
        check_data(bound, "encoded bytes")
        fields = fields_of(bound, [name])
        if name not in blob_names(fields):
            found = repr(fields[name]) if name in fields else "none"
            raise QueryError(f"field {name!r}: expected an image, bytes or text, found {found}")
        if isinstance(fields[name], Array):
            raise QueryError(f"field {name!r} is {fields[name]!r}, which has no encoded form; read its values")
        rows = (row for run in read_rows(bound, [name]) for row in run)
        return (bytes(row.blobs[name]) if name in row.blobs else None for row in rows)

    def export(
        self,
        path: str | os.PathLike[str],
        format: str = "parquet",
        *,
        fields: Sequence[str] | None = None,
        shard_bytes: int | str | None = None,
        split: str | None = DEFAULT_SPLIT,
        overwrite: bool = False,
        nan: bool = False,
        progress: bool | Progress[ExportReport] | None = None,
    ) -> ExportReport:
        """Write the samples into a new folder, in a format that other libraries read.

        Blobs are copied as they were stored: nothing is decoded or encoded anew. All samples are of one state of the
        data, that of the beginning. The folder appears under its name when it is complete; until then the work is in
        `NAME.partial` beside it. If the process is killed, the same call goes on with what is complete. If samples have
        changed meanwhile, it begins anew, and the report says so.

        Args:
            path: The folder to make. `manifest.json` in it has the query, the number of samples, and size and xxh3 of
                each file.
            format: `"parquet"` (with the features of Hugging Face), `"jsonl"`, `"folder"` (images and
                `metadata.jsonl`), `"webdataset"` (tar), `"mds"` (MosaicML) or `"coco"`.
            fields: What to write; None for all fields of the query, with `_id`, `dataset` and `tags`.
            shard_bytes: Bytes of a file, such as `"500MB"`; None for what suits the format.
            split: The field that divides the samples into train, test and so on; None for none. That there is no field
                `split` is no error.
            overwrite: Replace an earlier export of that name.
            nan: Write NaN and infinities as JSON, which does not have them.
            progress: True shows a bar. A function is called now and then with the samples that are written, those in
                all, and the report so far.

        Raises:
            QueryError: There is no such field or format, or the format cannot hold a field.
            SchemaError: The format cannot hold a value. Index fields are checked before anything is written.
            StorageError: Something of that name exists; another process exports to it; or a disk is full.
            MissingExtraError: A library is not installed.
        """
        options = ExportOptions(
            format=format, fields=fields, shard_bytes=shard_bytes, split=split, overwrite=overwrite, nan=nan,
            progress=progress,
        )  # fmt: skip
        return export(self.bound, path, options)

    def partitions(
        self, n: int | None = None, *, nbytes: int | str = "128MB", fields: Sequence[str] | None = None
    ) -> list[Partition]:
        """Divide the samples into parts that other processes and machines read: for Ray, Dask, Spark, multiprocessing.

        All parts are of one state of the data, that of now. Together they are the samples of the Selection, each once,
        in its order. They are values that pickle, without secrets. All index documents are read for them, and no blobs.

        Args:
            n: How many parts, of equally many samples, but for one. If there are fewer samples, some parts are empty.
                None for parts of about `nbytes`.
            nbytes: Bytes of the blobs and values of a part, such as `"128MB"`, where `n` is None.
            fields: The fields that a part delivers; None for those of the query, or else for every required one, and
                `_id`.

        Raises:
            NotFoundError: The query names no dataset that exists.
            QueryError: The Selection is not one of samples, there is no such field, or an argument is malformed.
            UnsupportedError: The warehouse was opened with `client=`, which cannot go to another process.
        """
        return partitions(self.bound, n, nbytes, fields)

    def to_hf(self, *, fields: Sequence[str] | None = None) -> Any:
        """All samples as a `datasets.Dataset` of Hugging Face, in memory; images are not decoded before they are used.

        Args:
            fields: What it has; None for all fields of the query, with `_id`, `dataset` and `tags`.

        Raises:
            QueryError: There is no such field, or a table cannot hold it.
            MissingExtraError: datasets or pyarrow is not installed.
        """
        return to_hf(self.bound, fields)

    def to_arrow(self, *, blobs: Sequence[str] = ()) -> Any:
        """All samples as a `pyarrow.Table`, in memory.

        The columns are `_id` (text), `dataset`, `tags` (lists of text) and the index fields: integers stay integers
        where values are missing, times are of UTC, and values of JSON fields are JSON as text. `find(fields=[...])`
        names fewer fields.

        Args:
            blobs: Blob fields to add: encoded bytes of images and bytes, text as text, arrays of a fixed shape as
                lists of their numbers in C order.

        Raises:
            QueryError: There is no such blob, or a table cannot hold it.
            MissingExtraError: pyarrow is not installed.
        """
        return to_arrow(self.bound, blobs)

    def to_pandas(self, *, blobs: Sequence[str] = ()) -> Any:
        """All samples as a `pandas.DataFrame`, in memory; see `to_arrow`.

        Integers with missing values are `Int64`, and bools with missing values `boolean`.

        Raises:
            MissingExtraError: pandas or pyarrow is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtraError("a DataFrame needs pandas: pip install 'tensordb-data[tables]'") from None
        pa = pyarrow()
        nullable = {pa.int64(): pandas.Int64Dtype(), pa.bool_(): pandas.BooleanDtype()}
        return self.to_arrow(blobs=blobs).to_pandas(types_mapper=nullable.get)

    def to_polars(self, *, blobs: Sequence[str] = ()) -> Any:
        """All samples as a `polars.DataFrame`, in memory; see `to_arrow`.

        Raises:
            MissingExtraError: polars or pyarrow is not installed.
        """
        try:
            import polars  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise MissingExtraError("a DataFrame of polars needs polars: pip install polars") from None
        return polars.from_arrow(self.to_arrow(blobs=blobs))

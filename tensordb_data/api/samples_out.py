"""What a Selection of samples gives out: encoded bytes, and tables."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import MissingExtraError, QueryError
from tensordb_data.export.arrow import pyarrow, to_arrow
from tensordb_data.export.rows import blob_names, check_data, fields_of, read_rows
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

"""Samples as the columns of a data set of Hugging Face: Arrow types, and the features that its metadata names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensordb_data.errors import QueryError, SchemaError
from tensordb_data.export.arrow import MARK, json_text, pyarrow
from tensordb_data.export.contents import Contents, blob_field, tags_of
from tensordb_data.export.names import safe_path
from tensordb_data.export.rows import Row, scalar
from tensordb_data.schema import Array, Bytes, Field, Scalar, Text
from tensordb_data.schema.array import numpy_dtype

_MOST_CLASSES = 10_000
_LONGEST = 2**31 - 1
_KINDS = {"bool": "bool", "int": "int64", "float": "float64", "str": "string", "json": "string"}


class Columns:
    """The columns of a table.

    Args:
        contents: What there is of each sample.
        pairs: The class of each label, if there is a field `class` that goes with the field `label`.

    Raises:
        QueryError: A field has no type in a table.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, contents: Contents, pairs: dict[int, str] | None = None) -> None:
        self._pa, self._contents = pyarrow(), contents
        self._names = class_names(pairs)
        for name, field in contents.fields.items():
            if (why := _fault(field)) is not None:
                raise QueryError(f"field {name!r}: {why}; leave it out with fields=, or export to another format")
        kinds = {name: self._type(name, field) for name, field in contents.fields.items()}
        standard = {name: self._pa.list_(self._pa.string()) if name == "tags" else self._pa.string()
                    for name in contents.standard}  # fmt: skip
        features = {name: _list(_value("string")) if name == "tags" else _value("string") for name in standard}
        features |= {name: self._feature(name, field) for name, field in contents.fields.items()}
        fields = {name: field.to_doc() for name, field in contents.fields.items()}
        self.schema = self._pa.schema(
            list({**standard, **kinds}.items()),
            metadata={
                b"huggingface": json.dumps({"info": {"features": features}}, ensure_ascii=False).encode(),
                MARK: json.dumps(fields, ensure_ascii=False).encode(),
            },
        )

    def batch(self, rows: Sequence[Row]) -> Any:
        """Some samples as a record batch.

        Raises:
            SchemaError: A value is too long for a column.
        """
        columns = []
        for name in self._contents.standard:
            values: list[Any] = [
                tags_of(row) if name == "tags" else row.sample.dataset if name == "dataset" else str(row.sample.id)
                for row in rows
            ]
            columns.append(self._pa.array(values, self.schema.field(name).type))
        for name, field in self._contents.fields.items():
            columns.append(self._column(name, field, rows))
        return self._pa.record_batch(columns, schema=self.schema)

    def binary(self) -> list[str]:
        """The paths of the columns of a Parquet file that hold encoded bytes."""
        return [f"{name}.bytes" if name in self._contents.media else name
                for name in self._contents.blobs
                if not isinstance(self._contents.fields[name], (Array, Text))]  # fmt: skip

    def others(self) -> list[str]:
        """The paths of the other columns of a Parquet file."""
        return [path for field in self.schema for path in _leaves(field.name, field.type, self._pa)
                if path not in self.binary()]  # fmt: skip

    def _type(self, name: str, field: Field) -> Any:
        pa = self._pa
        if isinstance(field, Scalar):
            return pa.timestamp("ms", tz="UTC") if field.kind == "datetime" else pa.type_for_alias(_KINDS[field.kind])
        if isinstance(field, Text):
            return pa.string()
        if isinstance(field, Array):
            kind = pa.from_numpy_dtype(numpy_dtype(field.dtype))
            for size in reversed(_dims(field)):
                kind = pa.list_(kind) if size is None else pa.list_(kind, size)
            return kind
        if isinstance(field, Bytes):
            return pa.binary()
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])

    def _feature(self, name: str, field: Field) -> dict[str, Any]:
        if isinstance(field, Scalar):
            if name == "label" and self._names is not None and field.kind == "int":
                return {"names": self._names, "_type": "ClassLabel"}
            return _value("timestamp[ms, tz=UTC]" if field.kind == "datetime" else _KINDS[field.kind])
        if isinstance(field, Array):
            found = _value(numpy_dtype(field.dtype).name)
            for size in reversed(_dims(field)):
                found = _list(found, size)
            return found
        if isinstance(field, (Bytes, Text)):
            return _value("string" if isinstance(field, Text) else "binary")
        media = _MEDIA.get(field.to_doc()["kind"])
        return {"bytes": _value("binary"), "path": _value("string")} if media is None else {"_type": media}

    def _column(self, name: str, field: Field, rows: Sequence[Row]) -> Any:
        pa, kind = self._pa, self.schema.field(name).type
        if isinstance(field, Scalar):
            values = [scalar(row, name, field) for row in rows]
            if field.kind == "json":
                values = [None if value is None else json_text(value) for value in values]
            return pa.array(values, kind)
        stored = [row.blobs.get(name) for row in rows]
        for row, data in zip(rows, stored, strict=True):
            if data is not None and len(data) > _LONGEST:
                raise SchemaError(f"sample {row.sample.id} of {row.sample.dataset!r}, field {name!r}: {len(data):,} "
                                  f"bytes, and a value of a table has at most {_LONGEST:,}")  # fmt: skip
        if isinstance(field, Array):
            return self._arrays(field, [None if data is None else field.decode(data) for data in stored], kind)
        if isinstance(field, (Bytes, Text)):
            decode = blob_field(self._contents.fields, name).decode
            return pa.array([None if data is None else decode(data) for data in stored], kind)
        files = [None if data is None else {"bytes": bytes(data), "path": self._base_name(row)}
                 for row, data in zip(rows, stored, strict=True)]  # fmt: skip
        return pa.array(files, kind)

    def _base_name(self, row: Row) -> str | None:
        given = self._contents.name_of(row)
        safe = None if given is None else safe_path(given)
        return None if safe is None else safe.rpartition("/")[2]

    def _arrays(self, field: Array, values: list[Any], kind: Any) -> Any:
        shape = field.fixed_shape
        if not shape or None in _dims(field):
            return self._pa.array([None if value is None else value.tolist() for value in values], kind)
        blank = np.zeros(shape, numpy_dtype(field.dtype))
        flat = np.stack([blank if value is None else value for value in values]) if values else blank[:0]
        found = self._pa.array(flat.reshape(-1))
        for n, size in enumerate(reversed(shape), 1):
            absent = np.array([value is None for value in values]) if n == len(shape) else None
            mask = None if absent is None or not absent.any() else self._pa.array(absent)
            found = self._pa.FixedSizeListArray.from_arrays(found, size, mask=mask)
        return found


_MEDIA = {"image": "Image", "audio": "Audio", "video": "Video"}


def class_names(pairs: dict[int, str] | None) -> list[str] | None:
    """The names of classes by their label, from 0 on; None where there are none, or not for such labels.

    A label that no sample has gets its number as a name.
    """
    if not pairs or min(pairs) < 0 or max(pairs) >= _MOST_CLASSES:
        return None
    names = [pairs.get(label, str(label)) for label in range(max(pairs) + 1)]
    return names if len(set(names)) == len(names) else None


def _fault(field: Field) -> str | None:
    if not isinstance(field, Array):
        return None
    dtype = numpy_dtype(field.dtype)
    if dtype.kind not in "biuf" or dtype.type.__module__ != "numpy" or dtype.itemsize > 8:
        return f"a table has no type for arrays of {field.dtype}"
    if field.shape is None:
        return f"a table needs a known number of dimensions, found {field!r}"
    return None


def _dims(field: Array) -> list[int | None]:
    """The dimensions; one without elements is one that varies, since Parquet has no lists of length 0."""
    return [size or None for size in field.shape or ()]


def _value(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "_type": "Value"}


def _list(feature: dict[str, Any], length: int | None = None) -> dict[str, Any]:
    size = {} if length is None else {"length": length}
    return {"feature": feature, **size, "_type": "List"}


def _leaves(path: str, kind: Any, pa: Any) -> list[str]:
    if pa.types.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(f"{path}.{field.name}", field.type, pa)]
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type, pa)
    return [path]

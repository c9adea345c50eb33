"""What an export writes of each sample: which fields, and their values as JSON and as files."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from bson import json_util

from tensordb_data.errors import QueryError, SchemaError
from tensordb_data.export.names import suffix_of
from tensordb_data.export.rows import Row, blob_names, scalar
from tensordb_data.schema import Array, BlobField, Bytes, Field, Scalar, Text
from tensordb_data.schema.array import numpy_dtype

_ENDS = ("\x85", "\u2028", "\u2029")
STANDARD = ("_id", "dataset", "tags")
"""What every sample has beside its fields."""
_MOST_UNNAMED = 10_000
NAMED = ("file_name", "path")
"""Fields that say what the file of a sample is called, the first that is there."""


@dataclasses.dataclass(frozen=True)
class Contents:
    """What to write of each sample."""

    fields: Mapping[str, Field]
    standard: Sequence[str] = STANDARD
    nan: bool = False
    """Whether JSON may hold NaN and infinities, which are not of its standard."""

    @functools.cached_property
    def scalars(self) -> dict[str, Scalar]:
        """The fields in the index."""
        return {name: field for name, field in self.fields.items() if isinstance(field, Scalar)}

    @functools.cached_property
    def blobs(self) -> list[str]:
        """The names of the fields that are blobs."""
        return blob_names(self.fields)

    @functools.cached_property
    def media(self) -> list[str]:
        """The names of the fields that are files of some kind: whatever is no array, text or bytes."""
        return [name for name in self.blobs if not isinstance(self.fields[name], (Array, Bytes, Text))]

    def check_arrays(self, what: str) -> None:
        """Refuse arrays of types that NumPy does not write by itself.

        Raises:
            QueryError: There is such a field.
        """
        for name in self.blobs:
            field = self.fields[name]
            if isinstance(field, Array) and numpy_dtype(field.dtype).type.__module__ != "numpy":
                raise QueryError(
                    f"field {name!r}: {what} cannot hold arrays of {field.dtype}; leave it out with fields=, or store "
                    "it as float32"
                )

    def name_of(self, row: Row) -> str | None:
        """What the sample says that its file is called; None if it does not."""
        for name in NAMED:
            field = self.fields.get(name)
            if isinstance(field, Scalar) and field.kind == "str" and (found := scalar(row, name, field)):
                return str(found)
        return None

    def document(self, row: Row) -> dict[str, Any]:
        """The index fields of a sample as plain JSON, and its texts.

        Times are text with milliseconds in UTC; within values of JSON fields, they are `{"$date": …}`.

        Raises:
            SchemaError: It holds NaN or an infinity, and `nan` does not allow this.
        """
        doc: dict[str, Any] = {}
        if "_id" in self.standard:
            doc["_id"] = str(row.sample.id)
        if "dataset" in self.standard:
            doc["dataset"] = row.sample.dataset
        if "tags" in self.standard:
            doc["tags"] = tags_of(row)
        for name, field in self.fields.items():
            if isinstance(field, Scalar):
                doc[name] = self.value(row, name, field)
            elif isinstance(field, Text) and name in row.blobs:
                doc[name] = field.decode(row.blobs[name])
        return doc

    def value(self, row: Row, name: str, field: Scalar) -> Any:
        """The value of an index field as plain JSON; see `document`."""
        value = scalar(row, name, field)
        if isinstance(value, dt.datetime):
            return iso(value)
        if field.kind == "json" and value is not None:
            value = _json(value)
        if not self.nan and not _is_finite(value):
            raise SchemaError(
                f"sample {row.sample.id} of {row.sample.dataset!r}, field {name!r}: expected a finite number, found "
                "NaN or an infinity, which JSON does not have; write it all the same with nan=True, or leave it out "
                "with a filter or fields="
            )
        return value

    def file(self, row: Row, name: str) -> tuple[Any, str] | None:
        """The bytes of a blob as a file, and the suffix that says what they are; None where the sample has none.

        An array is a file of NumPy. Everything else is as it was stored.
        """
        stored = row.blobs.get(name)
        if stored is None:
            return None
        field = self.fields[name]
        if isinstance(field, Array):
            return npy(field.decode(stored)), "npy"
        if isinstance(field, Text):
            return stored, "txt"
        return stored, "bin" if isinstance(field, Bytes) else suffix_of(stored)


def tags_of(row: Row) -> list[str]:
    """The tags of a sample.

    Raises:
        SchemaError: Another tool has written something else.
    """
    found = row.sample.get("tags") or []
    if not isinstance(found, list) or not all(isinstance(tag, str) for tag in found):
        raise SchemaError(f"sample {row.sample.id} of {row.sample.dataset!r}: expected a list of text as tags, found "
                          f"{found!r:.80}; leave them out with fields=")  # fmt: skip
    return found


class Labels:
    """Finds out which class each label stands for, where there are fields `label` and `class`.

    Args:
        scalars: The fields in the index.
    """

    def __init__(self, scalars: Mapping[str, Scalar]) -> None:
        label, name = scalars.get("label"), scalars.get("class")
        self._fields = (label, name) if label and name and (label.kind, name.kind) == ("int", "str") else None
        self._pairs: dict[int, str] | None = {} if self._fields else None
        self._labels: dict[str, int] = {}
        self._unnamed: set[int] = set()

    @property
    def pairs(self) -> dict[int, str] | None:
        """The class of each label; None where a label has several, or a class several labels.

        A label that stands without a class has its number as a name, but for those below 0, which mean no class.
        """
        if not self._pairs:
            return None
        return {**{label: str(label) for label in self._unnamed if label >= 0}, **self._pairs}

    def observe(self, row: Row) -> None:
        """Look at a sample."""
        if self._pairs is None or self._fields is None:
            return
        label, name = scalar(row, "label", self._fields[0]), scalar(row, "class", self._fields[1])
        if label is None:
            return
        if name is None:
            if len(self._unnamed) <= _MOST_UNNAMED:
                self._unnamed.add(label)
        elif self._pairs.setdefault(label, name) != name or self._labels.setdefault(name, label) != label:
            self._pairs = None


def iso(value: dt.datetime) -> str:
    """A time as text, in UTC with milliseconds: `2026-11-30T12:00:00.000Z`."""
    if value.tzinfo is not None:
        value = value.astimezone(dt.timezone.utc).replace(tzinfo=None)
    return f"{value.isoformat(timespec='milliseconds')}Z"


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json(item) for name, item in value.items()}
    if isinstance(value, list):
        return list(map(_json, value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return json_util.default(value, json_util.RELAXED_JSON_OPTIONS)


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list) else True


def npy(value: Any) -> bytes:
    """An array as a file of NumPy."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
    return file.getvalue()


def line(doc: Mapping[str, Any]) -> bytes:
    """A document as a line of JSON, for readers that end lines at other characters too."""
    text = json.dumps(doc, ensure_ascii=False)
    for char in _ENDS:
        if char in text:
            text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode() + b"\n"


def blob_field(fields: Mapping[str, Field], name: str) -> BlobField:
    """A field that is known to be a blob."""
    return cast(BlobField, fields[name])

"""TFRecord files as a source: a field for each feature of their Examples."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tensordb_data.common.wire.tfrecord import records
from tensordb_data.errors import SchemaError, TensorDBError
from tensordb_data.ingest.in_place import as_it_is
from tensordb_data.ingest.readers.shards.columns import chunks_of, required, splits_of
from tensordb_data.ingest.readers.shards.tfrecord import PlacedBytes, Values, parse_example
from tensordb_data.ingest.source import Chunk, FileInfo
from tensordb_data.schema import Array, Bytes, Field, Image, Scalar, Text
from tensordb_data.schema.image import is_deep, is_image

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_NAME = re.compile(r"\.tfrec(ord)?s?(\.gz)?(-\d+-of-\d+)?$", re.IGNORECASE)


_BEFORE, _AROUND = 12, 16
"""Bytes before the data of a record, and before and behind it."""


def open_tfrecord(given: Given) -> TfRecords:
    """TFRecord files of `tf.train.Example`."""
    return TfRecords(given)


@dataclasses.dataclass
class _Feature:
    """What is known of the values of a feature, of all of them."""

    kind: type | None = None
    count: int = 0
    """Examples that have values of it."""
    least: int = 1 << 62
    most: int = 0
    is_text: bool = True
    is_image: bool = True
    is_deep: bool = True

    def look(self, name: str, values: Values) -> None:
        """Look at the values of an Example.

        Raises:
            SchemaError: They are of another type than those before.
        """
        if not values:
            return
        kind = type(values[0])
        if self.kind not in (None, kind):
            raise SchemaError(f"feature {name!r}: expected one type in all records, found {self.kind} and {kind}")
        self.kind, self.count = kind, self.count + 1
        self.least, self.most = min(self.least, len(values)), max(self.most, len(values))
        if kind is bytes:
            for value in values:
                self.is_image = self.is_image and is_image(value)  # type: ignore[arg-type]
                self.is_deep = self.is_deep and is_deep(value)  # type: ignore[arg-type]
                self.is_text = self.is_text and _is_text(value)  # type: ignore[arg-type]

    def field(self, name: str, rows: int) -> Field:
        """The field that takes them.

        Raises:
            SchemaError: There is none.
        """
        optional = self.count < rows
        if self.kind is bytes:
            if self.most > 1:
                if self.is_text:
                    return Scalar("json", optional=optional)
                raise SchemaError(f"feature {name!r} has lists of bytes that are no text: leave it out with "
                                  f"skip=[{name!r}]")  # fmt: skip
            if self.is_image:
                return Image(dtype="uint16" if self.is_deep else "uint8", optional=optional)
            return Scalar("str", optional=optional) if self.is_text else Bytes(optional=optional)
        if self.kind is None or (self.least == self.most == 1):
            return Scalar("int" if self.kind is int else "float" if self.kind else "json", optional=optional)
        size = self.least if self.least == self.most else None
        return Array("int64" if self.kind is int else "float32", (size,), optional=optional)


class TfRecords:
    """TFRecord files. A row is known by its file and its number in it.

    A list of one value is this value; longer lists of numbers are arrays. Bytes are an image, text or bytes, as all
    values of the feature are.
    """

    def __init__(self, given: Given) -> None:
        self._given = given
        self.can_refer = True
        self.id, self.root = given.files.id, given.files.root
        files = given.files.files
        self.files = list(files) if len(files) == 1 else [file for file in files if _NAME.search(file.name)]
        there = {file.name for file in self.files}
        for file in files:
            if file.name not in there:
                given.report.ignore(file.name)
        self._splits = splits_of(given, self.files)
        self._fields: dict[str, Field] = {}

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        features: dict[str, _Feature] = {}
        rows = 0
        for file in files:
            try:
                for _, example in self._examples(file):
                    rows += 1
                    for name, values in example.items():
                        features.setdefault(name, _Feature()).look(name, values)
            except SchemaError:
                raise
            except TensorDBError as error:
                if len(self.files) == 1 and not rows:
                    raise SchemaError(f"{file.name}: {error}") from None
        skip = set(self._given.columns.skip)
        fields = {name: wanted.get(name) or (Bytes() if name in skip else feature.field(name, rows))
                  for name, feature in sorted(features.items())}  # fmt: skip
        if not rows:
            fields |= required(wanted)
        if self._splits and "split" not in fields:
            fields["split"] = wanted.get("split") or Scalar("str")
        self._fields = fields
        return fields

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        for file in files:
            yield from chunks_of(file, self._fields, self._rows(file), self._given.report)

    def _rows(self, file: FileInfo) -> Iterator[tuple[str, dict[str, Any], int]]:
        ranges, at = self._given.ranges(file), 0
        if ranges is not None and self._is_packed(file):
            self._given.report.note(f"{file.name}: gzip has compressed it, so its values were copied")
            ranges = None
        for number, (nbytes, example) in enumerate(self._examples(file, placed=ranges is not None)):
            start, at = at + _BEFORE, at + nbytes
            row: dict[str, Any] = {"split": self._splits.get(file.name)}
            try:
                for name, values in example.items():
                    if (field := self._fields.get(name)) is None:
                        continue
                    first = values[0] if len(values) == 1 else None
                    if ranges is not None and isinstance(first, PlacedBytes) and as_it_is(field):
                        row[name] = ranges(start + first.at, len(first))
                    else:
                        row[name] = _value(values, field)
            except ValueError as error:
                self._given.report.fail(f"{file.name}, {number}", str(error))
                continue
            yield str(number), row, nbytes

    def _examples(self, file: FileInfo, *, placed: bool = False) -> Iterator[tuple[int, dict[str, Values]]]:
        with self._given.open(file) as opened:
            for data in records(opened, file.size):
                yield len(data) + _AROUND, parse_example(data, placed=placed)

    def _is_packed(self, file: FileInfo) -> bool:
        with self._given.open(file) as opened:
            return opened.read(2) == b"\x1f\x8b"


def _value(values: Values, field: Field) -> Any:
    """The values of a feature as the field takes them."""
    if not values:
        return None
    if isinstance(field, Array):
        return np.array(values, np.int64 if isinstance(values[0], int) else np.float32)
    plain = [_text(value) if isinstance(value, bytes) and isinstance(field, (Scalar, Text)) else value
             for value in values]  # fmt: skip
    if isinstance(field, Scalar) and field.kind == "json":
        return plain
    if len(plain) > 1:
        raise ValueError(f"expected one value, found {len(plain)}")
    return plain[0]


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text, found other bytes at {error.start}") from None


def _is_text(value: bytes) -> bool:
    try:
        return "\0" not in value.decode()
    except UnicodeDecodeError:
        return False

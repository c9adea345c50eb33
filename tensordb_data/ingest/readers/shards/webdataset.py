"""Tar files of WebDataset as a source: a field for each suffix."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tensordb_data.errors import CorruptBlobError, SchemaError, TensorDBError
from tensordb_data.ingest.in_place import MakeRange, as_it_is
from tensordb_data.ingest.open import IMAGES
from tensordb_data.ingest.readers.shards.columns import Kind, chunks_of, required, splits_of
from tensordb_data.ingest.readers.shards.tar import TarIndex, TarSample
from tensordb_data.ingest.source import Chunk, FileInfo
from tensordb_data.schema import Array, BlobField, Bytes, Field, Image, Scalar
from tensordb_data.schema.array import dtype_name
from tensordb_data.schema.image import is_deep, is_gray, is_image

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

KEY = "__key__"
_TEXT = ("txt", "text", "transcript", "caption")
_NUMBERS = ("cls", "cls2", "class", "count", "index", "inx", "id")
_PICKLES = ("pyd", "pickle", "pkl", "pth", "pt", "ckpt")
_LOOKED = 64
"""Images of a suffix whose headers are looked at; more, as long as all are gray."""
_HEADER = 64 << 10


def open_webdataset(given: Given) -> TarFiles:
    """Tar files whose members of one name are a sample."""
    return TarFiles(given)


@dataclasses.dataclass
class _Suffix:
    """What is known of the members of one suffix."""

    count: int = 0
    images: int = 0
    gray: int = 0
    deep: int = 0
    looked: int = 0
    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None
    is_array: bool = True

    @property
    def is_unsure(self) -> bool:
        """Whether the next image can still tell something: one with colours, that not all are gray."""
        return self.looked < _LOOKED or self.looked in (self.gray, self.deep)


class TarFiles:
    """Tar files: `__key__`, and a field for each suffix.

    The name of the field is the suffix. Of a suffix with dots it is what is before the last one: `seg.png` is `seg`. If
    samples have images of different suffixes, and each has one of them, they are the field `image`. Values of a `json`
    member are fields if the options name them: `rename={"json.caption": "caption"}`. Pickles are left out.
    """

    def __init__(self, given: Given) -> None:
        self._given = given
        self.can_refer = True
        self.id, self.root = given.files.id, given.files.root
        self.files = given.choose((".tar", ".tar.gz", ".tgz"))
        columns = given.columns
        self._asked = {*(columns.fields or ()), *columns.skip, *(columns.rename or {}), *(columns.types or {})}
        self._parts = sorted(name for name in self._asked if name.startswith("json."))
        self._splits = splits_of(given, self.files)
        self._names: dict[str, str] = {}
        self._fields: dict[str, Field] = {}

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        found: dict[str, _Suffix] = {}
        kinds = {name: Kind() for name in self._parts}
        rows, together = 0, False
        for file in files:
            with self._given.open(file) as opened:
                index = self._index(opened, file, quiet=True)
                if index is None:
                    continue
                rows += len(index.samples)
                for sample in index.samples:
                    together = together or len(self._images(sample)) > 1
                    self._look(index, sample, found, kinds)
        self._names = self._named(found, together, wanted)
        fields: dict[str, Field] = {KEY: wanted.get(KEY) or Scalar("str")}
        counts: dict[str, int] = {}
        for suffix, name in self._names.items():
            counts[name] = counts.get(name, 0) + found[suffix].count
            field = wanted.get(name) or self._field(suffix, found[suffix])
            known = fields.setdefault(name, field)
            if dataclasses.replace(known, optional=False) != dataclasses.replace(field, optional=False):
                raise SchemaError(f"field {name!r}: expected one kind, found {known!r} and {field!r}: name the "
                                  "suffixes in rename=, or the kind in types=")  # fmt: skip
        fields = {name: field if name == KEY else dataclasses.replace(field, optional=counts[name] < rows)
                  for name, field in fields.items()}  # fmt: skip
        if self._parts and "json" not in self._asked:
            fields.pop("json", None)
        if not rows:
            fields |= required(wanted)
        fields |= {name: wanted.get(name) or kind.field(rows) for name, kind in kinds.items()}
        if self._splits and "split" not in fields:
            fields["split"] = wanted.get("split") or Scalar("str")
        self._fields = fields
        return fields

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        for file in files:
            with self._given.open(file) as opened:
                index = self._index(opened, file)
                if index is None:
                    yield Chunk({name: [] for name in self._fields}, file=file.name)
                else:
                    yield from chunks_of(file, self._fields, self._rows(file, index), self._given.report)

    def _rows(self, file: FileInfo, index: TarIndex) -> Iterator[tuple[str, dict[str, Any], int]]:
        place = self._given.ranges(file)
        if place is not None and index.is_packed:
            self._given.report.note(f"{file.name}: gzip has compressed it, so its members were copied")
            place = None
        for sample in index.samples:
            try:
                row, nbytes = self._row(index, sample, place)
            except (TensorDBError, ValueError, LookupError, EOFError, RecursionError) as error:
                self._given.report.fail(f"{file.name}, {sample.key}", str(error))
                continue
            yield sample.key, {"split": self._splits.get(file.name), **row}, nbytes

    def _index(self, opened: Any, file: FileInfo, *, quiet: bool = False) -> TarIndex | None:
        report = self._given.report
        try:
            index = TarIndex(opened, file.size, lambda name, why: None if quiet else report.note(
                f"{file.name}, {name} {why}"))  # fmt: skip
        except CorruptBlobError as error:
            if not quiet:
                report.fail(file.name, str(error))
            return None
        if not quiet:
            for name in index.ignored:
                report.ignore(name)
        return index

    def _look(self, index: TarIndex, sample: TarSample, found: dict[str, _Suffix], kinds: Mapping[str, Kind]) -> None:
        for suffix, member in sample.members.items():
            about = found.setdefault(suffix, _Suffix())
            about.count += 1
            last = suffix.rpartition(".")[2]
            if suffix == "json" and kinds:
                try:
                    doc = json.loads(index.read(member))
                except (TensorDBError, ValueError, RecursionError):
                    continue
                for name, kind in kinds.items():
                    kind.look(_part(doc, name))
            elif last == "npy":
                _look_at_array(index.head(member, _HEADER), about)
            elif f".{last}" in IMAGES and about.is_unsure:
                head = index.head(member, _HEADER)
                about.looked += 1
                about.images += is_image(head)
                about.gray += bool(is_gray(head))
                about.deep += is_deep(head)

    def _images(self, sample: TarSample) -> list[str]:
        return [suffix for suffix in sample.members if f".{suffix}" in IMAGES]

    def _named(self, found: Mapping[str, _Suffix], together: bool, wanted: Mapping[str, Field]) -> dict[str, str]:
        """The name of the column of each suffix."""
        images = [suffix for suffix in found if f".{suffix}" in IMAGES and suffix not in self._asked]
        was_one = "image" in wanted and not wanted.keys() & set(images)
        one = bool(images) and (len(images) > 1 or was_one) and not together and "image" not in found
        if one and len(images) > 1:
            self._given.report.note(f"{', '.join(sorted(images))}: one field, image")
        names = {}
        for suffix in sorted(found):
            if suffix.rpartition(".")[2] in _PICKLES:
                self._given.report.note(f"members .{suffix} are left out: pickles run code when they are read")
            elif suffix in self._asked or "." not in suffix:
                names[suffix] = "image" if one and suffix in images else suffix
            else:
                names[suffix] = suffix.rpartition(".")[0].replace(".", "_")
        return names

    def _field(self, suffix: str, about: _Suffix) -> Field:
        last = suffix.rpartition(".")[2]
        if last == "json":
            return Scalar("json")
        if last in _TEXT or last in _NUMBERS:
            return Scalar("str" if last in _TEXT else "int")
        if last == "npy" and about.is_array and about.dtype is not None:
            return Array(about.dtype, about.shape)
        if about.images:
            mode = "gray" if about.gray == about.looked else "rgb"
            return Image(mode, "uint16" if about.deep == about.looked else "uint8")
        return Bytes()

    def _row(self, index: TarIndex, sample: TarSample, place: MakeRange | None) -> tuple[dict[str, Any], int]:
        row: dict[str, Any] = {KEY: sample.key}
        nbytes = 0
        for suffix, member in sample.members.items():
            name = self._names.get(suffix)
            is_parted = suffix == "json" and bool(self._parts)
            if name not in self._fields and not is_parted:
                continue
            nbytes += member.size
            field = self._fields.get(str(name))
            if place is not None and not is_parted and isinstance(field, BlobField) and as_it_is(field):
                if member.sparse is None:
                    row[str(name)] = place(member.offset, member.size)
                    continue
                self._given.report.note(f"{member.name}: a sparse member, whose bytes do not lie together, was copied")
            data = index.read(member)
            if is_parted:
                doc = json.loads(data)
                row |= {part: _part(doc, part) for part in self._parts}
            if name in self._fields:
                row[str(name)] = _decoded(suffix.rpartition(".")[2], data, self._fields[str(name)])
        return row, nbytes


def _decoded(suffix: str, data: bytes, field: Field) -> Any:
    if isinstance(field, Scalar):
        text = data.decode()
        if suffix == "json" or field.kind == "json":
            return json.loads(text)
        if field.kind == "str":
            return text
        decode: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": _bool}
        return decode.get(field.kind, str)(text.strip())
    if isinstance(field, Array):
        return _array(data)
    return data.decode() if field.to_doc()["kind"] == "text" else data


def _array(data: bytes) -> Any:
    """The array in a file of NumPy, which has as many bytes as its header says.

    Raises:
        ValueError: It has not, or it holds objects.
    """
    file = io.BytesIO(data)
    shape, fortran, dtype = _npy_header(file)
    count = math.prod(shape)
    if dtype.hasobject or count * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"expected an array of numbers, found one that claims the shape {shape} of {dtype}")
    return np.frombuffer(data, dtype, count, file.tell()).reshape(shape, order="F" if fortran else "C")


def _npy_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, Any]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype


def _bool(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _part(doc: Any, name: str) -> Any:
    """A value within a document, by a path such as `json.a.b`."""
    for key in name.split(".")[1:]:
        doc = doc.get(key) if isinstance(doc, dict) else None
    return doc


def _look_at_array(head: bytes, about: _Suffix) -> None:
    try:
        shape, _, dtype = _npy_header(io.BytesIO(head))
        name = dtype_name(dtype)
    except (ValueError, EOFError, SchemaError, SyntaxError, TypeError):
        return  # the row fails when it is read
    if about.dtype is None:
        about.dtype, about.shape = name, shape
    elif about.dtype != name:
        about.is_array = False
    elif about.shape is not None and about.shape != shape:
        same = len(about.shape) == len(shape)
        about.shape = tuple(a if a == b else None for a, b in zip(about.shape, shape, strict=True)) if same else None

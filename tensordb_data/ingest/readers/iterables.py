"""Rows in memory: an iterable of dicts or tuples, a dataset of PyTorch, or a dict of columns."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import SchemaError
from tensordb_data.ingest.source import CHUNK_BYTES, CHUNK_ROWS, Chunk, FileInfo
from tensordb_data.samples.tables import as_column
from tensordb_data.schema import Array, Field, Image, Scalar, infer
from tensordb_data.schema.missing import is_missing

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_HEAD = 1000
"""Rows that are looked at to find out the kinds of fields."""
_ROW_BYTES = 64


def open_rows(given: Given) -> RowSource:
    """An iterable of dicts or tuples, a dataset of PyTorch, or a dict of columns."""
    return RowSource(given)


class RowSource:
    """Rows in memory. The first thousand of them decide which fields there are, and of which kinds.

    A row is a dict, a dataclass, or a tuple whose parts `names=` names. A PIL image that was opened from a file and not
    changed is this file; another one is an array.
    """

    id = ""
    root = ""
    files = (FileInfo(""),)

    def __init__(self, given: Given) -> None:
        self._given = given
        self._rest = _numbered(given)
        self._head: list[tuple[int, Any]] = []
        self._fields: dict[str, Field] = {}

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        self._head = list(itertools.islice(self._rest, _HEAD))
        rows = [row for number, item in self._head if (row := self._row(number, item, quiet=True)) is not None]
        if not rows:
            if not self._head:
                raise SchemaError("expected rows, found none")
            self._row(*self._head[0], quiet=False)
            raise SchemaError(f"expected rows that are dicts, found {self._given.report.failed[-1].why}")
        names = dict.fromkeys(name for row in rows for name in row)
        self._fields = {name: _field_of(name, [row.get(name) for row in rows], wanted.get(name)) for name in names}
        return self._fields

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        nbytes, rows = 0, list[tuple[int, Mapping[str, Any]]]()
        for number, item in itertools.chain(self._head, self._rest):
            row = self._row(number, item, quiet=False)
            if row is None:
                continue
            if unknown := [name for name in row if name not in self._fields]:
                self._given.report.fail(
                    f"row {number}",
                    f"it has a field {unknown[0]!r}, which the first {_HEAD} rows have not; put such a row before them",
                )
                continue
            rows.append((number, row))
            nbytes += sum(map(_size, row.values()))
            if len(rows) >= CHUNK_ROWS or nbytes >= CHUNK_BYTES:
                yield self._chunk(rows, nbytes)
                nbytes, rows = 0, []
        self._head = []
        yield self._chunk(rows, nbytes)

    def _chunk(self, rows: Sequence[tuple[int, Mapping[str, Any]]], nbytes: int) -> Chunk:
        columns = {name: [row.get(name) for _, row in rows] for name in self._fields}
        return Chunk(columns, file="", where=[f"row {number}" for number, _ in rows], nbytes=nbytes, done=self.files)

    def _row(self, number: int, item: Any, *, quiet: bool) -> Mapping[str, Any] | None:
        """A row as a dict; None if it is none, which is noted."""
        names = self._given.columns.names
        if isinstance(item, _Failed):
            why = item.why
        elif isinstance(item, Mapping):
            if all(isinstance(name, str) for name in item):
                return {name: self._value(value) for name, value in item.items()}
            why = "expected a dict whose keys are names, found other keys"
        elif dataclasses.is_dataclass(item) and not isinstance(item, type):
            return {field.name: self._value(getattr(item, field.name)) for field in dataclasses.fields(item)}
        elif hasattr(item, "_asdict"):  # a named tuple
            return {name: self._value(value) for name, value in item._asdict().items()}
        elif isinstance(item, (tuple, list)) and names is not None:
            if len(names) == len(item):
                return {name: self._value(value) for name, value in zip(names, item, strict=True)}
            why = f"expected {len(names)} parts, as names= says, found {len(item)}"
        elif isinstance(item, (tuple, list)):
            why = f"expected a dict, found a {type(item).__name__} of {len(item)} parts; name them with names=[...]"
        elif names is not None and len(names) == 1:
            return {names[0]: self._value(item)}
        else:
            why = f"expected a dict, found {type(item).__name__}"
        if not quiet:
            self._given.report.fail(f"row {number}", why)
        return None

    def _value(self, value: Any) -> Any:
        if type(value).__module__.startswith("PIL."):
            name = getattr(value, "filename", None)
            if isinstance(name, str) and name and type(value).__module__ != "PIL.Image" and Path(name).is_file():
                return Path(name)
            self._given.report.note(
                "images of PIL that were changed, or were not opened from a file, are stored as arrays"
            )
        return value


@dataclasses.dataclass
class _Failed:
    why: str


def _numbered(given: Given) -> Iterator[tuple[int, Any]]:
    source = given.source
    if isinstance(source, Mapping):
        return enumerate(_of_columns(source))
    if isinstance(source, (str, bytes, bytearray)):
        raise SchemaError(f"expected rows, found {type(source).__name__}")
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, (list, tuple)):
        return _items(source)
    if not isinstance(source, Iterable):
        raise SchemaError(
            f"expected a path, a table or an iterable of dicts, found {type(source).__name__}: {source!r:.60}"
        )
    return enumerate(source)


def _items(source: Any) -> Iterator[tuple[int, Any]]:
    """The items of a dataset that is read by number. One that fails is named, and the rest is read."""
    for number in range(len(source)):
        try:
            yield number, source[number]
        except IndexError:
            return
        except Exception as error:
            yield number, _Failed(f"{type(error).__name__}: {error}")


def _of_columns(columns: Mapping[Any, Any]) -> Iterator[Mapping[str, Any]]:
    found = {name: as_column(column) for name, column in columns.items()}
    lengths = {str(name): len(column) if hasattr(column, "__len__") else None for name, column in found.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise SchemaError(f"expected a dict of columns of one length, or an iterable of dicts, found {lengths}")
    for row in range(len(next(iter(found.values())))):
        yield {name: column[row] for name, column in found.items()}


def _field_of(name: str, values: Sequence[Any], wanted: Field | None) -> Field:
    """The field that takes all of some values.

    Raises:
        SchemaError: They are of different kinds.
    """
    lacking = any(map(is_missing, values))
    if wanted is not None:
        return dataclasses.replace(wanted, optional=wanted.optional or lacking)
    found: Field | None = None
    for row, value in enumerate(values):
        if is_missing(value) or (isinstance(value, (bytes, bytearray)) and not value and found is None):
            continue
        try:
            one = infer(value)
        except SchemaError as error:
            raise SchemaError(f"column {name!r}, row {row}: {error}") from None
        both = one if found is None else _both(found, one)
        if both is None:
            raise SchemaError(
                f"column {name!r}, row {row}: expected {found!r}, as before, found {one!r}; give the kind,"
                f" as in types={{{name!r}: 'json'}}"
            )
        found = both
    if found is None:
        found = infer(b"") if any(isinstance(value, (bytes, bytearray)) for value in values) else Scalar("json")
    return dataclasses.replace(found, optional=lacking)


def _both(one: Field, other: Field) -> Field | None:
    if one == other:
        return one
    if isinstance(one, Scalar) and isinstance(other, Scalar) and {one.kind, other.kind} == {"int", "float"}:
        return Scalar("float")
    if isinstance(one, Array) and isinstance(other, Array) and one.dtype == other.dtype:
        if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
            return Array(one.dtype)
        return Array(one.dtype, tuple(a if a == b else None for a, b in zip(one.shape, other.shape, strict=True)))
    if isinstance(one, Image) and isinstance(other, Image) and one.mode == other.mode:
        return one
    return None


def _size(value: Any) -> int:
    if isinstance(value, (str, bytes, bytearray)):
        return len(value)
    return int(getattr(value, "nbytes", _ROW_BYTES))

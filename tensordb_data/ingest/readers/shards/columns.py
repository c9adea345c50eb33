"""What readers of shards have in common: kinds of columns by their values, and the split that names of files tell."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordb_data.errors import TensorDBError
from tensordb_data.ingest.in_place import Range
from tensordb_data.ingest.readers.layout import SPLITS
from tensordb_data.ingest.source import CHUNK_BYTES, CHUNK_REFERENCED, CHUNK_ROWS, Chunk, FileInfo
from tensordb_data.schema import Field, Scalar

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given
    from tensordb_data.ingest.report import Report

_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "bool"), (int, "int"), (float, "float"), (str, "str"), (dt.datetime, "datetime"),
)  # fmt: skip


@dataclasses.dataclass
class Kind:
    """The kind of the values of a column, of all of them."""

    kind: str | None = None
    count: int = 0
    """Values that are there."""

    def look(self, value: Any) -> None:
        """Look at a value."""
        if value is None:
            return
        self.count += 1
        found = next((kind for types, kind in _KINDS if isinstance(value, types)), "json")
        if self.kind is None or self.kind == found:
            self.kind = found
        else:
            self.kind = "float" if {self.kind, found} == {"int", "float"} else "json"

    def field(self, rows: int) -> Field:
        """The field that takes them, where there are so many rows."""
        return Scalar(self.kind or "json", optional=self.count < rows)


def split_of(name: str) -> str | None:
    """The split that the path of a file tells: its first folder, or the first part of its name; None if none does."""
    folder, _, base = name.rpartition("/")
    first = folder.split("/")[0] if folder else ""
    words = [first, *re.split(r"[-_.\s]", base)[:1], *re.split(r"[-_.]", base.partition(".")[0])[-1:]]
    return next((word for word in words if word.lower() in SPLITS), None)


def splits_of(given: Given, files: Sequence[FileInfo], tell: Callable[[str], str | None] = split_of) -> dict[str, str]:
    """The split of each file, by its name, if all of several files tell one, and the user has not said otherwise.

    Args:
        given: What the user gave.
        files: The files.
        tell: Tells the split of a file by its path.
    """
    if given.reading.split != "auto" or "split" in (given.columns.set or {}) or len(files) < 2:
        return {}
    found = {file.name: split for file in files if (split := tell(file.name)) is not None}
    return found if len(found) == len(files) else {}


def required(wanted: Mapping[str, Field]) -> dict[str, Field]:
    """The columns of files of which none can be read, so that each is named, and not what their rows would lack."""
    return {name: field for name, field in wanted.items() if not field.optional}


def chunks_of(
    file: FileInfo, columns: Iterable[str], rows: Iterable[tuple[str, Mapping[str, Any], int]], report: Report
) -> Iterator[Chunk]:
    """The rows of a file as chunks. If it turns out to be damaged, what was read before is in, and the file has failed.

    Args:
        file: The file.
        columns: The names of the columns.
        rows: For each row its place in the file, its values, and the bytes that it takes.
        report: Takes the failure.
    """
    pending = _Pending(file, columns)
    try:
        for key, row, nbytes in rows:
            pending.add(key, row, nbytes)
            if pending.is_full:
                yield pending.chunk()
    except TensorDBError as error:
        report.fail(file.name, str(error))
        yield pending.chunk()  # with which the failure is known to be of this file
        return
    yield pending.chunk(last=True)


class _Pending:
    """Rows that become a chunk.

    Args:
        file: The file that they are of.
        columns: The names of the columns.
    """

    def __init__(self, file: FileInfo, columns: Iterable[str]) -> None:
        self._file, self._names = file, list(columns)
        self._first, self._told = 0, 0
        self._clear()

    def _clear(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in self._names}
        self._keys: list[bytes] = []
        self._where: list[str] = []
        self._nbytes = self._staying = 0

    def add(self, key: str, row: Mapping[str, Any], nbytes: int) -> None:
        """Add a row.

        Args:
            key: Its place in the file.
            row: Its values; a column that it lacks is None.
            nbytes: The bytes that it takes.
        """
        for name, column in self._columns.items():
            column.append(row.get(name))
        self._keys.append(f"{self._file.name}\0{key}".encode(errors="surrogateescape"))
        self._where.append(f"{self._file.name}, {key}")
        self._nbytes += nbytes
        self._staying += sum(value.length for value in row.values() if isinstance(value, Range))

    @property
    def is_full(self) -> bool:
        """Whether these are rows enough for a chunk."""
        held = self._nbytes - self._staying
        return len(self._keys) >= CHUNK_ROWS or held >= CHUNK_BYTES or self._staying >= CHUNK_REFERENCED

    def chunk(self, *, last: bool = False) -> Chunk:
        """The rows as a chunk; others may follow.

        Args:
            last: Whether these are the last ones of the file, which is read whole.
        """
        nbytes = max(0, self._file.size - self._told) if last else min(self._nbytes, self._file.size - self._told)
        chunk = Chunk(self._columns, keys=self._keys, file=self._file.name, where=self._where, first=self._first,
                      nbytes=nbytes, done=[self._file] if last else ())  # fmt: skip
        self._first += len(self._keys)
        self._told += nbytes
        self._clear()
        return chunk

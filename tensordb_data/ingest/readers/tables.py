"""Tables in files: what is the same for CSV, JSON, Parquet and others. One source has files of one format."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

from tensordb_data.errors import SchemaError, TensorDBError
from tensordb_data.ingest.readers.layout import SPLITS
from tensordb_data.ingest.source import Chunk, FileInfo
from tensordb_data.schema import Field, Scalar

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_WORDS = re.compile(r"[a-z]+")
_INT = re.compile(r"0|-?[1-9]\d{0,17}")


@dataclasses.dataclass
class Part:
    """Some rows of a table."""

    columns: dict[str, Any]
    count: int
    nbytes: int = 0
    """Bytes of the file that they took."""
    old_keys: Callable[[], Sequence[bytes]] | None = None


class Table(Protocol):
    """One table: columns of known kinds, and rows."""

    def fields(self, wanted: Mapping[str, Field]) -> Mapping[str, Field]:
        """The columns.

        Raises:
            TensorDBError: The file is damaged, or of another format.
        """
        ...

    def parts(self, fields: Mapping[str, Field]) -> Iterator[Part]:
        """The rows, read as the kinds that these fields have; the table may lack some of the fields."""
        ...


class Tables:
    """Files of one format, as one source. Folders named `key=value` are columns.

    Args:
        given: What the user gave.
        files: The files.
        open_table: Opens one of them.
        splits: The split of each file, by its name; None finds it in the names, if all of several files name one.
        can_refer: Whether values may stay in the files.
    """

    def __init__(
        self,
        given: Given,
        files: Sequence[FileInfo],
        open_table: Callable[[FileInfo], Table],
        splits: Mapping[str, str | None] | None = None,
        *,
        can_refer: bool = False,
    ) -> None:
        self._given, self._open, self.can_refer = given, open_table, can_refer
        self.id, self.root, self.files = given.files.id, given.files.root, list(files)
        given.base = given.files.folder
        self._hive = {file.name: _hive(file.name) for file in self.files}
        if given.reading.split == "auto":
            found = splits if splits is not None else _splits([file.name for file in self.files])
            for name, split in found.items():
                if split is not None:
                    self._hive[name].setdefault("split", split)
        self._left: set[str] = set()
        self._fields: dict[str, Field] = {}
        self._partitioned: set[str] = set()
        """The fields that the names of folders and files give."""

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        found: dict[str, tuple[Field, str]] = {}
        counts: dict[str, int] = {}
        read = 0
        for file in files:
            try:
                fields = dict(self._open(file).fields(wanted))
            except TensorDBError as error:
                if len(self.files) == 1:
                    raise
                self._given.report.fail(file.name, str(error))
                self._left.add(file.name)
                continue
            read += 1
            for name, field in fields.items():
                counts[name] = counts.get(name, 0) + 1
                known = found.get(name)
                found[name] = (
                    (field, file.name) if known is None else (both_fields(name, known, field, file.name), known[1])
                )
        self._fields = {
            name: dataclasses.replace(field, optional=field.optional or counts[name] < read)
            for name, (field, _) in found.items()
        }
        partitions = self._partitions(wanted, files)
        if "split" in self._fields:  # the table says so itself
            partitions.pop("split", None)
        self._fields.update(partitions)
        self._partitioned = set(partitions)
        return self._fields

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        for file in files:
            if file.name not in self._left:
                yield from self._file(file)

    def _file(self, file: FileInfo) -> Iterator[Chunk]:
        first, held = 0, None
        try:
            for part in self._open(file).parts(self._fields):
                if held is not None:
                    yield held
                columns = {name: part.columns.get(name, [None] * part.count) for name in self._fields}
                hive = self._hive[file.name]
                columns.update(
                    {n: [self._value(n, value)] * part.count for n, value in hive.items() if n in self._partitioned}
                )
                held = Chunk(columns, file=file.name, first=first, nbytes=part.nbytes, old_keys=part.old_keys)
                first += part.count
        except TensorDBError as error:
            self._given.report.fail(file.name, str(error))
            # With a chunk, the failure is known to be of this file.
            yield held or Chunk({name: [] for name in self._fields}, file=file.name)
            return
        last = held or Chunk({name: [] for name in self._fields}, file=file.name)
        last.done = [file]
        yield last

    def _partitions(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> dict[str, Field]:
        out: dict[str, Field] = {}
        names = dict.fromkeys(name for file in files for name in self._hive[file.name])
        for name in names:
            values = [self._hive[file.name].get(name) for file in files]
            given = [value for value in values if value is not None]
            kind = "int" if given and all(_INT.fullmatch(value) for value in given) else "str"
            out[name] = wanted.get(name) or Scalar(kind, optional=len(given) < len(values))
        return out

    def _value(self, name: str, text: str | None) -> Any:
        field = self._fields.get(name)
        if text is None or not isinstance(field, Scalar) or field.kind not in ("int", "float", "bool"):
            return text
        try:
            if field.kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            return int(text) if field.kind == "int" else float(text)
        except (ValueError, KeyError):
            return text  # refused with the other values that do not fit


def _hive(name: str) -> dict[str, str | None]:
    """The columns that the folders of a file name: `year=2024/month=05/part-0.parquet`."""
    out: dict[str, str | None] = {}
    for part in name.split("/")[:-1]:
        key, equals, value = part.partition("=")
        if equals and key:
            out[unquote(key)] = None if value == _HIVE_NULL else unquote(value)
    return out


def _splits(names: Sequence[str]) -> dict[str, str | None]:
    """The splits that the names of files say, if all of several files say one: `train-00000-of-00002.parquet`."""
    found = {name: next((w for w in reversed(_WORDS.findall(name.lower())) if w in SPLITS), None) for name in names}
    return found if len(names) > 1 and None not in found.values() else {}


def both_fields(name: str, known: tuple[Field, str], field: Field, file: str) -> Field:
    """The field that takes the values of a column of two files."""
    one, where = known
    optional = one.optional or field.optional
    if dataclasses.replace(one, optional=True) == dataclasses.replace(field, optional=True):
        return dataclasses.replace(one, optional=optional)
    if isinstance(one, Scalar) and isinstance(field, Scalar):
        if {one.kind, field.kind} == {"int", "float"}:
            return Scalar("float", optional=optional)
        if "json" in (one.kind, field.kind):
            return Scalar("json", optional=optional)
    raise SchemaError(
        f"column {name!r} is {one!r} in {where} and {field!r} in {file}: give the kind of both, as in"
        f" types={{{name!r}: str}}, or ingest them into two datasets"
    )

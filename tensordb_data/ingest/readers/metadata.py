"""`metadata.csv`, `.jsonl` or `.parquet` beside images: what each image is, by the rule of Hugging Face."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from tensordb_data.errors import SchemaError
from tensordb_data.ingest.readers.tables import Table, both_fields
from tensordb_data.ingest.source import FileInfo
from tensordb_data.schema import Field

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_FILE = "file_name"


class Metadata:
    """What tables say of files. A table is about the files below its folder, up to the next table.

    Attributes:
        files: The tables themselves.
        linked: For each column of further files, such as `mask_file_name`, its field: `mask`.
    """

    def __init__(self, given: Given, files: Sequence[FileInfo]) -> None:
        self.files = [file for file in files if file.name.rpartition("/")[2].lower() in _NAMES]
        self.linked: dict[str, str] = {}
        self._given = given
        self._rows: dict[str, dict[str, Any]] = {}
        self._fields: dict[str, tuple[Field, str]] = {}
        self._folders: dict[str, str] = {}
        for file in self.files:
            folder = posixpath.dirname(file.name)
            if folder in self._folders:
                raise SchemaError(
                    f"{file.name}: expected one table of metadata in a folder, found {self._folders[folder]} too"
                )
            self._folders[folder] = file.name

    def __bool__(self) -> bool:
        return bool(self.files)

    def read(self, wanted: Mapping[str, Field]) -> None:
        """Read the tables.

        Raises:
            SchemaError: One is damaged, or does not name files.
        """
        for file in self.files:
            table = _table(self._given, file)
            fields = dict(table.fields(wanted))
            if _FILE not in fields:
                raise SchemaError(f"{file.name}: expected a column {_FILE!r}, found {', '.join(map(repr, fields))}")
            for name, field in fields.items():
                if name.endswith(f"_{_FILE}"):
                    self.linked[name] = name.removesuffix(f"_{_FILE}")
                elif name != _FILE:
                    known = self._fields.get(name)
                    self._fields[name] = (field, file.name) if known is None else (
                        both_fields(name, known, field, file.name), known[1]
                    )  # fmt: skip
            folder = posixpath.dirname(file.name)
            for part in table.parts(fields):
                for row in range(part.count):
                    self._add(folder, {name: _plain(column[row]) for name, column in part.columns.items()}, file.name)

    def _add(self, folder: str, row: dict[str, Any], table: str) -> None:
        for name in (_FILE, *self.linked):
            if isinstance(row.get(name), str):
                row[name] = posixpath.normpath(posixpath.join(folder, row[name]))
        path = row.pop(_FILE)
        if not isinstance(path, str):
            self._given.report.fail(table, f"a row has no {_FILE}")
        elif path in self._rows:
            self._given.report.fail(table, f"two rows are about {path}")
        else:
            self._rows[path] = row

    @property
    def fields(self) -> dict[str, Field]:
        """The columns, without those that name files."""
        return {name: field for name, (field, _) in self._fields.items()}

    @property
    def paths(self) -> set[str]:
        """The files that have a row."""
        return set(self._rows)

    @property
    def others(self) -> set[str]:
        """The files that a row names beside the one that it is about."""
        return {row[name] for row in self._rows.values() for name in self.linked if isinstance(row.get(name), str)}

    def row(self, path: str) -> Mapping[str, Any]:
        """What is said of a file."""
        return self._rows[path]

    def stamp(self, path: str) -> str:
        """Changes when what is said of a file does."""
        return xxhash.xxh3_64_hexdigest(repr(sorted(self._rows[path].items())).encode(errors="surrogatepass"))

    def table_of(self, path: str) -> str | None:
        """The table that is about a file; None if none is."""
        folder = posixpath.dirname(path)
        while folder and folder not in self._folders:
            folder = posixpath.dirname(folder)
        return self._folders.get(folder)


def _table(given: Given, file: FileInfo) -> Table:
    if file.name.lower().endswith(".csv"):
        from tensordb_data.ingest.readers.csv import CsvTable

        return CsvTable(given, file)
    if file.name.lower().endswith(".jsonl"):
        from tensordb_data.ingest.readers.jsonl import JsonTable

        return JsonTable(given, file)
    from tensordb_data.ingest.readers.parquet import parquet_table

    return parquet_table(given, file)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value

"""CSV files."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from tensordb_data.errors import SchemaError
from tensordb_data.ingest.source import CHUNK_ROWS, Chunk, row_key
from tensordb_data.schema import Field, Scalar

_INT = re.compile(r"[+-]?(0|[1-9]\d{0,18})")
_KINDS = ("bool", "int", "float", "str")
_BOOLS = {"true": True, "false": False}


class CsvFile:
    """A CSV (or, named `.tsv`, tab-separated) file in UTF-8 with a line of names.

    A column is bool (true, false), int, float or str: the first of them that all its values are. Numbers with
    leading zeros are str. An empty cell is a missing value, and makes the field optional. A column of a dataset that
    exists is read as the kind that it has there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.total = path.stat().st_size
        self.failed: list[tuple[str, str]] = []
        self._fields: dict[str, Field] | None = None

    def schema(self, stored: Mapping[str, Field]) -> dict[str, Field]:
        if self._fields is None:
            self._fields = self._infer()
        return {name: stored.get(name, field) for name, field in self._fields.items()}

    def chunks(self, schema: Mapping[str, Field]) -> Iterator[Chunk]:
        with self._open() as file:
            names, rows = self._rows(file)
            readers = [_reader(schema[name]) for name in names]
            keys: list[bytes] = []
            columns: list[list[Any]] = [[] for _ in names]
            for number, row in rows:
                keys.append(row_key(self._path.name, number, "\x1f".join(row).encode(errors="surrogatepass")))
                for name, column, read, cell in zip(names, columns, readers, row, strict=True):
                    column.append(self._value(read, cell, name, number))
                if len(keys) == CHUNK_ROWS:
                    yield self._chunk(keys, names, columns)
                    keys, columns = [], [[] for _ in names]
            if keys:
                yield self._chunk(keys, names, columns)

    def _chunk(self, keys: list[bytes], names: list[str], columns: list[list[Any]]) -> Chunk:
        nbytes = self.total * len(keys) // max(1, self._count)
        return Chunk(keys, dict(zip(names, columns, strict=True)), nbytes)

    def _value(self, read: Callable[[str], Any], cell: str, name: str, number: int) -> Any:
        if cell == "":
            return None
        try:
            return read(cell)
        except (ValueError, KeyError):
            raise SchemaError(
                f"{self._path}, row {number}, column {name!r}: expected {read.__name__}, found {cell!r}"
            ) from None

    def _infer(self) -> dict[str, Field]:
        with self._open() as file:
            names, rows = self._rows(file)
            kinds, empty, seen = [0] * len(names), [False] * len(names), [False] * len(names)
            self._count = 0
            for _, row in rows:
                self._count += 1
                for i, cell in enumerate(row):
                    if cell == "":
                        empty[i] = True
                        continue
                    seen[i] = True
                    while not _fits(cell, kinds[i]):
                        kinds[i] += 1
        if not self._count:
            raise SchemaError(f"{self._path}: expected rows below the line of names, found none")
        return {name: Scalar(_KINDS[kinds[i]] if seen[i] else "str", optional=empty[i]) for i, name in enumerate(names)}

    def _open(self) -> TextIO:
        return open(self._path, newline="", encoding="utf-8-sig")

    def _rows(self, file: TextIO) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
        reader = csv.reader(file, delimiter="\t" if self._path.suffix.lower() == ".tsv" else ",")
        names = next(self._checked(reader), None)
        if names is None:
            raise SchemaError(f"{self._path}: expected a line of names, found an empty file")
        if len(names) == 1 and (other := [mark for mark in ";\t|" if mark in names[0]]):
            raise SchemaError(f"{self._path}: expected commas between columns (tabs in a .tsv), found {other[0]!r} in "
                              f"{names[0]!r}; save it with commas")  # fmt: skip
        if len(set(names)) < len(names):
            raise SchemaError(f"{self._path}: expected different names, found {names}")
        return names, self._complete(names, reader)

    def _complete(self, names: list[str], reader: Any) -> Iterator[tuple[int, list[str]]]:
        number = 0
        for row in self._checked(reader):
            if not row:
                continue  # an empty line
            if len(row) != len(names):
                raise SchemaError(
                    f"{self._path}, line {reader.line_num}: expected {len(names)} cells, found {len(row)}"
                )
            yield number, row
            number += 1

    def _checked(self, reader: Any) -> Iterator[list[str]]:
        try:
            yield from reader
        except csv.Error as error:
            raise SchemaError(f"{self._path}, line {reader.line_num}: {error}") from None
        except UnicodeDecodeError as error:
            raise SchemaError(
                f"{self._path}: expected UTF-8, found something else in line {reader.line_num + 1} or soon after: "
                f"{error.reason}; convert it first"
            ) from None


def _fits(cell: str, kind: int) -> bool:
    if kind == 0:
        return cell.lower() in _BOOLS
    if kind == 1:
        return _INT.fullmatch(cell) is not None and -(2**63) <= int(cell) < 2**63
    if kind == 2:
        digits = cell.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0" and digits[1].isdigit():
            return False
        try:
            float(cell)
        except ValueError:
            return False
        return "_" not in cell
    return True


def _reader(field: Field) -> Callable[[str], Any]:
    kind = field.kind if isinstance(field, Scalar) else "str"
    readers: dict[str, Callable[[str], Any]] = {"bool": _boolean, "int": int, "float": float}
    return readers.get(kind, str)


def _boolean(cell: str) -> bool:
    return _BOOLS[cell.lower()]

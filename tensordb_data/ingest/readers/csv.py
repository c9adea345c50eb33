"""CSV files."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import datetime as dt
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

from tensordb_data.common.chunks import batched
from tensordb_data.errors import SchemaError
from tensordb_data.ingest.compressed import expanded, named_damage, plain_name, with_compressed
from tensordb_data.ingest.engine.format1 import old_key
from tensordb_data.ingest.places import as_text
from tensordb_data.ingest.readers.tables import Part, Tables
from tensordb_data.ingest.source import CHUNK_ROWS, FileInfo
from tensordb_data.schema import Field, Scalar

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_INT = re.compile(r"0|-?[1-9]\d{0,18}", re.ASCII)
_FLOAT = re.compile(
    r"-?(?:(?P<digits>0|[1-9]\d*)|(?:(?:0|[1-9]\d*)\.\d*|\.\d+)(?:[eE][+-]?\d+)?|(?:0|[1-9]\d*)[eE][+-]?\d+)", re.ASCII
)
_EXACT = 2**53  # integers up to there are exact as floats
_NO_NUMBERS = ("nan", "inf", "-inf", "infinity", "-infinity")
_KINDS = ("bool", "int", "float", "str")
_BOOLS = {"true": True, "false": False}


def open_csv(given: Given) -> Tables:
    """CSV files."""
    return Tables(given, given.choose(with_compressed((".csv", ".tsv"))), lambda file: CsvTable(given, file))


class CsvTable:
    """A CSV (or, named `.tsv`, tab-separated) file with a line of names.

    A column is bool (true, false), int, float or str: the first of them that all its values are, and that loses
    nothing. Numbers with leading zeros, a plus sign or too many digits are str. An empty cell is a missing value, and
    makes the field optional. A column of a dataset that exists is read as the kind that it has there.
    """

    def __init__(self, given: Given, file: FileInfo) -> None:
        self._given, self._file = given, file
        self._path = given.files.path(file)

    def fields(self, wanted: Mapping[str, Field]) -> Mapping[str, Field]:
        with self._open() as file:
            names, rows = self._rows(file)
            kinds = [list(range(len(_KINDS))) for _ in names]
            empty, told = [False] * len(names), [False] * len(names)
            count = 0
            for _, row in rows:
                count += 1
                for i, cell in enumerate(row):
                    if cell == "":
                        empty[i] = True
                    elif len(kinds[i]) > 1:
                        kinds[i] = [kind for kind in kinds[i] if _fits(cell, kind)]
                        told[i] = told[i] or cell.lower() not in _NO_NUMBERS
        if not count:
            raise SchemaError(f"{self._path}: expected rows below the line of names, found none")
        self._given.memo[self._file.name] = count
        out: dict[str, Field] = {}
        for i, name in enumerate(names):
            kind = _KINDS[kinds[i][0]] if told[i] else "str"
            field = wanted.get(name) or Scalar(kind)
            out[name] = dataclasses.replace(field, optional=field.optional or empty[i])
        return out

    def parts(self, fields: Mapping[str, Field]) -> Iterator[Part]:
        total = max(1, self._given.memo.get(self._file.name, 1))
        name_of = self._file.name.rpartition("/")[2]
        with self._open() as file:
            names, rows = self._rows(file)
            readers = {name: _reader(fields[name]) for name in names}
            for some in batched(rows, CHUNK_ROWS):
                columns = {
                    name: [_value(read, row[i]) for _, row in some] for i, (name, read) in enumerate(readers.items())
                }
                yield Part(columns, len(some), self._file.size * len(some) // total, partial(_old_keys, name_of, some))

    def _open(self) -> TextIO:
        encoding = self._given.reading.encoding
        try:
            codec = codecs.lookup(encoding).name
        except LookupError:
            raise SchemaError(f"encoding: expected the name of an encoding, found {encoding!r}") from None
        opened = expanded(self._given.open(self._file), self._path)
        return as_text(opened, "utf-8-sig" if codec == "utf-8" else encoding)

    def _rows(self, file: TextIO) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
        csv.field_size_limit(sys.maxsize)
        # Strict: the rest of a file after a quote that does not end would be one cell, without a word.
        delimiter = "\t" if plain_name(self._path).endswith(".tsv") else ","
        reader = csv.reader(file, delimiter=delimiter, strict=True)
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
            with named_damage(self._path):
                yield from reader
        except csv.Error as error:
            raise SchemaError(f"{self._path}, line {reader.line_num}: {error}") from None
        except UnicodeDecodeError as error:
            other = "utf-16" if error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "latin-1"
            raise SchemaError(
                f"{self._path}: expected {self._given.reading.encoding.upper()}, found something else in line"
                f" {reader.line_num + 1} or soon after: {error.reason}; name its encoding, as in encoding={other!r}"
            ) from None


def _old_keys(name: str, rows: list[tuple[int, list[str]]]) -> list[bytes]:
    return [old_key(name, number, "\x1f".join(row).encode(errors="surrogatepass")) for number, row in rows]


def _value(read: Callable[[str], Any], cell: str) -> Any:
    """The value of a cell; the text itself if it is of another kind, which is refused with the row."""
    if cell == "":
        return None
    try:
        return read(cell)
    except (ValueError, KeyError):
        return cell


def _fits(cell: str, kind: int) -> bool:
    """Whether a cell is of a kind, and loses nothing."""
    if kind == 0:
        return cell.lower() in _BOOLS
    if kind == 1:
        return _INT.fullmatch(cell) is not None and -(2**63) <= int(cell) < 2**63
    if kind == 2:
        match = _FLOAT.fullmatch(cell)
        if match is None:
            return cell.lower() in _NO_NUMBERS
        number = float(cell)
        return not math.isinf(number) and (match["digits"] is None or int(match["digits"]) <= _EXACT)
    return True


def _reader(field: Field) -> Callable[[str], Any]:
    kind = field.kind if isinstance(field, Scalar) else "str"
    readers: dict[str, Callable[[str], Any]] = {
        "bool": _boolean, "int": int, "float": float, "json": json.loads, "datetime": text_as_datetime,
    }  # fmt: skip
    return readers.get(kind, str)


def _boolean(cell: str) -> bool:
    return _BOOLS[cell.lower()]


def text_as_datetime(cell: str) -> dt.datetime:
    """The time that a text in ISO 8601 says.

    Raises:
        ValueError: It says none.
    """
    return dt.datetime.fromisoformat(cell[:-1] + "+00:00" if cell.endswith("Z") else cell)

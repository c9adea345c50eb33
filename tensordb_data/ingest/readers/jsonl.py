"""JSON: one object a line, or a file that is a list of objects."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from tensordb_data.common.chunks import batched
from tensordb_data.errors import SchemaError
from tensordb_data.ingest.compressed import expanded, named_damage, with_compressed
from tensordb_data.ingest.places import as_text
from tensordb_data.ingest.readers.tables import Part, Tables
from tensordb_data.ingest.source import CHUNK_ROWS, FileInfo
from tensordb_data.schema import Array, Field, Scalar

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

SUFFIXES = with_compressed((".jsonl", ".ndjson", ".json"))
_EXACT = 2**53  # integers up to there are exact as floats
_LONG = 64
"""Numbers in a list, from which on lists of one size are arrays."""
_KINDS = {bool: "bool", int: "int", float: "float", str: "str"}


def open_jsonl(given: Given) -> Tables:
    """Files of JSON."""
    return Tables(given, given.choose(SUFFIXES), lambda file: JsonTable(given, file))


@dataclasses.dataclass
class _Column:
    """What is known of one column."""

    kinds: set[str] = dataclasses.field(default_factory=set)
    count: int = 0
    """Rows that have it, with a value."""
    large: bool = False
    """Whether an integer has more digits than a float holds."""
    sizes: set[int] = dataclasses.field(default_factory=set)
    """Of lists of numbers, two of them at most."""

    def look(self, value: Any) -> None:
        if value is None:
            return
        self.count += 1
        kind = _KINDS.get(type(value), "json")
        if kind == "int" and abs(value) > _EXACT:
            self.large = True
        if kind == "json" and isinstance(value, list) and value and all(type(x) in (int, float) for x in value):
            kind = "numbers"
            if len(self.sizes) < 2:
                self.sizes.add(len(value))
        self.kinds.add(kind)

    def field(self, rows: int, wanted: Field | None) -> Field:
        if wanted is not None:
            return dataclasses.replace(wanted, optional=wanted.optional or self.count < rows)
        optional = self.count < rows
        if self.kinds == {"numbers"} and len(self.sizes) == 1 and min(self.sizes) >= _LONG:
            return Array("float64", (min(self.sizes),), optional=optional)
        kinds = {"json" if kind == "numbers" else kind for kind in self.kinds}
        if kinds == {"int", "float"} and not self.large:
            return Scalar("float", optional=optional)
        return Scalar(kinds.pop() if len(kinds) == 1 else "json", optional=optional)


class JsonTable:
    """One object a line (an object may take several lines), or a list of objects.

    A column is bool, int, float or str if all its values are, and otherwise JSON. Text that looks like a date is text.
    """

    def __init__(self, given: Given, file: FileInfo) -> None:
        self._given, self._file, self._path = given, file, given.files.path(file)

    def fields(self, wanted: Mapping[str, Field]) -> Mapping[str, Field]:
        columns: dict[str, _Column] = {}
        rows = 0
        for row in self._rows():
            rows += 1
            for name, value in row.items():
                columns.setdefault(name, _Column()).look(value)
        if not rows:
            raise SchemaError(f"{self._path}: expected objects, found none")
        self._given.memo[self._file.name] = rows
        return {name: column.field(rows, wanted.get(name)) for name, column in columns.items()}

    def parts(self, fields: Mapping[str, Field]) -> Iterator[Part]:
        total = max(1, self._given.memo.get(self._file.name, 1))
        for some in batched(self._rows(), CHUNK_ROWS):
            columns = {name: [_value(row.get(name), field) for row in some] for name, field in fields.items()}
            yield Part(columns, len(some), self._file.size * len(some) // total)

    def _rows(self) -> Iterator[dict[str, Any]]:
        opened = expanded(self._given.open(self._file), self._path)
        with named_damage(self._path), as_text(opened, "utf-8-sig") as file:
            try:
                yield from self._objects(file)
            except UnicodeDecodeError as error:
                raise SchemaError(f"{self._path}: expected UTF-8, found something else: {error.reason}") from None

    def _objects(self, file: TextIO) -> Iterator[dict[str, Any]]:
        decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=self._constant, parse_int=_integer)
        held, first = "", 1
        for number, line in enumerate(file, 1):
            if not held:
                first = number
                if not line.strip():
                    continue
            held += line
            if first == number and held.lstrip().startswith("["):  # a list over many lines is one value
                held += file.read()
            try:
                value, end = decoder.raw_decode(held := held.lstrip())
            except _Twice as error:
                raise SchemaError(
                    f"{self._path}, line {number}: expected different keys, found {error} twice"
                ) from None
            except _TooLarge as error:
                raise SchemaError(
                    f"{self._path}, line {number}: expected integers of 64 bits, found {error}; write it as text"
                ) from None
            except RecursionError:
                raise SchemaError(f"{self._path}, line {number}: expected JSON, found one nested too deep") from None
            except json.JSONDecodeError as error:
                if error.pos >= len(held.rstrip()) or "Unterminated string" in error.msg:
                    continue  # it goes on in the next line
                raise SchemaError(
                    f"{self._path}, line {first + error.lineno - 1}: expected JSON: {error.msg}"
                ) from None
            if held[end:].strip():
                raise SchemaError(
                    f"{self._path}, line {number}: expected one value a line, found {held[end:].strip():.40}"
                )
            held = ""
            if isinstance(value, list) and first == 1:
                for row, item in enumerate(value):
                    yield self._checked(item, f"item {row}")
            else:
                yield self._checked(value, f"line {first}")
        if held.strip():
            raise SchemaError(f"{self._path}, line {first}: expected JSON, found a value that does not end")

    def _checked(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise SchemaError(f"{self._path}, {where}: expected an object, found {json.dumps(value, default=str):.60}")
        return value

    def _constant(self, text: str) -> float:
        self._given.report.note(f"{self._file.name or self._path} has {text}, which is no JSON, as a number")
        return float(text)


class _Twice(Exception):
    """A key is there twice."""


class _TooLarge(Exception):
    """An integer has more than 64 bits."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(repr(next(name for name in names if names.count(name) > 1)))
    return found


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (number := int(text)) < 2**63:
        raise _TooLarge(text[:30])
    return number


def _value(value: Any, field: Field) -> Any:
    if isinstance(field, Scalar) and field.kind == "str" and type(value) in (int, float, bool):
        return json.dumps(value)  # as the user has asked for
    if isinstance(field, Scalar) and field.kind == "datetime" and isinstance(value, str):
        from tensordb_data.ingest.readers.csv import text_as_datetime

        try:
            return text_as_datetime(value)
        except ValueError:
            return value  # refused with its row
    if isinstance(value, float) and isinstance(field, Scalar) and field.kind == "int" and math.isfinite(value):
        return int(value) if value.is_integer() else value
    return value

"""Chunks of a source become rows of a dataset: columns become fields, values are checked, encoded and hashed."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from tensordb_data.blobs.segments.foreign import ForeignBlob
from tensordb_data.common.bson_values import MAX_DOCUMENT
from tensordb_data.errors import SchemaError
from tensordb_data.ingest.engine.refer import damage_of, file_values, has_ranges, referring, without_errors
from tensordb_data.ingest.engine.verify import CHECKED
from tensordb_data.samples.tables import as_column
from tensordb_data.schema import Audio, BlobField, Field, Image, Scalar, Video, Volume
from tensordb_data.schema.missing import is_missing
from tensordb_data.schema.schema import Schema, check_field_name, located, missing_field
from tensordb_data.warehouse.identity import row_key, scalar_bytes

if TYPE_CHECKING:
    from tensordb_data.ingest.in_place import InPlace
    from tensordb_data.ingest.options import Checks, Columns, Reading, Rows
    from tensordb_data.ingest.report import Report
    from tensordb_data.ingest.source import Chunk

_FAILED = object()
_LARGEST = MAX_DOCUMENT - 128 * 1024
"""Bytes of scalars that fit into a document, beside what this library adds."""


@dataclasses.dataclass
class Prepared:
    """Rows that are ready to be written: encoded values, and what identifies them."""

    columns: dict[str, Any]
    """By field: the encoded values as a list, with None for missing ones; or blobs of one size as uint8 [n, size]."""
    where: list[str]
    keys: list[bytes] | None
    """Key of each row, or its place; None if rows are known by their content."""
    hashes: list[bytes]
    """What each row gives, in 16 bytes."""
    parts: list[bytes] | None
    """The same for each field: 8 bytes for the names, then 8 bytes for each field in the order of the names."""
    damaged: dict[int, str]
    """Rows with a damaged image that is kept, and why."""
    old_keys: Callable[[], list[bytes]] | None
    places: list[bytes] | None
    """What the source says of the place of each row, if it does."""

    def __len__(self) -> int:
        return len(self.hashes)


class Preparer:
    """Makes rows of chunks.

    Args:
        dataset: The dataset, for messages.
        columns: Which columns become which fields.
        rows: What identifies a row.
        checks: What is looked at.
        reading: Where the files of columns of paths are, and where the field `split` comes from.
        report: Gets what does not fit.
        pool: Threads that read files and look at images.
    """

    def __init__(
        self,
        dataset: str,
        columns: Columns,
        rows: Rows,
        checks: Checks,
        reading: Reading,
        report: Report,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._dataset, self._columns, self._rows, self._checks = dataset, columns, rows, checks
        self._reading, self._report, self._pool = reading, report, pool
        self._base: Path | None = None
        self.in_place: InPlace | None = None
        """Where files stay, if they do."""
        self._schema = Schema({})
        self._names: dict[str, str] = {}
        self._key: list[str] = []
        self._set: dict[str, Any] = {}

    def wanted(self, stored: Mapping[str, Field]) -> dict[str, Field]:
        """The kinds of columns that are known before the source is looked at, by their names in the source."""
        back = {new: old for old, new in (self._columns.rename or {}).items()}
        found = {back.get(name, name): field for name, field in stored.items()}
        return {**found, **(self._columns.types or {})}  # type: ignore[dict-item]

    def take(self, source: Mapping[str, Field], stored: Mapping[str, Field]) -> dict[str, Field]:
        """Decide on the fields, once the columns of the source are known.

        Returns:
            The fields of the rows.

        Raises:
            SchemaError: The columns do not fit the options, or the dataset.
        """
        columns, split = self._columns, self._reading.split
        rename = dict(columns.rename or {})
        if isinstance(split, str) and split != "auto":
            if split not in source:
                raise SchemaError(
                    f"split: the source has no column {split!r}; set={{'split': {split!r}}} gives all rows this split"
                )
            rename[split] = "split"
        _check_known("fields", columns.fields or (), source)
        _check_known("skip", columns.skip, source)
        _check_known("rename", rename, source)
        _check_known("types", columns.types or {}, source)
        back = {new: old for old, new in rename.items()}
        self._key = [name if name in source else back.get(name, name) for name in self._rows.key or ()]
        _check_known("key", self._key, source)
        _check_known("files", self._reading.files or {}, source)
        skip = set(columns.skip)
        if "" in source and "" not in rename and "" not in skip:
            skip.add("")
            self._report.note("a column without a name was left out; rename={'': 'index'} takes it")
        kept = [name for name in source if name not in skip and (columns.fields is None or name in columns.fields)]
        self._names = {name: rename.get(name, name) for name in kept}
        fields: dict[str, Field] = {}
        for name, new in self._names.items():
            try:
                check_field_name(self._dataset, new)
            except SchemaError as error:
                advice = f"rename={{{name!r}: 'another'}} or skip=[{name!r}]"
                raise SchemaError(f"{error}; here with {advice}") from None
            if new in fields:
                raise SchemaError(f"rename: two columns would be called {new!r}; choose another name")
            fields[new] = self._kind(name, source[name], stored.get(new))
        self._set = dict(columns.set or {})
        if clash := [name for name in self._set if name in fields]:
            raise SchemaError(f"set: the source has a field {clash[0]!r} of its own; choose another name, or leave out"
                              f" that of the source with skip=[{clash[0]!r}]")  # fmt: skip
        if callable(self._reading.split):
            fields["split"] = stored.get("split") or Scalar("str", optional=True)
        return fields

    def use(self, schema: Schema, base: Path | None) -> None:
        """Encode with this schema from now on.

        Args:
            schema: The schema.
            base: The folder of the source, if the user has named none for files; None if it has none on this machine.
        """
        self._schema = schema
        self._base = base if self._reading.base is None else Path(self._reading.base)

    def _kind(self, column: str, found: Field, stored: Field | None) -> Field:
        files = self._reading.files or {}
        if column in files:
            return stored or dataclasses.replace(files[column] or Image(), optional=found.optional)
        return found if stored is None else stored

    def prepare(self, chunk: Chunk, known: Mapping[int, str] | None = None) -> Prepared | None:
        """Make rows of a chunk. What does not fit is noted in the report.

        Args:
            chunk: The chunk.
            known: Rows of which it is known that they do not fit, and why.

        Returns:
            None if no row is left.
        """
        n = chunk.count
        bad = dict(known or {})
        columns = {new: self._column(name, chunk, bad) for name, new in self._names.items() if name in chunk.columns}
        columns.update({name: [value] * n for name, value in self._set.items()})
        if callable(self._reading.split):
            columns["split"] = self._splits(self._reading.split, chunk, bad)
        keys = self._keys(chunk, bad)
        damaged: dict[int, str] = {}
        encoded: dict[str, Any] = {}
        for name, field in self._schema.items():
            if name in columns:
                encoded[name] = self._encoded(name, field, columns[name], bad)
            elif not field.optional:
                raise missing_field(self._dataset, name, field)
            if isinstance(field, CHECKED) and name in encoded:
                self._look(field, encoded[name], bad, damaged)
        rows = [row for row in range(n) if row not in bad]
        old = None if chunk.old_keys is None else partial(_picked, chunk.old_keys, rows)
        encoded = {name: taken(column, rows) for name, column in encoded.items()}
        hashes, parts, sizes = digests(encoded, len(rows), split=keys is not None)
        if large := {row: _too_large(size) for row, size in zip(rows, sizes, strict=True) if size > _LARGEST}:
            return self.prepare(chunk, large)
        for row in sorted(bad):
            self._report.fail(chunk.name(row), bad[row])
        if not rows:
            return None
        return Prepared(
            encoded,
            [chunk.name(row) for row in rows],
            None if keys is None else [keys[row] for row in rows],
            hashes,
            parts,
            {new: damaged[row] for new, row in enumerate(rows) if row in damaged},
            old,
            None if chunk.keys is None else [chunk.keys[row] for row in rows],
        )

    def _column(self, name: str, chunk: Chunk, bad: dict[int, str]) -> Any:
        values = as_column(chunk.columns[name])
        field = self._schema.get(self._names[name])
        listed = isinstance(values, list) and field is not None and field.is_blob
        if name in (self._reading.files or {}) or (listed and any(isinstance(value, Mapping) for value in values)):
            values = [self._path(name, value, row, bad) for row, value in enumerate(values)]
        if isinstance(values, np.ndarray) or not any(isinstance(value, Path) for value in values):
            return values
        return without_errors(list(self._pool.map(file_values(self.in_place), values)), bad, _FAILED)

    def _path(self, name: str, value: Any, row: int, bad: dict[int, str]) -> Any:
        if is_missing(value) or isinstance(value, (bytes, Path)):
            return None if is_missing(value) else value
        if isinstance(value, Mapping) and "path" in value:
            value = value["path"] if value.get("bytes") is None else value["bytes"]
            if not isinstance(value, str):
                return value
        if not isinstance(value, str):
            bad.setdefault(row, f"column {name!r}: expected the path of a file, found {value!r:.60}")
            return _FAILED
        if self._base is None:
            what = f"column {name!r}: expected bytes, found {value!r:.60}, the path of a file, in a source elsewhere"
            bad.setdefault(row, f"{what}; name the folder of such files with base=")
            return _FAILED
        path = Path(os.path.normpath(self._base / value))
        if "\0" in value or not path.is_relative_to(os.path.normpath(self._base)):
            what = f"column {name!r}: expected a file below {self._base}, found {value!r}"
            bad.setdefault(row, f'{what}; to allow it, name a folder above it, as in base="/"')
            return _FAILED
        return path

    def _splits(self, split: Callable[[Mapping[str, Any]], str | None], chunk: Chunk, bad: dict[int, str]) -> list[Any]:
        columns = {name: as_column(column) for name, column in chunk.columns.items()}
        found: list[Any] = []
        for row in range(chunk.count):
            try:
                found.append(split({name: column[row] for name, column in columns.items()}))
            except Exception as error:
                bad.setdefault(row, f"split: {type(error).__name__}: {error}")
                found.append(_FAILED)
        return found

    def _keys(self, chunk: Chunk, bad: dict[int, str]) -> Sequence[bytes] | None:
        if self._rows.key is None:
            return chunk.keys
        columns = [as_column(chunk.columns[name]) for name in self._key]
        keys: list[bytes] = []
        for row in range(chunk.count):
            try:
                keys.append(row_key(column[row] for column in columns))
            except SchemaError as error:
                bad.setdefault(row, f"key {', '.join(self._rows.key)}: {error}")
                keys.append(b"")
        return keys

    def _encoded(self, name: str, field: Field, values: Any, bad: dict[int, str]) -> Any:
        """The encoded values of a column. Rows that do not fit are noted."""
        try:
            if isinstance(field, Scalar):
                return field.encode_rows(values)
            if isinstance(field, BlobField) and isinstance(values, np.ndarray):
                rows = field.encode_rows(values)
                if rows is not None:
                    return rows
        except SchemaError:
            pass  # found below, row by row
        if has_ranges(values):
            refer = referring(field, self._checks.verify == "decode")
            values = without_errors(list(self._pool.map(refer, values)), bad, _FAILED)
        encode: Callable[[Any], Any] = field.encode  # type: ignore[attr-defined]
        found: list[Any] = []
        for row, value in enumerate(values):
            if isinstance(value, ForeignBlob):
                found.append(value)
                continue
            if value is _FAILED or (field.optional and is_missing(value)):
                found.append(None)
                continue
            try:
                if is_missing(value):
                    raise missing_field(self._dataset, name, field)
                found.append(encode(value))
            except SchemaError as error:
                text = str(error) if is_missing(value) else located(self._dataset, name, field, error)
                bad.setdefault(row, text)
                found.append(None)
        return found

    def _look(
        self, field: Image | Audio | Video | Volume, files: Sequence[Any], bad: dict[int, str], damaged: dict[int, str]
    ) -> None:
        if self._checks.verify != "decode":
            return
        rows = [row for row, data in enumerate(files) if data is not None and row not in bad]
        found = self._pool.map(lambda row: damage_of(files[row], field), rows)
        for row, why in zip(rows, found, strict=True):
            if why is not None and self._checks.on_damage == "keep":
                damaged[row] = why
            elif why is not None:
                bad[row] = why


def _too_large(size: int) -> str:
    return (
        f"expected at most 16 MB of text, numbers and JSON in a row, found {size / 2**20:.1f} MB: give long text a kind"
        " that is stored as a blob, as in types={'text': Text()}"
    )


def _picked(make: Callable[[], Sequence[bytes]], rows: Sequence[int]) -> list[bytes]:
    keys = make()
    return [keys[row] for row in rows]


def taken(column: Any, rows: Sequence[int]) -> Any:
    """Some rows of an encoded column."""
    if len(rows) == len(column):
        return column
    return column[np.asarray(rows)] if isinstance(column, np.ndarray) else [column[row] for row in rows]


def digests(columns: Mapping[str, Any], n: int, *, split: bool) -> tuple[list[bytes], list[bytes] | None, list[int]]:
    """Digests of what n rows give.

    Returns:
        Of each row the digest of all fields together; with `split`, those of each field; and the bytes of its scalars.
    """
    names = sorted(columns)
    blobs = [name for name in names if _is_blob(columns[name])]
    scalars = [name for name in names if name not in blobs]
    whole: list[bytes] = []
    sizes: list[int] = []
    parts: list[bytes] | None = [] if split else None
    head = names_digest(names)
    for row in range(n):
        values = {name: columns[name][row] for name in scalars}
        of_blobs = {name: _blob_digest(columns[name][row]) for name in blobs}
        joined = b"".join(name.encode() + b"\0" + of for name, of in of_blobs.items() if of)
        encoded = scalar_bytes(values)
        sizes.append(len(encoded))
        whole.append(xxhash.xxh3_128_digest(joined + b"\1" + encoded))
        if parts is not None:
            each = (of_blobs[name][:8] or bytes(8) if name in of_blobs else _part(values[name]) for name in names)
            parts.append(head + b"".join(each))
    return whole, parts, sizes


def names_digest(names: Iterable[str]) -> bytes:
    """What begins the parts of a row: a digest of the names of its fields."""
    return xxhash.xxh3_64_digest("\0".join(sorted(names)).encode())


def _is_blob(column: Any) -> bool:
    if isinstance(column, np.ndarray):
        return True
    first = next((value for value in column if value is not None), None)
    return isinstance(first, (bytes, bytearray, memoryview, ForeignBlob))


def _blob_digest(data: Any) -> bytes:
    if isinstance(data, ForeignBlob):
        return data.digest
    return b"" if data is None else xxhash.xxh3_128_digest(data)


def _part(value: Any) -> bytes:
    return bytes(8) if value is None else xxhash.xxh3_64_digest(scalar_bytes({"": value}))


def _check_known(option: str, names: Iterable[str], source: Mapping[str, Field]) -> None:
    for name in names:
        if name not in source:
            near = difflib.get_close_matches(name, source, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, list(source)[:30]))}"
            raise SchemaError(f"{option}: the source has no column {name!r}; {hint}")

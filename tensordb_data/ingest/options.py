"""The options of an ingest, in four groups: columns, rows, checks, and how a source is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, TypeVar

import xxhash

from tensordb_data.common.bson_values import plain
from tensordb_data.common.options import OptionGroup, Written, is_number
from tensordb_data.errors import QueryError, SchemaError
from tensordb_data.schema import Field, Scalar, field_from_doc

G = TypeVar("G", bound=OptionGroup)

OnChange = Literal["update", "skip", "error"]
OnDamage = Literal["fail", "keep"]
Verify = Literal["decode", "header", "none"]
Split = str | None | Callable[[Mapping[str, Any]], str | None]
_TYPES: dict[Any, str] = {bool: "bool", int: "int", float: "float", str: "str", dict: "json", list: "json"}


@dataclass(frozen=True, kw_only=True)
class Columns(OptionGroup):
    """Which columns of a source become which fields.

    Raises:
        SchemaError: A value is not what it should be.
    """

    fields: Sequence[str] | None = None
    """The columns to take, by their names in the source; None for all."""
    skip: Sequence[str] = ()
    """The columns to leave out. A column without a name is called by the empty text."""
    rename: Mapping[str, str] | None = None
    """New names, by the names in the source."""
    types: Mapping[str, Field | type | str] | None = None
    """Kinds of fields, by the names in the source: `Image()`, `str`, `"json"`. Others are found out."""
    names: Sequence[str] | None = None
    """The names of the parts, where rows are tuples."""
    set: Mapping[str, Any] | None = None
    """Fields that have one value in all rows, such as a split."""

    def _check(self, written: Written) -> None:
        for name in ("fields", "skip", "names"):
            object.__setattr__(self, name, _texts(written(name), getattr(self, name)))
        rename = dict(self.rename or {})
        if not all(isinstance(text, str) for pair in rename.items() for text in pair):
            raise SchemaError(f'{written("rename")} is a dict of names, {{"jpg": "image"}}. Found: {self.rename!r}')
        object.__setattr__(self, "rename", rename)
        object.__setattr__(self, "types", {n: _field(written("types"), n, t) for n, t in (self.types or {}).items()})
        fixed = plain(dict(self.set or {}), lambda message: SchemaError(f"{written('set')}: {message}"))
        object.__setattr__(self, "set", fixed)


@dataclass(frozen=True, kw_only=True)
class Rows(OptionGroup):
    """What identifies a row, and what happens to one that is known.

    Raises:
        QueryError: A value is not what it should be.
    """

    key: Sequence[str] | str | None = None
    """The column or columns by whose values a row is known, wherever it comes from. With None, a row of a table is
    known by its content, and a file by its path below the source."""
    source_id: str | None = None
    """A name for the source. It narrows `key` to this source; and it stands for the place of the source, so that a
    folder that was moved is the same."""
    on_change: OnChange = "update"
    """What happens to a sample whose row has changed: `"update"` it, `"skip"` the row, or count it as an `"error"`."""
    prune: bool = False
    """Whether samples are deleted whose rows are not in the source any more. Otherwise they are counted as missing."""

    def _check(self, written: Written) -> None:
        key = (self.key,) if isinstance(self.key, str) else _texts(written("key"), self.key)
        if key is not None and (not key or len(set(key)) < len(key)):
            raise QueryError(f"{written('key')} is the name of a column, or several different ones. Found: {key!r}")
        object.__setattr__(self, "key", key)
        if self.source_id is not None and (not isinstance(self.source_id, str) or not self.source_id):
            raise QueryError(f"{written('source_id')} is a name. Found: {self.source_id!r}")
        _one_of(written("on_change"), self.on_change, ("update", "skip", "error"))
        if not isinstance(self.prune, bool):
            raise QueryError(f"{written('prune')} is True or False. Found: {self.prune!r}")


@dataclass(frozen=True, kw_only=True)
class Checks(OptionGroup):
    """What is looked at, and what happens to what is damaged.

    Raises:
        QueryError: A value is not what it should be.
    """

    on_error: Literal["collect", "raise"] | int = "collect"
    """`"collect"` what could not be read in the report, `"raise"` the first, or a number of them after which to stop.
    What was added before stays."""
    on_damage: OnDamage = "fail"
    """What happens to a damaged image: it `"fail"`s, or is taken as it is: `"keep"`. Then `_tdb.damaged` says why."""
    verify: Verify = "decode"
    """How images are checked: `"decode"` them, or read the `"header"` alone, which `"none"` does too: without one, no
    image can be stored."""

    def _check(self, written: Written) -> None:
        number = is_number(self.on_error) and isinstance(self.on_error, int) and self.on_error >= 0
        if not number:
            _one_of(written("on_error"), self.on_error, ("collect", "raise"), " or a number of failures")
        _one_of(written("on_damage"), self.on_damage, ("fail", "keep"))
        _one_of(written("verify"), self.verify, ("decode", "header", "none"))


@dataclass(frozen=True, kw_only=True)
class Reading(OptionGroup):
    """How a source is read.

    Raises:
        QueryError: A value is not what it should be.
    """

    format: str | None = None
    """The name of the reader, where the source does not tell: `"csv"`, `"jsonl"`, `"parquet"`, …, or a registered
    one."""
    files: Mapping[str, Field | None] | None = None
    """Columns that hold paths of files, and the kinds of the files: `{"path": Image()}`."""
    base: str | os.PathLike[str] | None = None
    """The folder below which these files are; by default that of the table."""
    split: Split = "auto"
    """Where the field `split` comes from: `"auto"` for the names of folders, a column, a function of the row, or None
    for none."""
    encoding: str = "utf-8"
    """That of CSV files."""
    images: str | os.PathLike[str] | None = None
    """The folder of the images, for readers of annotations."""
    tags: Sequence[str] = ()
    """Further tags of DICOM files that become fields, by their keywords: `["PatientAge", "KVP"]`."""
    workers: int | None = None
    """Threads that read and check; by default one a processor, 8 at most."""

    def _check(self, written: Written) -> None:
        for name in ("base", "images"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (str, os.PathLike)):
                raise QueryError(f"{written(name)} is a folder. Found: {value!r}")
        if self.format is not None and not isinstance(self.format, str):
            raise QueryError(f"{written('format')} is the name of a reader. Found: {self.format!r}")
        for name, field in (self.files or {}).items():
            if not isinstance(name, str) or not (field is None or (isinstance(field, Field) and field.is_blob)):
                raise QueryError(f'{written("files")} is a dict such as {{"path": Image()}}. Found: {self.files!r}')
        object.__setattr__(self, "files", dict(self.files or {}))
        if isinstance(self.tags, str) or not all(isinstance(name, str) and name for name in self.tags):
            raise QueryError(f'{written("tags")} is a list of keywords such as ["PatientAge"]. Found: {self.tags!r}')
        object.__setattr__(self, "tags", tuple(self.tags))
        if not (self.split is None or isinstance(self.split, str) or callable(self.split)):
            raise QueryError(f'{written("split")} is "auto", a column, a function or None. Found: {self.split!r}')
        if self.workers is not None and not (isinstance(self.workers, int) and self.workers >= 1):
            raise QueryError(f"{written('workers')} is a number of threads, 1 or more. Found: {self.workers!r}")


class IngestOptions(TypedDict, total=False):
    """The options of an ingest: the groups, or their fields by themselves. The groups describe them."""

    columns: Columns | None
    rows: Rows | None
    checks: Checks | None
    reading: Reading | None
    fields: Sequence[str] | None
    skip: Sequence[str]
    rename: Mapping[str, str] | None
    types: Mapping[str, Field | type | str] | None
    names: Sequence[str] | None
    set: Mapping[str, Any] | None
    key: Sequence[str] | str | None
    source_id: str | None
    on_change: OnChange
    prune: bool
    on_error: Literal["collect", "raise"] | int
    on_damage: OnDamage
    verify: Verify
    format: str | None
    files: Mapping[str, Field | None] | None
    base: str | os.PathLike[str] | None
    split: Split
    encoding: str
    images: str | os.PathLike[str] | None
    tags: Sequence[str]
    workers: int | None


def group_of(kind: type[G], name: str, options: Mapping[str, Any]) -> G:
    """The group that options name, or make.

    Raises:
        QueryError: The group is given together with one of its fields, or is none.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    given = {field: options[field] for field in known if field in options}
    group = options.get(name)
    if group is None:
        return kind.spelled(given, {field: f"{field}=" for field in known})
    if not isinstance(group, kind):
        raise QueryError(f"{name}= is a {kind.__name__}({known[0]}=...). Found: {group!r:.100}")
    for field in given:
        raise QueryError(f"{name}= and {field}= are both given: give {name}={kind.__name__}({field}=...) alone")
    return group


def fingerprint(*groups: object) -> bytes:
    """A digest of the options that decide which rows a source gives: 16 bytes."""
    return xxhash.xxh3_128_digest(repr([_shown(group) for group in groups]).encode(errors="surrogatepass"))


def _shown(value: object) -> object:
    """A value whose repr is the same in each process."""
    if isinstance(value, OptionGroup):
        return [(field.name, _shown(getattr(value, field.name))) for field in fields(value)]  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        return sorted((str(key), _shown(item)) for key, item in value.items())
    if callable(value):
        return (getattr(value, "__module__", ""), getattr(value, "__qualname__", ""))
    return str(value)


def _texts(written: str, value: Iterable[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    given = () if isinstance(value, str) else tuple(value)
    if isinstance(value, str) or not all(isinstance(name, str) for name in given):
        raise SchemaError(f"{written} is a list of names. Found: {value!r}")
    return given


def _field(written: str, name: object, kind: object) -> Field:
    if isinstance(kind, Field):
        return kind
    text = kind if isinstance(kind, str) else _TYPES.get(kind, getattr(kind, "__name__", ""))
    if isinstance(name, str):
        try:
            if text in ("array", "image", "bytes", "text") and text != "array":
                return field_from_doc({"kind": text})
            return Scalar(text)
        except SchemaError:
            pass
    raise SchemaError(
        f"{written} is a dict of a Field, a Python type or the name of a kind for each column, such as"
        f' {{"zip": str, "scan": Array("int16"), "boxes": "json"}}. Found: {name!r}: {kind!r}'
    )


def _one_of(written: str, value: object, known: tuple[str, ...], more: str = "") -> None:
    if value not in known:
        raise QueryError(f"{written} is one of {', '.join(map(repr, known))}{more}. Found: {value!r}")

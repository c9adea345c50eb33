"""Folders of files of one kind: what the folders, a table beside them, and the header of each file say."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tensordb_data.errors import MissingExtraError, SchemaError, TensorDBError
from tensordb_data.ingest.readers.layout import find_layout
from tensordb_data.ingest.readers.metadata import Metadata
from tensordb_data.ingest.source import CHUNK_BYTES, Chunk, FileInfo
from tensordb_data.schema import Field, Scalar

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_CHUNK_FILES = 1024


@dataclasses.dataclass
class Part:
    """What becomes one row: the file, or the files that belong together."""

    name: str
    """The path by which it is known."""
    files: Sequence[FileInfo]


class MediaFolder(ABC):
    """Files of one kind: a field with the file, `path`, what their headers say, and what the folders say.

    Folders mean what those of images do: `split`, `class` and `label`. With `metadata.csv`, `.jsonl` or `.parquet`,
    they mean nothing, and the columns of the table are fields.
    """

    column: ClassVar[str]
    """The field with the file."""
    what: ClassVar[str]
    """What the files are, for messages."""
    suffixes: ClassVar[tuple[str, ...]]
    unread: ClassVar[tuple[str, ...]] = ()
    """Suffixes of files of this kind that are not read."""
    classes: ClassVar[bool] = True
    """Whether folders are classes."""

    def __init__(self, given: Given) -> None:
        self._given = given
        files = given.files
        self.id, self.root = files.id, files.root
        self._about = Metadata(given, files.files)
        tables = {file.name for file in self._about.files}
        found = [file for file in files.files if file.name not in tables and self._is_wanted(file)]
        self._parts = {part.name: part for part in self.parts_of(found)}
        if not self._parts:
            ignored = ", ".join(f"{n} {suffix}" for suffix, n in given.report.ignored.items()) or "nothing"
            raise SchemaError(f"{files.root}: expected {self.what}, found none; ignored: {ignored}")
        names = self._described() if self._about else list(self._parts)
        split = given.reading.split == "auto" and "split" not in self._about.fields
        self._layout = find_layout(names, given.report.fail, split=split, label=self.classes and not self._about)
        self.files = [self._info(self._parts[name]) for name in self._layout.places]

    # What a kind says

    def parts_of(self, files: Sequence[FileInfo]) -> Sequence[Part]:
        """The rows that files become; by default each file is one."""
        return [Part(file.name, [file]) for file in files]

    @abstractmethod
    def field_of(self, parts: Sequence[Part]) -> Field:
        """The field with the file, of a dataset that has none yet."""

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, Field]:
        """The fields that `read` gives besides the file, by name. Those that some files lack are optional."""

    @abstractmethod
    def read(self, part: Part) -> tuple[bytes, Mapping[str, Any]]:
        """The bytes to store, and what they say of themselves.

        Raises:
            TensorDBError: It cannot be read, or is not what it should be.
        """

    # The same for all

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        layout, text, taken = self._layout, Scalar("str"), self._about.fields
        if self._about.linked:
            names = ", ".join(self._about.linked)
            self._given.report.note(f"the columns {names} name further files, which are read beside images alone")
        some = [self._parts[file.name] for file in files]
        fields: dict[str, Field] = {self.column: wanted.get(self.column) or self.field_of(some)}
        if layout.classes:
            fields |= {"label": wanted.get("label") or Scalar("int"), "class": wanted.get("class") or text}
        if layout.has_split:
            fields["split"] = wanted.get("split") or text
        self._names = [name for name in self.facts if name not in taken and name not in fields]
        fields |= {name: wanted.get(name) or self.facts[name] for name in self._names}
        fields |= {name: wanted.get(name) or field for name, field in taken.items()}
        return {**fields, "path": wanted.get("path") or text}

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        labels = self._labels()
        group: list[FileInfo] = []
        for file in files:
            if group and (len(group) >= _CHUNK_FILES or sum(one.size for one in group) + file.size > CHUNK_BYTES):
                yield self._chunk(group, labels)
                group = []
            group.append(file)
        if group:
            yield self._chunk(group, labels)

    def _chunk(self, files: Sequence[FileInfo], labels: Mapping[str, int]) -> Chunk:
        layout, rows, good = self._layout, list[dict[str, Any]](), list[FileInfo]()
        for file, found in zip(files, self._given.map(self._read, files), strict=True):
            if isinstance(found, TensorDBError):
                self._given.report.fail(file.name, str(found))
                continue
            place = layout.places[file.name]
            data, facts = found
            rows.append({**facts, "path": file.name, "split": place.split, "class": place.label,
                         "label": labels.get(place.label or ""),
                         **(self._about.row(file.name) if self._about else {}), self.column: data})  # fmt: skip
            good.append(file)
        names = [self.column, *self._names, "path"]
        names += [name for name in ("label", "class") if layout.classes]
        names += ["split"] if layout.has_split else []
        names += [name for name in self._about.fields if name not in names]
        return Chunk(
            {name: [row.get(name) for row in rows] for name in names},
            keys=[file.name.encode() for file in good],
            where=[file.name for file in good],
            nbytes=sum(file.size for file in files),
            done=good,
        )

    def _read(self, file: FileInfo) -> tuple[bytes, Mapping[str, Any]] | TensorDBError:
        try:
            return self.read(self._parts[file.name])
        except MissingExtraError:
            raise
        except TensorDBError as error:
            return error

    def _described(self) -> list[str]:
        """The files of which a table says something. The others are named."""
        about, fail = self._about, self._given.report.fail
        about.read(self._given.columns.types or {})  # type: ignore[arg-type]
        for path in sorted(about.paths - set(self._parts)):
            fail(path, f"is named in {about.table_of(path)}, and is none of the {self.what} that are there")
        names = []
        for name in self._parts:
            if name in about.paths:
                names.append(name)
            elif name not in about.others:
                table = about.table_of(name)
                none = "has no table of metadata above it, as others do"
                fail(name, none if table is None else f"has no row in {table}")
        return names

    def _info(self, part: Part) -> FileInfo:
        """A part as one file, which changes when any of its files does, or what a table says of it."""
        said = self._about.stamp(part.name) if self._about else ""
        if len(part.files) == 1 and not said:
            return part.files[0]
        stamps = [f"{file.name} {file.size} {file.stamp}" for file in part.files]
        known = all(file.stamp is not None for file in part.files)
        return FileInfo(part.name, sum(file.size for file in part.files), " ".join([*stamps, said]) if known else None)

    def _is_wanted(self, file: FileInfo) -> bool:
        name, report = file.name.lower(), self._given.report
        if name.endswith(self.suffixes) or (len(self._given.files.files) == 1 and not name.endswith(self.unread)):
            return True
        if name.endswith(self.unread):
            report.fail(file.name, f".{name.rpartition('.')[2]} is not read: convert it")
            return False
        report.ignore(file.name)
        return False

    def _labels(self) -> dict[str, int]:
        numbered = dict(self._given.labels()) if self._layout.classes else {}
        for name in self._layout.classes:
            numbered.setdefault(name, max(numbered.values(), default=-1) + 1)
        return numbered

"""Folders of MDS as a source."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from tensordb_data.errors import SchemaError, TensorDBError
from tensordb_data.ingest.in_place import Range, as_it_is
from tensordb_data.ingest.readers.shards.columns import Kind, chunks_of, splits_of
from tensordb_data.ingest.readers.shards.mds import MdsShard, field_of, read_index, read_shard, unpacked
from tensordb_data.ingest.source import Chunk, FileInfo
from tensordb_data.schema import Field

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

INDEX = "index.json"
_AS_IT_IS = ("bytes", "jpeg", "png")
"""Encodings whose values are the bytes that a field stores."""
_LARGEST = 1 << 32


def open_mds(given: Given) -> MdsFolders:
    """Folders with `index.json` and shards of MDS."""
    return MdsFolders(given)


class MdsFolders:
    """One or several folders of MDS. A row is known by its shard and its number in it.

    Folders called as splits are the field `split`, if the samples have none.
    """

    def __init__(self, given: Given) -> None:
        self._given = given
        self.can_refer = True
        self.id, self.root = given.files.id, given.files.root
        there = {file.name: file for file in given.files.files}
        indexes = [file for file in given.files.files if os.path.basename(file.name) == INDEX]
        if not indexes:
            raise SchemaError(f"{given.files.root}: expected a folder of MDS with {INDEX}, found none")
        self._shards: dict[str, MdsShard] = {}
        self.files: list[FileInfo] = []
        for index in indexes:
            folder = index.name.rpartition("/")[0]
            for shard in read_index(given.files.read(index)):
                names = [f"{folder}/{name}" if folder else name for name in (shard.name, shard.packed) if name]
                found = next((there[name] for name in names if name in there), None)
                if found is None:
                    given.report.fail(names[0], f"is named by {index.name}, and is not there")
                    continue
                self._shards[found.name] = shard
                self.files.append(found)
        known = {*self._shards, *(index.name for index in indexes)}
        for file in given.files.files:
            if file.name not in known and not self._is_unpacked_twin(file.name):
                given.report.ignore(file.name)
        self._splits = splits_of(given, self.files)
        self._fields: dict[str, Field] = {}

    def _is_unpacked_twin(self, name: str) -> bool:
        """Whether a file is the compressed form of a shard that is there without compression."""
        return any(shard.packed and name.rpartition("/")[2] == shard.packed for shard in self._shards.values())

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        encodings: dict[str, tuple[str, str]] = {}
        skip = set(self._given.columns.skip)
        taken = None if self._given.columns.fields is None else set(self._given.columns.fields)
        for file in files:
            for name, encoding in self._shards[file.name].encodings.items():
                if name in skip or (taken is not None and name not in taken):
                    continue
                known = encodings.setdefault(name, (encoding, file.name))
                if _family(known[0]) != _family(encoding):
                    raise SchemaError(f"column {name!r} is {known[0]} in {known[1]} and {encoding} in {file.name}: "
                                      "ingest them into two datasets, or leave it out with skip=")  # fmt: skip
        self._fields = {name: wanted.get(name) or field_of(name, encoding) for name, (encoding, _) in encodings.items()}
        looked = [name for name, (encoding, _) in encodings.items() if encoding == "json" and name not in wanted]
        if looked:
            self._fields |= self._kinds(files, looked)
        columns = dict(self._fields)
        for name in skip:  # a column that the user leaves out is a column
            if any(name in self._shards[file.name].encodings for file in files):
                columns.setdefault(name, dataclasses.replace(_ANY, optional=True))
        if self._splits and "split" not in columns:
            self._fields["split"] = columns["split"] = wanted.get("split") or Kind("str").field(0)
        return columns

    def _kinds(self, files: Sequence[FileInfo], names: Sequence[str]) -> dict[str, Field]:
        kinds = {name: Kind() for name in names}
        rows = 0
        for file in files:
            shard = self._shards[file.name]
            try:
                with self._opened(file, shard) as opened:
                    for row in read_shard(opened, shard, {name: shard.encodings[name] for name in names}):
                        rows += 1
                        for name, kind in kinds.items():
                            kind.look(row[name])
            except TensorDBError:
                continue  # it fails when its rows are read
        return {name: kind.field(rows) for name, kind in kinds.items()}

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        for file in files:
            yield from chunks_of(file, self._fields, self._rows(file), self._given.report)

    def _rows(self, file: FileInfo) -> Iterator[tuple[str, dict[str, Any], int]]:
        shard = self._shards[file.name]
        columns = {name: encoding for name, encoding in shard.encodings.items() if name in self._fields}
        split, nbytes = {"split": self._splits.get(file.name)}, file.size // max(1, shard.samples)
        ranges = self._given.ranges(file)
        if ranges is not None and file.name.rpartition("/")[2] == shard.packed:
            self._given.report.note(f"{file.name}: it is compressed, so its values were copied")
            ranges = None
        stay = {name for name, encoding in columns.items() if encoding in _AS_IT_IS and as_it_is(self._fields[name])}

        def place(name: str, offset: int, length: int) -> Range | None:
            return ranges(offset, length) if ranges is not None and name in stay else None

        with self._opened(file, shard) as opened:
            for number, row in enumerate(read_shard(opened, shard, columns, None if ranges is None else place)):
                yield str(number), {**split, **row}, nbytes

    @contextlib.contextmanager
    def _opened(self, file: FileInfo, shard: MdsShard) -> Iterator[BinaryIO]:
        with self._given.open(file) as opened:
            is_packed = file.name.rpartition("/")[2] == shard.packed
            yield unpacked(opened, shard.compression, _LARGEST) if is_packed else opened


_ANY: Any = Kind("json").field(0)


def _family(encoding: str) -> str:
    """What of an encoding must be the same in all shards. Images are images."""
    return "image" if encoding.partition(":")[0] in ("jpeg", "png") else encoding

"""What every format of an export has in common."""

from __future__ import annotations

import abc
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tensordb_data.errors import QueryError, SchemaError
from tensordb_data.export.contents import Contents
from tensordb_data.export.output import Entry, Output, write_file
from tensordb_data.export.plan import Plan, Split
from tensordb_data.export.rows import Row
from tensordb_data.export.work import Shard, WorkFolder

_NUMBERED = re.compile(r"-(\d{5})\.(\w+)$")
_OF = re.compile(r"-(\d{5})-of-\d{5}\.(\w+)$")
_MOST_SHARDS = 100_000


class ShardWriter(abc.ABC):
    """Writes one shard. `close` or `abort` ends it."""

    def __init__(self, work: WorkFolder) -> None:
        self._work = work
        self.rows = 0

    @abc.abstractmethod
    def add(self, row: Row) -> bool:
        """Add a sample; False, and nothing is added, if the shard is full. One sample always fits into an empty one.

        Raises:
            SchemaError: The format cannot hold a value of the sample.
        """

    @abc.abstractmethod
    def close(self, split: int) -> Shard:
        """Complete the files."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Let go of open files. What is in them is thrown away later."""


class FolderShard(ShardWriter):
    """A shard of many small files, and lines about them that become one file at the end.

    Args:
        work: The work folder.
        part: The name of the file with the lines.
        limit: Bytes of a shard.
    """

    def __init__(self, work: WorkFolder, part: str, limit: int) -> None:
        super().__init__(work)
        self._limit, self._nbytes = limit, 0
        self._files: list[Entry] = []
        self._lines = Output(work.parts, part)

    def is_full(self, row: Row) -> bool:
        """Whether a sample has no room in this shard any more."""
        more = sum(len(data) for data in row.blobs.values())
        return bool(self.rows) and self._nbytes + more > self._limit

    def write(self, path: str, data: Any) -> None:
        """Write a small file."""
        self._files.append(write_file(self._work.files, path, data))
        self._nbytes += self._files[-1].bytes

    def line(self, text: bytes) -> None:
        """Write a line about a sample."""
        self._lines.write(text)
        self._nbytes += len(text)
        self.rows += 1

    def close(self, split: int) -> Shard:
        part = self._lines.entry()
        self._lines.close()
        return Shard(split, self.rows, self._files, [part])

    def abort(self) -> None:
        self._lines.close()


class Format(abc.ABC):
    """A format.

    Args:
        contents: What to write of each sample.
        shard_bytes: Bytes of a shard; None for what suits the format.
    """

    name: ClassVar[str]
    usual_bytes: ClassVar[int] = 256 << 20
    has_empty_shards: ClassVar[bool] = False
    """Whether a split without samples has a file all the same."""

    def __init__(self, contents: Contents, shard_bytes: int | None) -> None:
        self.contents = contents
        self.shard_bytes = self.usual_bytes if shard_bytes is None else shard_bytes
        self.plan: Plan
        self.check_fields()

    def check_fields(self) -> None:  # noqa: B027
        """Refuse fields that the format cannot hold.

        Raises:
            QueryError: There is such a field.
        """

    def checker(self) -> Callable[[Row], None]:
        """What checks each sample of a plan that is read from its beginning."""
        return self.check

    def check(self, row: Row) -> None:  # noqa: B027
        """Refuse a sample whose index fields the format cannot hold. Its blobs are not there yet.

        Raises:
            SchemaError: It has such a value.
        """

    def begin(self, plan: Plan, work: WorkFolder) -> None:
        """Get ready to write, when the plan is known and what was done before.

        Raises:
            SchemaError: The samples have what the format cannot hold.
        """
        self.plan = plan

    @abc.abstractmethod
    def open(self, work: WorkFolder, split: Split, number: int, first: int) -> ShardWriter:
        """Begin a shard.

        Args:
            work: The work folder.
            split: The split of its samples.
            number: The number of the shard within the split, from 0 on.
            first: How many samples of the whole export are before it.
        """

    def finish(self, work: WorkFolder) -> list[Entry]:
        """Write what belongs to all shards.

        Returns:
            All files of the export. Those of shards may have other names than before.
        """
        return [entry for shard in work.shards for entry in shard.files]

    def undo_finish(self, work: WorkFolder) -> None:
        """Give shards the names that they had before a `finish` that was interrupted."""
        for path in (work.files / "data").glob("*-of-*"):
            path.rename(path.with_name(_OF.sub(r"-\1.\2", path.name)))

    def refuse_blobs(self, names: Sequence[str], why: str) -> None:
        """Refuse some blob fields.

        Raises:
            QueryError: There are some.
        """
        if names:
            raise QueryError(f"format {self.name!r}, field {names[0]!r}, which is {self.contents.fields[names[0]]!r}: "
                             f"{why}; leave it out with fields=, or choose another format")  # fmt: skip


def numbered(work: WorkFolder, splits: Sequence[Split], rename: Callable[[Entry], bool]) -> list[Entry]:
    """Say in the names of shards how many there are of their split: `train-00000.tar` is `train-00000-of-00005.tar`.

    It may be called again after it was interrupted.

    Args:
        work: The work folder.
        splits: The splits.
        rename: Tells the files that get another name.

    Returns:
        All files, with their names.
    """
    counts = [sum(shard.split == n for shard in work.shards) for n in range(len(splits))]
    found = []
    for shard in work.shards:
        for entry in shard.files:
            if not rename(entry):
                found.append(entry)
                continue
            path = _NUMBERED.sub(rf"-\1-of-{counts[shard.split]:05d}.\2", entry.path)
            if (work.files / entry.path).exists():
                (work.files / entry.path).rename(work.files / path)
            found.append(Entry(path, entry.bytes, entry.xxh3))
    return found


def shard_name(split: Split, number: int, suffix: str) -> str:
    """The path of a shard, as long as it is not known how many there are.

    Raises:
        QueryError: There are too many.
    """
    if number >= _MOST_SHARDS:
        raise QueryError(f"shard_bytes: this makes more than {_MOST_SHARDS:,} files: choose larger ones")
    return f"data/{split.name}-{number:05d}.{suffix}"


def renamed(doc: dict[str, Any], path: str) -> dict[str, Any]:
    """A document with the path of its file. What the sample has called it is kept, if that is something else."""
    given = doc.get("file_name")
    kept = {} if given is None or given == path else {"original_file_name": given}
    return {**doc, "file_name": path, **kept}


def place(row: Row) -> str:
    """Which sample this is, for messages."""
    return f"sample {row.sample.id} of {row.sample.dataset!r}"


def too_large(row: Row, what: str) -> SchemaError:
    """The error for a sample that no shard has room for."""
    return SchemaError(f"{place(row)}: {what}; leave it out with a filter, or choose another format")


def lines_of(work: WorkFolder, split: int) -> Iterator[dict[str, Any]]:
    """The documents in the parts of a split, in order."""
    for part in parts_of(work, split):
        with open(part, "rb") as file:
            yield from map(json.loads, file)


def parts_of(work: WorkFolder, split: int) -> list[Path]:
    """The parts of the shards of a split, in order."""
    return [work.parts / part.path for shard in work.shards if shard.split == split for part in shard.parts]

"""How to write a reader: what a source is, and what it gives.

An opener makes a source of what the user gave. It is a function of a `Given`, and may be registered under a name
(`tensordb_data.ingest.register`). A source lists its files, says which columns its rows have, and yields rows as
columns, in chunks:

    class Lines:                                     # one row for each line of a text file
        def __init__(self, given):
            self.id, self.files = given.listing()    # local files, with sizes and stamps
            self._given = given

        def schema(self, wanted, files):
            return {"text": wanted.get("text") or Scalar("str")}

        def rows(self, files):
            for file in files:
                with self._given.open(file) as lines:
                    yield Chunk({"text": [line.decode() for line in lines]}, file=file.name, done=[file])

The rest is the same for all sources: which columns become which fields, what identifies a row, checks of images, what
was known before, and that a killed ingest goes on. A source need not know any of it. It reports what it cannot read to
`given.report` (`fail(where, why)`, `ignore(name)`, `note(text)`) and goes on with the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tensordb_data.schema import Field

CHUNK_BYTES = 16 * 2**20
CHUNK_ROWS = 4096
CHUNK_REFERENCED = 2**30
"""Bytes of files that stay where they are, of which nothing is kept in memory."""


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """One file of a source, or something else that is read as a whole."""

    name: str
    """What it is called below the source, with slashes. It must not change when the source is moved."""
    size: int = 0
    """Its bytes."""
    stamp: str | None = None
    """Changes when the file does: its time, or an ETag. With None, the file is always read again."""


@dataclasses.dataclass
class Chunk:
    """Some rows, as columns.

    About 4,096 rows or 16 MB at most are good. A column is an array (n, …) or a list of n values; None is a missing
    value. Encoded images, audio and other blobs are bytes, or a `pathlib.Path` that is read later; of a file that
    stays where it is, a `Range` of it.
    """

    columns: dict[str, Any]
    keys: Sequence[bytes] | None = None
    """The place of each row within the source, which tells it from all others, such as the path of its file. With None,
    rows are known by their content, and equal ones by their number."""
    file: str | None = None
    """The name of the file of all these rows. With None, each row is a file, whose name is its key."""
    where: Sequence[str] | None = None
    """How errors speak of each row; by default by `file`, or key, and `first`."""
    first: int = 0
    """The number of the first row within the file."""
    nbytes: int = 0
    """Bytes of the source that these rows took, for progress."""
    done: Sequence[FileInfo] = ()
    """The files that end with these rows. If nothing of a file has failed, it is not read again before it changes."""
    old_keys: Callable[[], Sequence[bytes]] | None = None
    """Makes the keys of version 0.1, by which samples of that time are found. New readers have none."""

    @property
    def count(self) -> int:
        """How many rows there are."""
        if self.keys is not None:
            return len(self.keys)
        return max((len(column) for column in self.columns.values()), default=0)

    def name(self, row: int) -> str:
        """How errors speak of a row."""
        if self.where is not None:
            return self.where[row]
        if self.file is None:
            return self.keys[row].decode(errors="replace") if self.keys is not None else f"row {self.first + row}"
        return f"{self.file}, row {self.first + row}" if self.file else f"row {self.first + row}"


class Source(Protocol):
    """Something to ingest. See the text of this module."""

    @property
    def id(self) -> str:
        """What tells this source from others, such as its folder. The same in each call."""
        ...

    @property
    def files(self) -> Sequence[FileInfo]:
        """All files, in the order in which they are read."""
        ...

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        """The columns of the rows, by their names in the source.

        Args:
            wanted: The kinds that some columns must have: those of the user, and those that the dataset has already.
                A column that lacks values is made optional.
            files: Those that will be read. The source looks into no others.
        """
        ...

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        """The rows of some of the files, in this order. The other files have not changed since they were read."""
        ...

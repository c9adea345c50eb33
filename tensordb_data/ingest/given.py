"""What an opener gets: the source that the user gave, the options, and the report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from tensordb_data.errors import SchemaError
from tensordb_data.ingest.in_place import MakeRange, Range
from tensordb_data.ingest.places import Files, find_files

if TYPE_CHECKING:
    from tensordb_data.ingest.in_place import InPlace
    from tensordb_data.ingest.options import Columns, Reading
    from tensordb_data.ingest.report import Report
    from tensordb_data.ingest.source import FileInfo

T = TypeVar("T")
R = TypeVar("R")


class Given:
    """What an opener gets.

    Attributes:
        source: What the user gave.
        columns: Options about columns. The engine applies them; a reader may use `names` and `types`.
        reading: Options about reading.
        report: Gets what cannot be read.
        labels: Gives the labels that classes of the dataset have already, by class.
        memo: What a reader keeps from one pass over its files to the next.
        base: The folder below which files are that a column names, unless the user has said so. A reader may set it;
            None for a source that is not on this machine.
        in_place: Where files stay, if they do: then a blob may be a `Range`.
    """

    def __init__(
        self,
        source: Any,
        columns: Columns,
        reading: Reading,
        report: Report,
        pool: ThreadPoolExecutor,
        labels: Callable[[], Mapping[str, int]],
    ) -> None:
        self.source, self.columns, self.reading, self.report = source, columns, reading, report
        self.labels = labels
        self.base: Path | None = Path(".")
        self.memo: dict[str, Any] = {}
        self.in_place: InPlace | None = None
        self._pool = pool
        self._files: Files | None = None

    @property
    def is_place(self) -> bool:
        """Whether the source is a path, a URL or a list of these, and nothing in memory."""
        source = self.source
        if isinstance(source, (str, os.PathLike)):
            return True
        if not isinstance(source, (list, tuple)) or not source:
            return False
        return all(isinstance(part, (str, os.PathLike)) for part in source)

    @property
    def files(self) -> Files:
        """The files at the place that the user gave.

        Raises:
            SchemaError: There are none, or the source is no place.
        """
        if self._files is None:
            if not self.is_place:
                raise SchemaError(f"expected the path of a file or folder, found {type(self.source).__name__}")
            self._files = find_files(self.source, self.report.fail)
        return self._files

    def open(self, file: FileInfo) -> BinaryIO:
        """Open a file to be read, at any place in it.

        Raises:
            StorageError: It cannot be read.
        """
        return self.files.open(file)

    def whole(self, file: FileInfo) -> Any:
        """A whole file as the value of a blob: its bytes; or a `Range`, if it stays where it is.

        Raises:
            StorageError: It cannot be read.
        """
        folder = self.files.folder
        if self.in_place is None or folder is None:
            return self.files.read(file)
        return self.in_place.whole(folder / file.name)

    def ranges(self, file: FileInfo) -> MakeRange | None:
        """What makes ranges of a file, of offset and length; None if its bytes are copied.

        Raises:
            StorageError: The file cannot be looked at.
        """
        folder = self.files.folder
        if self.in_place is None or folder is None:
            return None
        root, foreign = self.in_place.file(folder / file.name)
        return lambda offset, length: Range(root, foreign, offset, length)

    def choose(self, suffixes: Iterable[str]) -> list[FileInfo]:
        """The files with one of some suffixes, or all if there is one file. Others are noted as ignored."""
        files = self.files.files
        if len(files) == 1:
            return list(files)
        ends = tuple(suffixes)
        chosen = [file for file in files if file.name.lower().endswith(ends)]
        there = {file.name for file in chosen}
        for file in files:
            if file.name not in there:
                self.report.ignore(file.name)
        return chosen

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterable[R]:
        """Call a function in the threads of the ingest; the results come in order."""
        return self._pool.map(function, items)

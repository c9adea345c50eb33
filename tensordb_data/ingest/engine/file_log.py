"""What the warehouse knows of the files of a source: those that are in, as they were then.

    sources: {_id, p: project, dataset, s: source, o: options, born, del,
              files: [{f: name, z: bytes, t: stamp, n: rows}]}

A document is written in the transaction that commits the last rows of its files. So a file that is named here is in,
whatever happens, and is read again only if it has changed. An entry counts only for the dataset as it is: it was made
anew since (`born`), or samples were deleted (`del`), or the rows are read with other options (`o`), all files are read
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bson import ObjectId

from tensordb_data.common.chunks import chunks
from tensordb_data.ingest.source import FileInfo
from tensordb_data.mongo.retry import read_all

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents.samples import DatasetDocument

_PAGE = 2000
"""Files in one document: names of the longest kind stay below its limit of 16 MB."""


class _Entry(NamedTuple):
    page: ObjectId
    size: int
    stamp: str | None
    rows: int
    valid: bool


class FileLog:
    """The files of one source, as they were when they came in.

    Args:
        warehouse: The warehouse.
        dataset: The dataset.
        source: The id of the source.
        options: A digest of the options that decide which rows it gives.
    """

    def __init__(self, warehouse: Warehouse, dataset: str, source: str, options: bytes) -> None:
        self._warehouse = warehouse
        self._scope = {"p": warehouse.project, "dataset": dataset, "s": source}
        about: DatasetDocument | None = warehouse.index["datasets"].find_one({"_id": warehouse.datasets.id(dataset)})
        self._about: dict[str, Any] = {"o": options, "born": about and about["created"]}
        self._deletions = 0 if about is None else about.get("del", 0)
        self._entries: dict[str, _Entry] = {}
        for page in read_all(warehouse.index["sources"].find(self._scope).sort("_id", 1)):
            valid = page.get("del") == self._deletions and all(page.get(k) == v for k, v in self._about.items())
            for file in page["files"]:
                self._entries[file["f"]] = _Entry(page["_id"], file["z"], file["t"], file["n"], valid)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def begin(self) -> None:
        """Take up the dataset as it is now that it exists."""
        index, id = self._warehouse.index, self._warehouse.datasets.id(self._scope["dataset"])
        about = index["datasets"].find_one({"_id": id}, {"created": 1})
        self._about["born"] = None if about is None else about["created"]
        index.make("sources")

    def is_in(self, file: FileInfo) -> bool:
        """Whether a file is in, and has not changed since."""
        entry = self._entries.get(file.name)
        if entry is None or not entry.valid or file.stamp is None:
            return False
        return (entry.size, entry.stamp) == (file.size, file.stamp)

    def rows_of(self, file: FileInfo) -> int:
        """How many rows of a file are in."""
        entry = self._entries.get(file.name)
        return 0 if entry is None else entry.rows

    def was_in(self, name: str) -> bool:
        """Whether a file was in, as it was at some time."""
        return name in self._entries

    def gone(self, files: Iterable[FileInfo]) -> list[str]:
        """The files that were in, and are not among these."""
        there = {file.name for file in files}
        return [name for name in self._entries if name not in there]

    def enter(self, files: Sequence[FileInfo], rows: Mapping[str, int], session: Any) -> None:
        """In a transaction: note that these files are in.

        Args:
            files: The files.
            rows: How many rows each of them has; 1 if it does not say.
            session: Of the transaction.
        """
        self.remove([file.name for file in files], session)
        for some in chunks(files, _PAGE):
            entries = [{"f": file.name, "z": file.size, "t": file.stamp, "n": rows.get(file.name, 1)} for file in some]
            page = {"_id": ObjectId(), **self._scope, **self._about, "del": self._deletions, "files": entries}
            self._warehouse.index["sources"].insert_one(page, session=session)

    def remove(self, names: Sequence[str], session: Any = None) -> None:
        """Note that some files are not in, as they are now."""
        pages = {self._entries[name].page for name in names if name in self._entries}
        if pages:
            these = {"_id": {"$in": sorted(pages)}}
            out = {"$pull": {"files": {"f": {"$in": list(names)}}}}
            self._warehouse.index["sources"].update_many(these, out, session=session)

    def after_deletion(self) -> None:
        """Let the entries count on, after samples were deleted by the ingest itself."""
        id = self._warehouse.datasets.id(self._scope["dataset"])
        now = self._warehouse.index["datasets"].find_one({"_id": id}, {"del": 1}) or {}
        then = {**self._scope, **self._about, "del": self._deletions}
        self._warehouse.index["sources"].update_many(then, {"$set": {"del": now.get("del", 0)}})

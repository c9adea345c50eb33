"""What takes how much room: blobs by dataset and run, garbage, the cache, the roots, and the index."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymongo.errors import OperationFailure

from tensordb_data.blobs.reader.disk_cache import SegmentCache
from tensordb_data.blobs.stores.base import without_secrets
from tensordb_data.common.html import Html, Shown, paragraph, table
from tensordb_data.common.sizes import show_size
from tensordb_data.common.system.files import occupied
from tensordb_data.common.text_table import text_table
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.warehouse.documents import DOCUMENTS

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_SHOWN = 20


@dataclass(frozen=True)
class RootUse:
    """One place of blobs."""

    id: int
    url: str
    """Without secrets."""
    opened: bool
    """Whether this client may read there."""
    writes: bool
    """Whether new blobs go there."""
    nbytes: int
    """Bytes of the blobs that the index knows there, of all projects."""


@dataclass(frozen=True)
class CacheUse:
    """The cache of this host."""

    folder: Path | None
    nbytes: int
    """Bytes on disk."""
    limit: int | None
    """How many bytes of blobs it may hold; None without a cache."""


@dataclass(frozen=True)
class CollectionUse:
    """What a collection of the database takes on the disk of the server, of all projects."""

    documents: int
    """How many there are."""
    nbytes: int
    """Bytes of the documents, as they are stored."""
    indexes: int
    """Bytes of its indexes."""


@dataclass(frozen=True)
class Storage(Shown):
    """How many bytes there are of what. Blobs are those that the index knows; no store was asked."""

    project: str
    datasets: Mapping[str, int]
    """Bytes of the segments of each dataset, largest first."""
    runs: Mapping[str | None, int]
    """Bytes of tensors by the run that has stored them first, largest first; of parameters without a run and of
    architectures under None. A tensor of several checkpoints counts once."""
    garbage: int
    """Bytes that the last gc found unused, and that a later one will remove."""
    unfinished: int
    """Bytes of segments that are being written, or were when their writer was killed."""
    others: int
    """Bytes of the blobs of other projects."""
    cache: CacheUse
    roots: tuple[RootUse, ...]
    collections: Mapping[str, CollectionUse] = field(default_factory=dict)
    """What the index takes, by collection; empty where the server does not tell."""

    @property
    def nbytes(self) -> int:
        """Bytes of the blobs of this project that are in use."""
        return sum(self.datasets.values()) + sum(self.runs.values())

    def _html(self) -> Html:
        return Html(paragraph(self.head) + "".join(table(*each) for each in self.tables()))

    @property
    def head(self) -> str:
        """The sums, as a sentence."""
        return (
            f"project {self.project!r}: {show_size(self.nbytes)} of blobs, {show_size(self.garbage)} garbage, "
            f"{show_size(self.unfinished)} unfinished, {show_size(self.others)} of other projects"
        )

    def __repr__(self) -> str:
        head = self.head
        return "\n\n".join([head, *(text_table(names, rows, numbers) for names, rows, numbers in self.tables())])

    def tables(self) -> list[tuple[list[str], list[list[Any]], list[str]]]:
        """What is shown: names of columns, rows, and which columns are numbers, of each table."""
        used: list[list[Any]] = [["dataset", name, show_size(n)] for name, n in list(self.datasets.items())[:_SHOWN]]
        runs = list(self.runs.items())[:_SHOWN]
        used += [["run", "(none)" if name is None else name, show_size(n)] for name, n in runs]
        places: list[list[Any]] = [
            [root.id, root.url, show_size(root.nbytes), "yes" if root.opened else "no", "yes" if root.writes else "no"]
            for root in self.roots
        ]
        limit = None if self.cache.limit is None else show_size(self.cache.limit)
        used_here = [str(self.cache.folder), show_size(self.cache.nbytes), limit]
        cache: list[list[Any]] = [used_here] if self.cache.folder else []
        index: list[list[Any]] = [
            [name, f"{use.documents:,}", show_size(use.nbytes), show_size(use.indexes)]
            for name, use in self.collections.items()
            if use.documents
        ]
        found: list[tuple[list[str], list[list[Any]], list[str]]] = [
            (["of", "name", "bytes"], used, ["bytes"]),
            (["root", "place", "bytes", "opened", "for new blobs"], places, ["root", "bytes"]),
            (["cache", "bytes", "at most"], cache, ["bytes", "at most"]),
            (["collection", "documents", "bytes", "indexes"], index, ["documents", "bytes", "indexes"]),
        ]
        return [(names, rows, numbers) for names, rows, numbers in found if rows]

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "project": self.project, "bytes": self.nbytes, "datasets": dict(self.datasets),
            "runs": [{"run": run, "bytes": n} for run, n in self.runs.items()],
            "garbage": self.garbage, "unfinished": self.unfinished, "others": self.others,
            "cache": {
                "folder": None if self.cache.folder is None else str(self.cache.folder), "bytes": self.cache.nbytes,
                "limit": self.cache.limit,
            },
            "roots": [
                {"id": r.id, "url": r.url, "opened": r.opened, "writes": r.writes, "bytes": r.nbytes}
                for r in self.roots
            ],
            "collections": {
                name: {"documents": use.documents, "bytes": use.nbytes, "indexes": use.indexes}
                for name, use in self.collections.items()
            },
        }  # fmt: skip


def projects(warehouse: Warehouse) -> list[str]:
    """See `TensorDB.projects`."""
    where = {"data": "_tdb.p", "params": "_tdb.p", "architectures": "_tdb.p", "jobs": "_tdb.p", "logs": "_tdb.p",
             "runs": "_tdb.p", "frozen": "_tdb.p", "datasets": "_id.p"}  # fmt: skip
    found: set[str] = set()
    for name, path in where.items():
        values = retry_while_unavailable(partial(warehouse.index[name].distinct, path), reads=True)
        found.update(value for value in values if isinstance(value, str))
    return sorted(found)


def storage(warehouse: Warehouse) -> Storage:
    """See `TensorDB.storage`."""
    segments = _grouped(warehouse, "segments", {"p": "$p", "of": "$dataset"}, "$bytes")
    tensors = _grouped(warehouse, "tensors", {"p": "$_id.p", "of": "$run"}, "$n")
    rows = [("dataset", row) for row in segments] + [("run", row) for row in tensors]
    datasets: dict[str, int] = {}
    runs: dict[str | None, int] = {}
    by_root: dict[Any, int] = {}
    sums = {"dying": 0, "gone": 0, "writing": 0, "others": 0}
    for kind, row in rows:
        key, nbytes = row["_id"], int(row["bytes"])
        by_root[key.get("root")] = by_root.get(key.get("root"), 0) + nbytes
        if key.get("p") != warehouse.project:
            sums["others"] += nbytes
        elif (state := str(key.get("state"))) != "live":
            sums[state] = sums.get(state, 0) + nbytes
        elif kind == "dataset":
            datasets[key["of"]] = datasets.get(key["of"], 0) + nbytes
        else:
            runs[key.get("of")] = runs.get(key.get("of"), 0) + nbytes
    return Storage(
        warehouse.project, _largest_first(datasets), _largest_first(runs), sums["dying"] + sums["gone"],
        sums["writing"], sums["others"], _cache(warehouse), tuple(_roots(warehouse, by_root)),
        _collections(warehouse),
    )  # fmt: skip


def _grouped(warehouse: Warehouse, name: str, by: Mapping[str, str], nbytes: str) -> list[dict[str, Any]]:
    group = {"_id": {**by, "state": "$state", "root": "$root"}, "bytes": {"$sum": nbytes}}
    return retry_while_unavailable(
        lambda: list(warehouse.index[name].aggregate([{"$group": group}], allowDiskUse=True)), reads=True
    )


def _largest_first(found: Mapping[Any, int]) -> dict[Any, int]:
    return dict(sorted(found.items(), key=lambda item: (-item[1], str(item[0]))))


def _roots(warehouse: Warehouse, by_root: Mapping[Any, int]) -> list[RootUse]:
    blobs = warehouse.blobs
    return [
        RootUse(
            root["id"], without_secrets(root["url"]), blobs.can_read(root["url"]), i == 0, by_root.get(root["id"], 0)
        )
        for i, root in enumerate(blobs.roots)
    ]


def _cache(warehouse: Warehouse) -> CacheUse:
    folder = warehouse.cache_dir
    if folder is None:
        return CacheUse(None, 0, None)
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it was removed meanwhile
                total += occupied(os.lstat(os.path.join(where, name)))
    return CacheUse(folder, total, SegmentCache(folder, warehouse.cache_bytes).cap)


def _collections(warehouse: Warehouse) -> dict[str, CollectionUse]:
    if not warehouse.index.is_server:
        return {}
    found: dict[str, CollectionUse] = {}
    command = warehouse.index.database.command
    for name in DOCUMENTS:
        try:
            stats = retry_while_unavailable(partial(command, "collStats", name), reads=True)
        except OperationFailure:  # a user without the right to ask
            return {}
        found[name] = CollectionUse(
            int(stats.get("count", 0)), int(stats.get("storageSize", 0)), int(stats.get("totalIndexSize", 0))
        )
    return found

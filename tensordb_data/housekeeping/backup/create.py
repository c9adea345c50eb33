"""Make a backup, while writers, saves and gc go on.

A lease keeps gc from removing anything. Then the index is read under one snapshot of the server, so that it is of one
instant. Then the objects that it names are copied: objects never change, so they are those of that instant. If a gc had
begun to remove one of them just before the lease, the index is read again, which does not name it any more.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bson
from bson import ObjectId
from pymongo.errors import OperationFailure, PyMongoError

from tensordb_data.blobs.keys import is_key
from tensordb_data.blobs.stores.base import Store, without_secrets
from tensordb_data.common.html import Report
from tensordb_data.common.system.private import make_folder
from tensordb_data.errors import StorageError, UnsupportedError
from tensordb_data.housekeeping.backup.documents import file_of, read_documents, write_documents
from tensordb_data.housekeeping.backup.layout import (
    COLLECTIONS,
    FILES,
    FORMAT,
    MANIFEST,
    PIECE,
    Entry,
    Manifest,
    Output,
    line,
    write_manifest,
)
from tensordb_data.mongo.errors import first_line
from tensordb_data.stream.plan.index_snapshot import lacks_snapshot
from tensordb_data.tensors.lease import Lease, LeaseLost

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many of it are done, of how many."""
Doc = Mapping[str, Any]

_ROUNDS = 5
_RENEW = 60.0  # seconds between two renewals of the lease
_PRESENT: Mapping[str, Doc] = {
    "segments": {"state": {"$in": ["live", "dying"]}},
    "tensors": {"state": {"$in": ["live", "dying"]}},
    "tombstones": {"state": "live"},
}
"""The documents whose objects exist. The others are of writers that have not ended."""
_TRANSIENT = frozenset(("leases", "mutations", "passes", "workers", "warehouse"))


@dataclass
class BackedUp(Report):
    """What a backup holds, and what not."""

    folder: str
    documents: dict[str, int] = field(default_factory=dict)
    """How many documents of each collection."""
    objects: int = 0
    bytes: int = 0
    """Bytes of the backup."""
    left_out: list[str] = field(default_factory=list)
    """A line for each thing that is not in the backup."""
    damaged: list[str] = field(default_factory=list)
    """A line for each object that the index names and that is missing: see `fsck`."""


def create(warehouse: Warehouse, to: str | Path, progress: Progress | None) -> BackedUp:
    """See `TensorDB.backup`."""
    if not warehouse.index.is_server:
        raise UnsupportedError("mongomock has no snapshots, so a backup would be of no one state: use a real server")
    folder = _made(warehouse, to)
    with Lease(warehouse, ObjectId(), backup=True) as lease:
        run = _Backup(warehouse, folder, lease, progress or (lambda what, done, total: None))
        try:
            return run.make()
        except LeaseLost:
            raise StorageError("this backup was silent for half an hour, and a gc has gone on: make it again") from None


def _made(warehouse: Warehouse, to: str | Path) -> Path:
    folder = Path(to).expanduser().absolute()
    own = warehouse.address.folder
    if own is not None and folder.resolve().is_relative_to(own.resolve()):
        raise StorageError(f"{folder} is within the warehouse that is backed up: name a folder elsewhere")
    try:
        if folder.exists() and any(folder.iterdir()):
            unfinished = "" if (folder / MANIFEST).exists() else " (a backup that was not finished can be removed)"
            raise StorageError(f"{folder} is not empty{unfinished}: name a new folder for the backup")
        make_folder(folder)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot make {folder} for the backup: {error.strerror or error}") from None
    return folder


class _Vanished(Exception):
    """A gc has removed an object, and its document."""


class _Backup:
    def __init__(self, warehouse: Warehouse, folder: Path, lease: Lease, progress: Progress) -> None:
        self._warehouse, self._folder, self._lease, self._progress = warehouse, folder, lease, progress
        self._mongo = warehouse.index.database
        self._renewed = time.monotonic()
        self._report = BackedUp(str(folder))
        self._about: Doc = self._mongo["warehouse"].find_one({"_id": "warehouse"}) or {"roots": []}
        self._places = {root["id"]: root for root in self._about["roots"]}
        self._copied: dict[int, Store] = {}
        for id, root in self._places.items():
            reason = self._reason(root["url"])
            if reason is None:
                self._copied[id] = warehouse.blobs.store(id)
            else:
                self._report.left_out.append(f"blobs in {without_secrets(root['url'])}: {reason}")
        self._foreign = 0

    def _reason(self, url: str) -> str | None:
        """Why the blobs of a root are left out; None if they are not."""
        scheme = url.partition("://")[0] if "://" in url else "file"
        if not self._warehouse.blobs.can_read(url):
            return "this client was not told of that place (see `tensordb roots add`)"
        if scheme not in ("file", "gridfs"):
            return "an object store keeps copies by itself, and stays where it is; its versions and rules protect it"
        return None

    def make(self) -> BackedUp:
        for _ in range(_ROUNDS):
            self._dump()
            try:
                entries = self._copy()
                break
            except _Vanished:
                self._hold()
        else:
            raise StorageError("objects go while they are copied: end what deletes them, and make the backup again")
        return self._finish(entries)

    # The index

    def _dump(self) -> None:
        for round_ in range(_ROUNDS):
            for name in COLLECTIONS:
                (self._folder / file_of(name)).unlink(missing_ok=True)
            there = [name for name in COLLECTIONS if name in self._mongo.list_collection_names()]
            try:
                with self._mongo.client.start_session(snapshot=True) as session:
                    self._indexes = {name: self._dumped(name, session, len(there)) for name in there}
                return
            except OperationFailure as error:
                if not lacks_snapshot(error) or round_ == _ROUNDS - 1:
                    raise StorageError(
                        f"the server gives no snapshot for the time that it takes to read the index "
                        f"({first_line(error)}): raise its minSnapshotHistoryWindowInSeconds"
                    ) from None

    def _dumped(self, name: str, session: Any, total: int) -> tuple[Entry, int, int]:
        order = [("key", 1)] if name == "tensors" else None
        found = self._mongo[name].find_raw_batches(
            dict(_PRESENT.get(name, {})), sort=order, batch_size=10_000, session=session, allow_disk_use=True
        )
        done = 0

        def batches() -> Iterator[bytes]:
            nonlocal done
            for batch in found:
                self._hold_sometimes()
                done += len(batch)
                self._progress(f"index: {name}", done, 0)
                yield batch

        with Output(self._folder, file_of(name)) as output:
            count, nbytes = write_documents(output, batches())
        return output.entry(), count, nbytes

    def _documents(self, name: str) -> Iterator[dict[str, Any]]:
        if name in self._indexes:
            entry, _, nbytes = self._indexes[name]
            yield from map(bson.decode, read_documents(self._folder, entry, nbytes))

    # The blobs

    def _named(self) -> Iterator[tuple[str, Doc, int | None]]:
        """The objects that the index names: collection, document, and bytes if they are known. Each once."""
        for doc in self._documents("segments"):
            yield "segments", doc, doc.get("bytes")
        for doc in self._documents("tombstones"):
            yield "tombstones", doc, None
        last = None
        for doc in self._documents("tensors"):
            if (doc.get("key"), doc.get("root")) != last:
                last = doc.get("key"), doc.get("root")
                yield "tensors", doc, None

    def _copy(self) -> list[Entry]:
        total = sum(self._indexes[name][1] for name in ("segments", "tombstones") if name in self._indexes)
        known = {entry.path: entry for entry in getattr(self, "_entries", ())}
        self._entries: list[Entry] = []
        self._report.damaged, self._foreign = [], 0
        wanted: set[str] = set()
        for done, (name, doc, nbytes) in enumerate(self._named()):
            self._progress("blobs", done, max(total, done))
            root, key = doc.get("root"), doc.get("key")
            store = self._copied.get(root) if isinstance(root, int) else None
            if store is None or not is_key(key):
                self._foreign += root not in self._places or not is_key(key)
                continue
            path = f"blobs/{key}"
            if path in wanted:
                continue
            try:
                entry = known.get(path) or self._object(store, str(key), path)
                if nbytes is not None and nbytes != entry.nbytes:
                    raise StorageError(f"expected {nbytes!r:.30} bytes, found {entry.nbytes:,}")
            except StorageError as error:
                (self._folder / path).unlink(missing_ok=True)
                if not self._still_named(name, doc):
                    raise _Vanished from None
                self._report.damaged.append(f"{without_secrets(store.url)}/{key}: {error}")
                continue
            wanted.add(path)
            self._entries.append(entry)
        for path in set(known) - wanted:
            (self._folder / path).unlink(missing_ok=True)
        return self._entries

    def _object(self, store: Store, key: str, path: str) -> Entry:
        with Output(self._folder, path) as output:
            for piece in self._read(store, key):
                output.write(piece)
                self._hold_sometimes()
        return output.entry()

    def _read(self, store: Store, key: str) -> Iterable[bytes | memoryview]:
        local = store.local_path(key)
        if local is None:
            size = store.size(key)
            for at in range(0, size, PIECE):
                yield from store.get_ranges(key, [at], [min(PIECE, size - at)])
            return
        try:
            with open(local, "rb", 0) as file:
                while piece := file.read(PIECE):
                    yield piece
        except OSError as error:
            raise StorageError(f"cannot read {local}: {error.strerror or error}") from None

    def _still_named(self, name: str, doc: Doc) -> bool:
        at = {"key": doc["key"], "root": doc["root"]} if name == "tensors" else {"_id": doc["_id"]}
        return self._mongo[name].find_one({**at, **_PRESENT[name]}, {"_id": 1}) is not None

    # All

    def _hold_sometimes(self) -> None:
        if time.monotonic() - self._renewed > _RENEW:
            self._hold()

    def _hold(self) -> None:
        with contextlib.suppress(PyMongoError):  # the next one may reach the server; the lease lasts for half an hour
            self._lease.hold(None)
            self._renewed = time.monotonic()

    def _finish(self, entries: list[Entry]) -> BackedUp:
        report = self._report
        report.left_out += self._what_is_left_out()
        report.documents = {name: count for name, (_, count, _) in self._indexes.items()}
        report.objects = len(entries)
        everything = [*(entry for entry, _, _ in self._indexes.values()), *entries]
        with Output(self._folder, FILES) as output:
            for entry in everything:
                output.write(line(entry))
        files = output.entry()
        report.bytes = files.nbytes + sum(entry.nbytes for entry in everything)
        self._lease.hold(None)  # or something may have gone that was still to be copied
        roots = [int(root["id"]) for root in self._about["roots"]]
        manifest = Manifest(
            format=FORMAT,
            made=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            warehouse=int(self._about["format"]),
            root=next((id for id in roots if id in self._copied), max(roots) + 1),
            roots=[id for id in roots if id in self._copied],
            others=[
                {"id": id, "url": without_secrets(root["url"])}
                for id, root in self._places.items()
                if id not in self._copied
            ],
            documents={name: [count, nbytes] for name, (_, count, nbytes) in self._indexes.items()},
            objects=report.objects,
            bytes=report.bytes,
            files={"bytes": files.nbytes, "sha256": files.sha256},
            left_out=report.left_out,
            damaged=report.damaged,
        )
        write_manifest(self._folder, manifest)
        return report

    def _what_is_left_out(self) -> Iterator[str]:
        buckets = {root["url"].partition("://")[2].strip("/") or "blobs"
                   for root in self._places.values() if root["url"].startswith("gridfs://")}  # fmt: skip
        of_blobs = {f"{bucket}.{part}" for bucket in buckets for part in ("files", "chunks")}
        names = sorted({*self._mongo.list_collection_names()} - {*COLLECTIONS, *_TRANSIENT} - of_blobs)
        yield from (f"collection {name}: it is not one of a warehouse" for name in names if name[:7] != "system.")
        if self._foreign:
            yield f"{self._foreign:,} objects whose key or place is not one of ours: `tensordb fsck` names them"
        lists = [roots for doc in self._documents("segments") if isinstance(roots := doc.get("roots"), list)]
        names_of_roots = {str(name) for roots in lists for name in roots}
        for name in sorted(names_of_roots):
            yield (
                f"files below the root {name!r}, into which samples point: they stay where they are; adopt() of a "
                "Selection copies them into the warehouse"
            )
        for doc in self._documents("datasets"):
            for each in doc.get("open") or ():
                yield (
                    f"the rest of {each.get('kind')} {each.get('id')} of dataset {doc['_id'].get('d')!r}, which was "
                    "under way"
                )

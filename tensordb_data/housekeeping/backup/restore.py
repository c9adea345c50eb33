"""Restore a backup into an empty folder or database: all of it, or nothing that can be opened.

Before anything else, the target is marked: a database by its warehouse document, whose format is "restoring", and a
folder by a file, too. Whatever opens it meanwhile, or after a kill, refuses it. The mark is replaced at the very end. A
restore into a marked target begins anew.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bson
import bson.errors
from bson import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.write_concern import WriteConcern

from tensordb_data.blobs.keys import FOLDERS, is_key
from tensordb_data.blobs.stores.base import Store, without_secrets
from tensordb_data.blobs.stores.open import open_store
from tensordb_data.common.bson_values import DATETIMES
from tensordb_data.common.folder_identity import FolderIdentity
from tensordb_data.common.html import Report
from tensordb_data.common.system.files import sync_folder
from tensordb_data.common.system.private import make_folder
from tensordb_data.embedded.paths import locate, write_json
from tensordb_data.embedded.session import Session
from tensordb_data.errors import ConnectError, CorruptBlobError, StorageError, UnsupportedError
from tensordb_data.housekeeping.backup.documents import file_of, read_documents
from tensordb_data.housekeeping.backup.layout import (
    COLLECTIONS,
    Entry,
    Manifest,
    pieces,
    read_files,
    read_manifest,
)
from tensordb_data.mongo.address import Address
from tensordb_data.mongo.client import open_client
from tensordb_data.mongo.errors import first_line
from tensordb_data.warehouse.catalog import FORMATS, RESTORING, resolve_blobs
from tensordb_data.warehouse.collection_indexes import INDEXES, make_indexes

Progress = Callable[[str, int, int], None]
_BATCH = 8 << 20  # bytes of documents that are sent at once
_MANY = 10_000
_WITH_ROOT = frozenset(("segments", "tensors", "tombstones"))
_RAW: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument, datetime_conversion=DATETIMES)


@dataclass
class Restored(Report):
    """What a restore has brought back, and what not."""

    made: str
    """When the backup was made, in UTC."""
    documents: dict[str, int] = field(default_factory=dict)
    """How many documents of each collection."""
    objects: int = 0
    bytes: int = 0
    """Bytes of the files that were read."""
    blobs: str = ""
    """Where the blobs are."""
    left_out: list[str] = field(default_factory=list)
    """A line for each thing that is not in the backup."""
    damaged: list[str] = field(default_factory=list)
    """A line for each object that was missing when the backup was made."""


def restore(backup: str | Path, address: Address, blobs: str | Path | None, progress: Progress | None) -> Restored:
    """See `TensorDB.restore`."""
    folder = Path(backup).expanduser().absolute()
    manifest = read_manifest(folder)
    if manifest.warehouse not in FORMATS:
        raise StorageError(f"{folder} is a backup of a warehouse of format {manifest.warehouse}, and this version "
                           f"reads formats {', '.join(map(str, FORMATS))}: upgrade tensordb-data")  # fmt: skip
    if address.client is not None and type(address.client).__module__.startswith("mongomock"):
        raise UnsupportedError("a backup is restored into a folder or on a real server, and this is mongomock")
    entries = sum(1 for _ in read_files(folder, manifest))  # each is there, and has its size, before anything is made
    opened = _in_folder if address.folder is not None else _on_server
    with opened(address, manifest) as mongo:
        run = _Restore(folder, manifest, entries, mongo, address.folder, progress or (lambda what, done, total: None))
        return run.all(_place(address, blobs))


def _place(address: Address, blobs: str | Path | None) -> str:
    """The place of the restored blobs, as the database records it."""
    if blobs is None:
        return "gridfs://" if address.folder is None else "./blobs"
    url = resolve_blobs(blobs, address.folder)
    if url.startswith("memory://"):
        raise StorageError("blobs= is a place that lasts; found memory://")
    return url


@contextlib.contextmanager
def _in_folder(address: Address, manifest: Manifest) -> Iterator[Any]:
    """The database of a new folder, whose server runs meanwhile."""
    assert address.folder is not None
    layout = locate(address.folder)
    try:
        if layout.folder.exists() and any(layout.folder.iterdir()) and not layout.restoring.exists():
            raise StorageError(f"{layout.folder} is not empty: a backup is restored into a new folder")
        needed = manifest.bytes + sum(nbytes for _, nbytes in manifest.documents.values())
        free = shutil.disk_usage(FolderIdentity.nearest(layout.folder).path).free
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot restore into {layout.folder}: {error.strerror or error}") from None
    if needed > free:
        raise StorageError(f"{layout.folder} has {free:,} bytes free, and the backup needs about {needed:,}: make room,"
                           " or choose another disk")  # fmt: skip
    make_folder(layout.folder)
    write_json(layout.restoring, {"made": manifest.made})
    sync_folder(layout.folder)
    layout.make()
    with Session(layout) as session, MongoClient[dict[str, Any]](session.uri, w="majority") as client:
        yield client[address.database]
    layout.restoring.unlink()
    sync_folder(layout.folder)


@contextlib.contextmanager
def _on_server(address: Address, manifest: Manifest) -> Iterator[Any]:
    """The database of an address."""
    client = open_client(address)
    try:
        yield client.get_database(address.database, write_concern=WriteConcern("majority"))
    finally:
        if address.client is None:
            client.close()


class _Restore:
    def __init__(
        self, folder: Path, manifest: Manifest, entries: int, mongo: Any, base: Path | None, progress: Progress
    ) -> None:
        self._folder, self._manifest, self._total, self._mongo = folder, manifest, entries, mongo
        self._base, self._progress = base, progress
        self._report = Restored(manifest.made, left_out=manifest.left_out, damaged=manifest.damaged)

    def all(self, url: str) -> Restored:
        """Bring everything back, with the blobs at a place."""
        store = open_store(url, base=self._base, database=self._mongo)
        try:
            self._mark(url, store)
            for done, entry in enumerate(read_files(self._folder, self._manifest)):
                self._progress("files", done, self._total)
                if entry.key is None:
                    self._documents(entry)
                else:
                    self._object(store, entry)
            self._progress("files", self._total, self._total)
            self._check_complete()
            for name in INDEXES:
                make_indexes(self._mongo, name)
            roots = [{"id": self._manifest.root, "url": url}, *self._manifest.others]
            whole = {"_id": "warehouse", "format": self._manifest.warehouse, "roots": roots}
            self._mongo["warehouse"].replace_one({"_id": "warehouse"}, whole)
        except (PyMongoError, bson.errors.BSONError) as error:
            raise StorageError(f"the database refused what is in the backup, which may be damaged: {first_line(error)}"
                               "; the restore is not complete, and can be made again") from None  # fmt: skip
        finally:
            store.close()
        self._report.blobs = without_secrets(url)
        return self._report

    def _mark(self, url: str, store: Store) -> None:
        """Mark the database, and empty it of what a restore has left there that was killed."""
        names = self._mongo.list_collection_names()
        mark = {"_id": "warehouse", "format": RESTORING, "blobs": url}
        found = self._mongo["warehouse"].find_one({"_id": "warehouse"}) if "warehouse" in names else None
        if self._base is None and names and (found is None or found.get("format") != RESTORING):
            raise ConnectError(f"the database {self._mongo.name!r} is not empty: a backup is restored into a new one")
        before = found or {}
        places = [before.get("blobs"), *(root["url"] for root in before.get("roots", ())[:1])]
        again = url in places  # a folder that is marked may have its own warehouse document already
        # The mark is in the database, where others can write. So nothing is removed for its sake: what a killed restore
        # has left has the keys of the backup, and is written once more.
        own = {entry.key for entry in read_files(self._folder, self._manifest)} if again else set()
        if any(is_key(key) and key not in own for folder in FOLDERS for key, _ in store.list(f"{folder}/")):
            raise StorageError(
                f"{without_secrets(url)} holds blobs that are not of this backup: name an empty place for those of the"
                " backup, or remove what a restore of another one has left there"
            )
        if found is None:
            try:
                self._mongo["warehouse"].insert_one(mark)
            except DuplicateKeyError:
                raise ConnectError(f"somebody else uses the database {self._mongo.name!r} just now") from None
        else:
            self._mongo["warehouse"].replace_one({"_id": "warehouse"}, mark)
        for name in COLLECTIONS:
            self._mongo[name].drop()

    def _object(self, store: Store, entry: Entry) -> None:
        # Only bytes that are there are held: the file has the size that is named, which was looked at.
        store.put(str(entry.key), list(pieces(self._folder, entry)))
        self._report.objects += 1
        self._report.bytes += entry.nbytes

    def _documents(self, entry: Entry) -> None:
        name = next(each for each in COLLECTIONS if file_of(each) == entry.path)
        _, limit = self._manifest.documents.get(name, [0, 0])
        batch: list[RawBSONDocument | dict[str, Any]] = []
        count = nbytes = 0
        for raw in read_documents(self._folder, entry, limit):
            batch.append(self._document(name, raw))
            count, nbytes = count + 1, nbytes + len(raw)
            if nbytes > _BATCH or len(batch) == _MANY:
                self._mongo[name].insert_many(batch, ordered=False)
                batch, nbytes = [], 0
        if batch:
            self._mongo[name].insert_many(batch, ordered=False)
        self._report.documents[name] = count
        self._report.bytes += entry.nbytes

    def _document(self, name: str, raw: bytes) -> RawBSONDocument | dict[str, Any]:
        """A document as it is stored here: all blobs have one place, and times of another cluster mean nothing."""
        doc = RawBSONDocument(raw, _RAW)
        if "_id" not in doc:
            raise CorruptBlobError(f"{self._folder / file_of(name)} holds a document without an _id")
        if name in _WITH_ROOT:
            changed = {**doc, "root": self._root(doc.get("root"))}
            if isinstance(doc.get("objects"), list):
                changed["objects"] = [
                    {**at, "root": self._root(at.get("root"))} for at in doc["objects"] if isinstance(at, Mapping)
                ]
            return changed
        return (
            {key: value for key, value in doc.items() if key != "calm"} if "calm" in doc and name == "datasets" else doc
        )

    def _root(self, id: Any) -> Any:
        return self._manifest.root if isinstance(id, int) and id in self._manifest.roots else id

    def _check_complete(self) -> None:
        expected = {name: count for name, (count, _) in self._manifest.documents.items()}
        if (self._report.documents, self._report.objects) != (expected, self._manifest.objects):
            raise CorruptBlobError(
                f"the backup names {sum(expected.values()):,} documents and {self._manifest.objects:,} objects, and "
                f"holds {sum(self._report.documents.values()):,} and {self._report.objects:,}"
            )

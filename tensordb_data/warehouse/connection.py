"""The connection of one process to a warehouse: client, embedded server, blob stores and reader."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pymongo.write_concern import WriteConcern

from tensordb_data.blobs.segments.references import is_reference, references_of
from tensordb_data.common.bson_values import DATETIMES
from tensordb_data.common.chunks import chunks
from tensordb_data.common.folder_identity import FolderIdentity
from tensordb_data.common.system.fork import at_fork
from tensordb_data.errors import ConnectError, StorageError
from tensordb_data.mongo.address import CONNECT_SECONDS, Address
from tensordb_data.mongo.client import open_client
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.mongo.transactions import StaleTransactionGuard
from tensordb_data.warehouse.collection_indexes import make_indexes
from tensordb_data.warehouse.read_only import ReadOnlyDatabase, ReadOnlyStore
from tensordb_data.warehouse.roots import OpenedRoots, not_opened

if TYPE_CHECKING:
    from pathlib import Path

    from tensordb_data.blobs.reader.reader import BlobReader
    from tensordb_data.blobs.stores.base import Store

T = TypeVar("T")

_IDS = 5000


class Connection:
    """The connection of one process. After a fork, the child makes another."""

    def __init__(self, address: Address, opened: OpenedRoots) -> None:
        opened.check_folders()
        self.pid = os.getpid()
        self.folder, self._opened = address.folder, opened
        self.is_server = not type(address.client).__module__.startswith("mongomock")
        self._lock = threading.RLock()
        self._stores: dict[int, Store] = {}
        self._urls: dict[int, str] = {}
        self._reader: BlobReader | None = None
        self._owned = address.client is None
        self.client: Any = open_client(address)
        self._place = None if address.folder is None else FolderIdentity.nearest(address.folder)
        concern = WriteConcern("majority") if self.is_server else None
        # Another tool may write dates that Python has not. One of them is no reason to lose all that is read with it.
        codec = self.client.codec_options.with_options(datetime_conversion=DATETIMES) if self.is_server else None
        self.mongo: Any = self.client.get_database(address.database, codec_options=codec, write_concern=concern)
        if address.read_only:
            self.mongo = ReadOnlyDatabase(self.mongo)
        self._read_only = address.read_only
        self._indexed: set[str] = set()

    def collection(self, name: str) -> Any:
        """A collection, with its indexes. They are made when it is first used, if they are not there."""
        if name not in self._indexed:
            if not self._read_only:
                # A primary may be lost in the middle, and to make what is there does nothing.
                retry_while_unavailable(lambda: make_indexes(self.mongo, name), CONNECT_SECONDS)
            self._indexed.add(name)
        return self.mongo[name]

    def transaction(self, fn: Callable[[Any], T]) -> T:
        """Run `fn(session)` in a transaction, and again if it meets a conflict.

        Raises:
            StorageError: The folder of the embedded warehouse is not there any more.
        """
        if not self.is_server:
            return fn(None)
        with self.client.start_session() as session:
            body = StaleTransactionGuard(self.client, fn)
            self.check_place()
            result: T = session.with_transaction(body, write_concern=WriteConcern("majority"))
            self.check_place()  # the server does not notice that its files were moved or deleted
            return result

    def check_place(self) -> None:
        if self._place is not None:
            self._place.check()

    def store(self, root: int) -> Store:
        """The blob store of a registered root.

        Raises:
            StorageError: The root is not registered, or this client was not told of it.
        """
        with self._lock:
            if root not in self._stores:
                from tensordb_data.blobs.stores.open import open_store

                url = self.url(root)
                if url is None:
                    raise StorageError(f"blob root {root!r} is not registered in this warehouse; found {self._urls}")
                if not self._opened.reads(url, self.folder):
                    raise not_opened(url)
                self.check_place()
                store = open_store(url, base=self.folder, database=self.mongo)
                if url.startswith("memory://"):
                    _keep_with(self.client, store)
                self._stores[root] = cast("Store", ReadOnlyStore(store)) if self._read_only else store
            return self._stores[root]

    def url(self, root: int) -> str | None:
        """The URL of a root as the database has it; None if it is not registered."""
        with self._lock:
            if root not in self._urls:
                (doc,) = self._read("warehouse", ["warehouse"]) or [{"roots": []}]
                self._urls = {entry["id"]: entry["url"] for entry in doc["roots"]}
            return self._urls.get(root)

    def replace_store(self, root: int, store: Store) -> None:
        """Use this store for a root from now on."""
        with self._lock:
            self._stores[root] = store

    def reader(self, cache: Path | None, cache_bytes: int | None) -> BlobReader:
        """The reader of this process; it keeps remote blobs in the folder `cache`."""
        with self._lock:
            if self._reader is None:
                from tensordb_data.blobs.reader.disk_cache import SegmentCache
                from tensordb_data.blobs.reader.reader import BlobReader

                kept = None if cache is None else SegmentCache(cache / "segments", cache_bytes)
                self._reader = BlobReader(
                    self._segments, self.store, self._references, root=self._opened.root, cache=kept
                )
            return self._reader

    def _references(self, ids: Sequence[Any], fields: Sequence[str]) -> Mapping[Any, Mapping[str, Any]]:
        found: dict[Any, Mapping[str, Any]] = {}
        projection = {f"_tdb.b.{name}": 1 for name in fields}
        for some in chunks(list(ids), _IDS):
            for doc in self._read("data", some, projection):
                parts = references_of(doc)
                found[doc["_id"]] = {name: part for name, part in parts.items() if is_reference(part)}
        return found

    def _segments(self, ids: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
        return self._read("segments", ids)

    def _read(self, collection: str, ids: Sequence[Any], projection: Mapping[str, int] | None = None) -> list[Any]:
        """Read documents in the middle of a stream, which rides out what the server does meanwhile."""
        named = {"_id": {"$in": list(ids)}}
        return retry_while_unavailable(lambda: list(self.mongo[collection].find(named, projection)), reads=True)

    def close(self) -> None:
        """Close everything. In a process that did not open it, this does nothing."""
        if os.getpid() != self.pid:
            return
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            for store in self._stores.values():
                store.close()
            self._stores.clear()
            if self._owned:
                self.client.close()


class Connections:
    """The connection of whichever process asks: opened on first use, and again after a fork."""

    def __init__(self, address: Address, opened: OpenedRoots) -> None:
        self.address, self.opened = address, opened
        self._closed = False
        self._reading: Connections | None = None
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._finalizer: Any = None

    def get(self) -> Connection:
        """The connection of this process."""
        connection = self._connection
        if connection is None:
            with self._lock:
                if self._closed:
                    raise ConnectError("this TensorDB is closed; make a new one")
                if self._connection is None:
                    self._connection = Connection(self.address, self.opened)
                    self._finalizer = weakref.finalize(self, self._connection.close)
                connection = self._connection
        return connection

    def reading(self) -> Connections:
        """Others to the same address, which refuse to write. They are closed with these."""
        with self._lock:
            if self._closed:
                raise ConnectError("this TensorDB is closed; make a new one")
            if self._reading is None:
                self._reading = Connections(dataclasses.replace(self.address, read_only=True), self.opened)
            return self._reading

    @property
    def closed(self) -> bool:
        """Whether it was closed for good."""
        return self._closed

    def close(self) -> None:
        """Close for good. Calling it twice does nothing."""
        if self._reading is not None:
            self._reading.close()
        with self._lock:
            self._closed = True
            if self._finalizer is not None:
                self._finalizer()
            self._connection = None

    def _forked(self) -> None:
        if self.address.client is not None and self._connection is not None and self._connection.is_server:
            # A client that someone else made cannot be re-opened; pymongo warns when the child uses it.
            return
        if self._connection is not None:
            _inherited.append(self._connection)  # kept for good: its sockets and locks are those of the parent
            if self._finalizer is not None:
                self._finalizer.detach()
        self._reset()


_all: weakref.WeakSet[Connections] = weakref.WeakSet()
_inherited: list[Connection] = []
_kept: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()


def _keep_with(client: Any, store: Any) -> None:
    with contextlib.suppress(TypeError):
        kept = _kept.setdefault(client, [])
        if store not in kept:
            kept.append(store)


def _after_fork() -> None:
    for connections in list(_all):
        connections._forked()


at_fork(after_in_child=_after_fork)

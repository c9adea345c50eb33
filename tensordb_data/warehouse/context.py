"""The context: one project of a warehouse, as this process is connected to it. Everything above works with it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pymongo.errors import PyMongoError

from tensordb_data.common.sizes import parse_size
from tensordb_data.common.telemetry.otel import enable_if_asked
from tensordb_data.common.user_cache import user_cache
from tensordb_data.errors import ConnectError, UnsupportedError
from tensordb_data.mongo.address import CONNECT_SECONDS, Address
from tensordb_data.mongo.errors import first_line
from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.warehouse import catalog
from tensordb_data.warehouse.blob_storage import BlobStorage
from tensordb_data.warehouse.connection import Connections
from tensordb_data.warehouse.datasets import Datasets
from tensordb_data.warehouse.index import Index
from tensordb_data.warehouse.roots import OpenedRoots, Roots

T = TypeVar("T")


class Warehouse:
    """Index, blobs and datasets of one project.

    It pickles as its address, and connects again in another process or after a fork.

    Args:
        address: Where the warehouse is, and which project of it.
        roots: Its blob roots, `{id, url}` each, with the one for new blobs first.
        cache: `cache=` of the user.
        cache_bytes: `cache_bytes=` of the user.
        connections: What this process has open of it; None for connections of its own.
        opened: The roots that the user has opened, for connections of its own.
    """

    def __init__(
        self,
        address: Address,
        roots: Sequence[Mapping[str, Any]],
        cache: Path | None = None,
        cache_bytes: int | None = None,
        connections: Connections | None = None,
        opened: OpenedRoots | None = None,
    ) -> None:
        enable_if_asked()
        self.address, self.cache, self.cache_bytes = address, cache, cache_bytes
        self.project = address.project
        self._connections = connections or Connections(address, opened or OpenedRoots())
        self.index = Index(self._connections)
        self.blobs = BlobStorage(self._connections, roots, self.cache_dir, cache_bytes)
        self.datasets = Datasets(self.index, self.project)
        self._memo: dict[Hashable, Any] = {}

    @classmethod
    def open(
        cls,
        address: Address,
        *,
        blobs: str | Path | None = None,
        roots: Roots | None = None,
        cache: str | Path | None = None,
        cache_bytes: int | str | None = None,
    ) -> Warehouse:
        """Connect, and make the database a warehouse if it is none yet; the arguments are those of `TensorDB`.

        Raises:
            NotFoundError: The address is read-only, and there is no warehouse.
        """
        folder = None if cache is None else Path(cache).expanduser()
        limit = None if cache_bytes is None else parse_size(cache_bytes, "cache_bytes")
        recorded = None if blobs is None else catalog.resolve_blobs(blobs, address.folder)
        connections = Connections(address, OpenedRoots.of_user(recorded, roots, address.folder))
        try:
            opened = connections.get()
            default = "./blobs" if address.folder is not None else "gridfs://" if opened.is_server else "memory://"
            if address.read_only:
                registered = catalog.look(opened.mongo, str(address), recorded)
            else:
                registered = _prepared(address, lambda: catalog.prepare(opened.mongo, default, recorded))
            warehouse = cls(address, registered, folder, limit, connections)
            warehouse.blobs.check_opened()
        except BaseException:
            connections.close()
            raise
        return warehouse

    @property
    def cache_dir(self) -> Path | None:
        """The folder for data that this host can read again: `cache=`, or a folder of the warehouse or the user."""
        if self.cache is not None:
            return self.cache
        if self.address.folder is not None:
            own = self.address.folder / "cache"
            return None if self.address.read_only and not os.access(own, os.W_OK) else own
        if self.address.client is not None:
            return None
        return user_cache() / hashlib.sha256(str(self).encode()).hexdigest()[:16]

    def memo(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return a value that a higher layer keeps with this warehouse in this process. The first call makes it."""
        if key not in self._memo:
            self._memo[key] = make()
        return cast(T, self._memo[key])

    def in_project(self, project: str) -> Warehouse:
        """Another project of the same warehouse, over the same connections."""
        address = dataclasses.replace(self.address, project=project)
        return Warehouse(address, self.blobs.roots, self.cache, self.cache_bytes, self._connections)

    def only_reading(self) -> Warehouse:
        """The same project through other connections, which refuse to write. They are closed with this."""
        connections = self._connections.reading()
        address = dataclasses.replace(connections.address, project=self.project)
        return Warehouse(address, self.blobs.roots, self.cache, self.cache_bytes, connections)

    @property
    def closed(self) -> bool:
        """Whether it was closed for good."""
        return self._connections.closed

    def close(self) -> None:
        """Disconnect from the server and the blob stores. A second call does nothing."""
        self._memo.clear()
        self._connections.close()

    def to_json(self) -> dict[str, Any]:
        """The arguments of `from_json` in another process on this host, as plain JSON. They may hold a password.

        Raises:
            UnsupportedError: It was made with `client=`, which cannot go to another process.
        """
        address = self._portable()
        return {
            "folder": None if address.folder is None else str(address.folder),
            "uri": address.uri,
            "database": address.database,
            "project": address.project,
            "read_only": address.read_only,
            "cache": None if self.cache is None else str(self.cache),
            "cache_bytes": self.cache_bytes,
            "roots": list(self.blobs.roots),
            "opened": self._connections.opened.to_json(),
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Warehouse:
        """The warehouse that `to_json` describes, connected by this process when it is first used."""
        folder = None if given["folder"] is None else Path(given["folder"])
        cache = None if given["cache"] is None else Path(given["cache"])
        address = Address(folder, given["uri"], None, given["database"], given["project"], given["read_only"])
        return cls(address, given["roots"], cache, given["cache_bytes"], None, OpenedRoots.from_json(given["opened"]))

    def _portable(self) -> Address:
        if self.address.client is not None:
            raise UnsupportedError("a TensorDB made with client=... cannot go to another process; give it an address")
        return self.address

    def __reduce__(self) -> tuple[Any, ...]:
        opened = self._connections.opened
        return Warehouse, (self._portable(), self.blobs.roots, self.cache, self.cache_bytes, None, opened)

    def __eq__(self, other: object) -> bool:
        return self.address == other.address if isinstance(other, Warehouse) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.address.folder, self.address.uri, self.address.database, self.address.project))

    def __str__(self) -> str:
        return f"TensorDB({str(self.address)!r}, project={self.project!r})"

    def __repr__(self) -> str:
        return f"Warehouse({str(self.address)!r}, project={self.project!r})"


def _prepared(address: Address, prepare: Callable[[], T]) -> T:
    try:
        # Each step may be done twice: a primary may be lost in the middle.
        return retry_while_unavailable(prepare, CONNECT_SECONDS)
    except ConnectError as error:
        cause = error.__cause__
        if not isinstance(cause, PyMongoError) or not cause.timeout:
            raise
        raise ConnectError(
            f"{address.hosts} answered too late: {address.redact(first_line(cause))}; is the timeoutMS or"
            " socketTimeoutMS of the address too short?"
        ) from None

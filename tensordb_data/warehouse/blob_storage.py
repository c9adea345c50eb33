"""Blob storage: the roots of a warehouse, their stores, and the reader of this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tensordb_data.blobs.keys import is_key
from tensordb_data.errors import StorageError
from tensordb_data.warehouse.roots import check_root_name, not_opened, not_owned

if TYPE_CHECKING:
    from tensordb_data.blobs.reader.reader import BlobReader
    from tensordb_data.blobs.stores.base import Store
    from tensordb_data.blobs.stores.foreign import Root
    from tensordb_data.warehouse.connection import Connections

_NEAR = ("file://", "memory://", "gridfs://")


class BlobStorage:
    """Where the blobs of a warehouse lie.

    Args:
        connections: What this process has open.
        roots: The blob roots, `{id, url}` each, with the one for new blobs first.
        cache_dir: Where remote blobs are kept once they were read; None for nowhere.
        cache_bytes: How many bytes of them; None for a part of the disk's free space.
    """

    def __init__(
        self,
        connections: Connections,
        roots: Sequence[Mapping[str, Any]],
        cache_dir: Path | None,
        cache_bytes: int | None,
    ) -> None:
        self._connections, self.roots = connections, roots
        self._cache_dir, self._cache_bytes = cache_dir, cache_bytes

    @property
    def write_root(self) -> int:
        """The id of the root for new blobs.

        Raises:
            StorageError: This client may only read there.
        """
        if not self._owns(self.roots[0]["url"]):
            raise not_owned(self.roots[0]["url"])
        return int(self.roots[0]["id"])

    @property
    def opened(self) -> list[Mapping[str, Any]]:
        """The roots that this client may read."""
        return [root for root in self.roots if self.can_read(root["url"])]

    @property
    def near(self) -> bool:
        """Whether all blobs are on this machine or in the database, so that one is read soon or not at all."""
        return all(not urlsplit(root["url"]).scheme or root["url"].startswith(_NEAR) for root in self.roots)

    def check_opened(self) -> None:
        """Check that this client was told of the root for new blobs.

        Raises:
            StorageError: It stands only in the database.
        """
        if not self.can_read(self.roots[0]["url"]):
            raise not_opened(self.roots[0]["url"])

    @property
    def named(self) -> Mapping[str, Root]:
        """The roots of files that samples point into, which this client has opened."""
        return self._connections.opened.named

    def root(self, name: str) -> Root:
        """The root of files of a name.

        Raises:
            StorageError: This client has not opened it.
        """
        return self._connections.opened.root(name)

    def open_root(self, name: str, root: Root) -> None:
        """Open a root of files in this process, and in those to which this warehouse goes."""
        self._connections.opened.named[check_root_name(name)] = root

    def store(self, root: int | None = None) -> Store:
        """The store of a root; None for that of new blobs.

        Raises:
            StorageError: The root is not registered in this warehouse, or this client was not told of it.
        """
        return self._connections.get().store(self.roots[0]["id"] if root is None else root)

    def can_read(self, url: str) -> bool:
        """Whether this client may read blobs at a root that the database names."""
        return self._connections.opened.reads(url, self._connections.address.folder)

    def can_delete(self, root: Any, key: Any) -> bool:
        """Whether an object that a document names may be deleted: its key is one of ours, and so is its root."""
        return is_key(key) and self.owns(root)

    def owns(self, root: Any) -> bool:
        """Whether objects may be deleted in a root that a document names."""
        url = self._connections.get().url(root) if isinstance(root, int) else None
        return url is not None and self._owns(url)

    def delete(self, root: int, key: str) -> None:
        """Delete an object; one that is not there is fine. Every deletion of an object goes through here.

        Raises:
            StorageError: It is not an object of ours, or the store failed.
        """
        if not self.can_delete(root, key):
            raise StorageError(f"{key!r:.100} in blob root {root!r} was not deleted: it is not a blob of this client")
        self.store(root).delete(key)

    def _owns(self, url: str) -> bool:
        return self._connections.opened.owns(url, self._connections.address.folder)

    def replace_store(self, root: int, store: Store) -> None:
        """Put another store in place of a root's, in this process: one that counts, waits or fails, say."""
        self._connections.get().replace_store(root, store)

    @property
    def reader(self) -> BlobReader:
        """The reader of this process, which keeps remote blobs in the cache."""
        return self._connections.get().reader(self._cache_dir, self._cache_bytes)

"""Blob storage: the roots of a warehouse, their stores, and the reader of this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensordb_data.blobs.reader.reader import BlobReader
    from tensordb_data.blobs.stores.base import Store
    from tensordb_data.warehouse.connection import Connections


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
        """The id of the root for new blobs."""
        return int(self.roots[0]["id"])

    def store(self, root: int | None = None) -> Store:
        """The store of a root; None for that of new blobs.

        Raises:
            StorageError: The root is not registered in this warehouse.
        """
        return self._connections.get().store(self.write_root if root is None else root)

    def replace_store(self, root: int, store: Store) -> None:
        """Put another store in place of a root's, in this process: one that counts, waits or fails, say."""
        self._connections.get().replace_store(root, store)

    @property
    def reader(self) -> BlobReader:
        """The reader of this process, which keeps remote blobs in the cache."""
        return self._connections.get().reader(self._cache_dir, self._cache_bytes)

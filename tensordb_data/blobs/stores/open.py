"""What a blob store must do, and the one that a URL names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tensordb_data.blobs.stores.base import Store, without_secrets
from tensordb_data.common.system.file_urls import file_path
from tensordb_data.errors import StorageError

if TYPE_CHECKING:
    from pymongo.database import Database


def open_store(url: str, *, base: Path | None = None, database: Database[Any] | None = None) -> Store:
    """Open the blob store at a URL.

    Args:
        url: `file:///path` or a path relative to `base`; `memory://[name]`; `s3://bucket/prefix`, `gs://…`, `az://…`
            (credentials and endpoint from the environment); `gridfs://[bucket]`.
        base: the folder that a relative path starts from.
        database: the MongoDB database that holds a `gridfs://` store, opened by the calling process.

    Raises:
        StorageError: the URL is not understood, or holds credentials.
    """
    shown = without_secrets(url)
    if shown != url:
        raise StorageError(
            f"{shown}: expected a blob URL without credentials, found some: give them through the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …), where they are not stored"
        )
    scheme, colon, _ = url.partition("://")
    if not colon:
        scheme = "file"
    if scheme == "file":
        from tensordb_data.blobs.stores.local import FileStore

        return FileStore(_folder(url, base))
    if scheme == "memory":
        from tensordb_data.blobs.stores.memory import memory_store

        return memory_store(url[len("memory://") :])
    if scheme == "gridfs":
        from tensordb_data.blobs.stores.gridfs import GridFSStore

        if database is None:
            raise StorageError(f"{url}: a GridFS store needs the database that holds it")
        return GridFSStore(database, url[len("gridfs://") :].strip("/") or "blobs")
    if scheme in ("s3", "gs", "az"):
        from tensordb_data.blobs.stores.object_store import ObjectStore

        return ObjectStore(url)
    raise StorageError(
        f"expected a blob URL that begins with file://, s3://, gs://, az://, memory:// or gridfs://, found {shown!r}"
    )


def _folder(url: str, base: Path | None) -> Path:
    if "://" not in url:
        path = Path(url)
        if not path.is_absolute() and base is None:
            raise StorageError(f"expected an absolute path or a URL for blobs, found {url!r}")
        return path if base is None else base / path
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise StorageError(f"expected file:///absolute/path, found {url!r}")
    return file_path(url)

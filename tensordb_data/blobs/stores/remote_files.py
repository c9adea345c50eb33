"""Files of others in S3, Google Cloud Storage, Azure, or on a web server: listed and read, never written."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import obstore
from obstore.store import from_url

from tensordb_data.blobs.stores.base import without_secrets
from tensordb_data.blobs.stores.object_store import _CLIENT, _RETRY, _environment_options, _reason
from tensordb_data.errors import StorageError

_IN_MEMORY = 64 << 20
"""Bytes of a download that are kept in memory; a larger one is a file."""


class RemoteFile(NamedTuple):
    """One remote file."""

    key: str
    size: int
    stamp: str
    """Its ETag, or the time of its last change; "" if the server tells neither."""


class RemoteFiles:
    """Files below a URL, without credentials, which come from the environment.

    Args:
        url: Such as `s3://bucket/prefix` or `https://host/folder`.

    Raises:
        StorageError: The URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        if without_secrets(url) != url:
            raise StorageError(f"{without_secrets(url)}: expected a URL without credentials or a query, found some: "
                               "credentials come from the environment; download what needs a signed URL")  # fmt: skip
        self.url = url.rstrip("/")
        scheme = url.partition(":")[0]
        options: Any = dict(_CLIENT)
        if scheme.startswith("http"):
            options["allow_http"] = True
        else:
            options.update(_environment_options(url))
        try:
            self._store: Any = from_url(self.url, client_options=options, retry_config=_RETRY)
        except Exception as error:
            raise self._error("open", "", error) from None

    def list(self) -> Iterator[RemoteFile]:
        """All files, in the order of the store."""
        try:
            for page in obstore.list(self._store):
                for found in page:
                    yield _file(found)
        except Exception as error:
            raise self._error("list", "", error) from None

    def head(self, key: str) -> RemoteFile:
        """One file."""
        try:
            return _file(obstore.head(self._store, key))
        except Exception as error:
            raise self._error("read", key, error) from None

    def open(self, key: str) -> BinaryIO:
        """Open a file to be read, at any place in it."""
        try:
            if self.url.startswith("http"):  # a server may not give parts of a file
                return self._downloaded(key)
            reader = _Reader(obstore.open_reader(self._store, key), lambda error: self._error("read", key, error))
            return cast(BinaryIO, io.BufferedReader(reader, 1 << 20))
        except StorageError:
            raise
        except Exception as error:
            raise self._error("read", key, error) from None

    def _downloaded(self, key: str) -> BinaryIO:
        file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        try:
            for part in obstore.get(self._store, key).stream(min_chunk_size=1 << 20):
                file.write(part)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return cast(BinaryIO, file)

    def _error(self, action: str, key: str, error: Exception) -> StorageError:
        place = f"{self.url}/{key}".rstrip("/")
        what = "no such file" if isinstance(error, FileNotFoundError) else _reason(error)
        return StorageError(f"cannot {action} {place}: {what}")


class _Reader(io.RawIOBase):
    """What obstore reads, as a file of Python."""

    def __init__(self, reader: Any, wrapped: Callable[[Exception], StorageError]) -> None:
        self._reader, self._wrapped = reader, wrapped

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._reader.read(len(buffer))
        except Exception as error:
            raise self._wrapped(error) from None
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())


def _file(found: Any) -> RemoteFile:
    stamp = found.get("e_tag") or str(found.get("last_modified") or "")
    return RemoteFile(found["path"], int(found["size"]), stamp)

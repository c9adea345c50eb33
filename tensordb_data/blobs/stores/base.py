"""What a blob store must do, and the one that a URL names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from tensordb_data.errors import StorageError

Buffer = bytes | bytearray | memoryview


class TransientError(StorageError):
    """A request failed for a reason that may pass: it is worth another attempt."""


class Store(Protocol):
    """Named, immutable objects of bytes. Every method may be called from several threads at once.

    All of them raise `StorageError` when the store cannot be reached or an object is not there, and when a key is
    not a relative path of plain names.
    """

    url: str
    """Where the store is; never holds a secret."""

    def put(self, key: str, parts: Sequence[Buffer], *, cold: bool = False) -> None:
        """Store the parts, one after the other, as one object: all of it or nothing, durable on return.

        A `cold` one is not read soon: it need not pass through the caches of this machine.
        """

    def get(self, key: str) -> memoryview:
        """All bytes of an object."""
        ...

    def get_ranges(self, key: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        """Several ranges of one object, in the order asked. A range that reaches past the end is an error."""
        ...

    def size(self, key: str) -> int:
        """Bytes of an object."""
        ...

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Key and bytes of every object whose key begins with `prefix`, in no special order."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is fine."""

    def sweep(self, silent: float, dry_run: bool = False) -> tuple[int, int]:
        """Remove what puts have left that were killed, and have not grown for `silent` seconds on the store's clock.

        Returns:
            How many, and their bytes.
        """
        ...

    def local_path(self, key: str) -> Path | None:
        """The path of the object, if it is a file on this machine."""
        ...

    def close(self) -> None:
        """Let go of connections and memory; the objects stay."""


def check_key(key: str) -> str:
    """The key itself, if it is a relative path of plain names.

    Raises:
        StorageError: it is not; it could name something outside the store.
    """
    if not _KEY.fullmatch(key) or any(part.startswith(".") for part in key.split("/")) or len(key) > 900:
        raise StorageError(f"expected a key of names between slashes (letters, digits, '._=@+-'), found {key[:100]!r}")
    return key


def check_range(key: str, size: int, offset: int, length: int) -> None:
    """Refuse a range that an object of `size` bytes does not have."""
    if offset < 0 or length < 0 or offset + length > size:
        raise StorageError(f"{key}: expected a range within {size} bytes, found {offset} to {offset + length}")


def without_secrets(url: str) -> str:
    """The URL with no user, password or query in it."""
    text = re.sub(r"(?<=://)[^/@]*@", "", url)
    return text.split("?", 1)[0] if "://" in text else text


_KEY = re.compile(r"[\w=@+.-]+(/[\w=@+.-]+)*", re.ASCII)

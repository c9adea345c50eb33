"""What can be ingested: a source gives a schema and chunks of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import xxhash

from tensordb_data.schema import Field

CHUNK_BYTES = 16 * 2**20
CHUNK_ROWS = 4096


@dataclasses.dataclass
class Chunk:
    """Some rows as columns, each with a key that is the same whenever the source is read."""

    keys: list[bytes]
    columns: dict[str, Any]
    nbytes: int
    """Bytes of the source that these rows took, for progress."""


class Source(Protocol):
    """Something to ingest."""

    total: int
    """Bytes in all."""

    failed: list[tuple[str, str]]
    """Name and reason of what could not be read."""

    def schema(self, stored: Mapping[str, Field]) -> dict[str, Field]:
        """The fields of the rows, following those that the dataset has already."""
        ...

    def chunks(self, schema: Mapping[str, Field]) -> Iterator[Chunk]:
        """The rows."""
        ...


def row_key(name: str, row: int, content: bytes) -> bytes:
    """The key of a row within a source, a hash of its place and its content."""
    return xxhash.xxh3_128_digest(b"%s\0%d\0%s" % (name.encode(errors="surrogateescape"), row, content))

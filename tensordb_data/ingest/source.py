"""What can be ingested: a source gives a schema and chunks of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import xxhash

from tensordb_data.codecs import Field
from tensordb_data.errors import SchemaError

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
    """What identifies a row within a source: where it is and what it holds."""
    return xxhash.xxh3_128_digest(b"%s\0%d\0%s" % (name.encode(errors="surrogateescape"), row, content))


def open_source(path: Path) -> Source:
    """The source at a path, by what it is: a folder of images, or a `.csv`, `.parquet` or `.npz` file.

    Raises:
        SchemaError: It is none of these.
    """
    if path.is_dir():
        from tensordb_data.ingest.images import ImageFolder

        return ImageFolder(path)
    if not path.exists():
        raise SchemaError(f"nothing at {path}: expected a folder of images, or a .csv, .parquet or .npz file")
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        from tensordb_data.ingest.csv import CsvFile

        return CsvFile(path)
    if suffix in (".parquet", ".pq"):
        from tensordb_data.ingest.parquet import ParquetFile

        return ParquetFile(path)
    if suffix == ".npz":
        from tensordb_data.ingest.npz import NpzFile

        return NpzFile(path)
    raise SchemaError(
        f"{path}: expected a folder of images, or a .csv, .tsv, .parquet or .npz file, found {suffix or 'no suffix'}"
    )

"""What can be ingested: a source gives a schema and chunks of rows."""

from __future__ import annotations

from pathlib import Path

from tensordb_data.errors import SchemaError
from tensordb_data.ingest.source import Source


def open_source(path: Path) -> Source:
    """The source at a path, by what it is: a folder of images, or a `.csv`, `.parquet` or `.npz` file.

    Raises:
        SchemaError: It is none of these.
    """
    if path.is_dir():
        from tensordb_data.ingest.image_folder import ImageFolder

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

"""NPZ files: columns by name."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tensordb_data.common.system.machine import memory
from tensordb_data.errors import SchemaError
from tensordb_data.ingest.source import CHUNK_BYTES, CHUNK_ROWS, Chunk, row_key
from tensordb_data.schema import Array, Bytes, Field, Scalar

_DAMAGED = (ValueError, OSError, EOFError, KeyError, TypeError, NotImplementedError, MemoryError, RecursionError,
            SyntaxError, zipfile.BadZipFile, zlib.error)  # fmt: skip
_SCALARS = {"b": "bool", "i": "int", "u": "int", "f": "float", "U": "str", "M": "datetime"}


class NpzFile:
    """A NumPy `.npz` file whose arrays have one first dimension: a row of each is a sample.

    One-dimensional arrays of numbers and strings become index fields, others arrays of fixed shape.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.failed: list[tuple[str, str]] = []
        self._columns = self._load()
        self.total = sum(column.nbytes for column in self._columns.values())

    def schema(self, stored: Mapping[str, Field]) -> dict[str, Field]:
        return {name: stored.get(name) or _field(column) for name, column in self._columns.items()}

    def chunks(self, schema: Mapping[str, Field]) -> Iterator[Chunk]:
        n = len(next(iter(self._columns.values())))
        step = max(1, min(CHUNK_ROWS, CHUNK_BYTES * n // max(1, self.total)))
        for start in range(0, n, step):
            part = {name: column[start : start + step] for name, column in self._columns.items()}
            size = len(next(iter(part.values())))
            keys = [
                row_key(self._path.name, start + row, b"".join(column[row].tobytes() for column in part.values()))
                for row in range(size)
            ]
            nbytes = sum(column.nbytes for column in part.values())
            yield Chunk(keys, {name: _plain(column) for name, column in part.items()}, nbytes)

    def _load(self) -> dict[str, npt.NDArray[Any]]:
        if not zipfile.is_zipfile(self._path):
            raise SchemaError(f"{self._path}: expected a .npz file, found something that is no zip archive")
        try:
            with np.load(self._path, allow_pickle=False) as file:
                _check_size(file.zip)
                columns = {name: np.asarray(file[name]) for name in file.files}
        except _DAMAGED as error:
            raise SchemaError(f"{self._path}: expected a .npz file of arrays of numbers or strings: {error}") from None
        lengths = {name: column.shape[0] if column.ndim else None for name, column in columns.items()}
        if not columns or len(set(lengths.values())) != 1 or None in lengths.values():
            raise SchemaError(
                f"{self._path}: expected arrays of one first dimension, found {lengths}; save the rows of each split "
                "as a file of their own"
            )
        return columns


def _check_size(archive: zipfile.ZipFile) -> None:
    """Refuse arrays that do not fit into memory, or that are larger than the header of the archive says."""
    here = memory()
    total = sum(member.file_size for member in archive.infolist())
    if here is not None and total > here:
        raise ValueError(f"its arrays expand to {total:,} bytes, and this machine has {here:,} of memory")
    for member in archive.infolist():
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename} claims the shape {shape} of {dtype}, and has {member.file_size} bytes")


def _field(column: npt.NDArray[Any]) -> Field:
    if column.ndim == 1 and column.dtype.kind in _SCALARS:
        return Scalar(_SCALARS[column.dtype.kind])
    if column.ndim == 1 and column.dtype.kind == "S":
        return Bytes()
    return Array(column.dtype.newbyteorder("=").name, column.shape[1:])


def _plain(column: npt.NDArray[Any]) -> Any:
    return column.tolist() if column.dtype.kind in "US" else column

"""NPZ files: columns by name."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensordb_data.common.system.machine import memory
from tensordb_data.errors import SchemaError
from tensordb_data.ingest.engine.format1 import old_key
from tensordb_data.ingest.source import CHUNK_BYTES, CHUNK_ROWS, Chunk, FileInfo
from tensordb_data.schema import Array, Bytes, Field, Scalar

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_DAMAGED = (ValueError, OSError, EOFError, KeyError, TypeError, NotImplementedError, MemoryError, RecursionError,
            SyntaxError, zipfile.BadZipFile, zlib.error)  # fmt: skip
_SCALARS = {"b": "bool", "i": "int", "u": "int", "f": "float", "U": "str", "M": "datetime"}


def open_npz(given: Given) -> NpzFiles:
    """NPZ files."""
    return NpzFiles(given)


class NpzFiles:
    """NumPy `.npz` files whose arrays have one first dimension: a row of each is a sample.

    One-dimensional arrays of numbers and strings become index fields, others arrays of fixed shape. A row is known by
    its number in the file.
    """

    def __init__(self, given: Given) -> None:
        self._given, self.id, self.root = given, given.files.id, given.files.root
        self.files = given.choose((".npz",))

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        found: dict[str, Field] = {}
        for file in files:
            for name, column in _load(self._given, file).items():
                field = wanted.get(name) or _field(column)
                if found.setdefault(name, field) != field:
                    raise SchemaError(f"{file.name}, {name!r}: expected {found[name]!r}, as in {files[0].name}, found"
                                      f" {field!r}")  # fmt: skip
        return found

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        for file in files:
            columns = _load(self._given, file)
            n, total = len(next(iter(columns.values()))), sum(column.nbytes for column in columns.values())
            step = max(1, min(CHUNK_ROWS, CHUNK_BYTES * n // max(1, total)))
            for start in range(0, max(n, 1), step):
                part = {name: column[start : start + step] for name, column in columns.items()}
                size = len(next(iter(part.values())))
                rows = range(start, start + size)
                yield Chunk(
                    {name: _plain(column) for name, column in part.items()},
                    keys=[b"%s\0%d" % (file.name.encode(), row) for row in rows],
                    file=file.name,
                    first=start,
                    nbytes=file.size * size // max(1, n),
                    done=[file] if start + step >= n else (),
                    old_keys=partial(_old_keys, file.name, start, part),
                )


def _old_keys(name: str, start: int, part: Mapping[str, npt.NDArray[Any]]) -> list[bytes]:
    size = len(next(iter(part.values())))
    contents = (b"".join(column[row].tobytes() for column in part.values()) for row in range(size))
    return [old_key(name.rpartition("/")[2], start + row, content) for row, content in enumerate(contents)]


def _load(given: Given, file: FileInfo) -> dict[str, npt.NDArray[Any]]:
    path = given.files.path(file)
    with given.open(file) as opened:
        if not zipfile.is_zipfile(opened):
            raise SchemaError(f"{path}: expected a .npz file, found something that is no zip archive")
        opened.seek(0)
        try:
            with np.load(opened, allow_pickle=False) as archive:
                _check_size(archive.zip)
                columns = {name: np.asarray(archive[name]) for name in archive.files}
        except _DAMAGED as error:
            raise SchemaError(f"{path}: expected a .npz file of arrays of numbers or strings: {error}") from None
    lengths = {name: column.shape[0] if column.ndim else None for name, column in columns.items()}
    if not columns or len(set(lengths.values())) != 1 or None in lengths.values():
        raise SchemaError(
            f"{path}: expected arrays of one first dimension, found {lengths}; save the rows of each split "
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

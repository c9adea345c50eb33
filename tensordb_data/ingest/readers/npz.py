"""NPZ files, columns by name, and NPY files, one column each."""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from tensordb_data.common.system.machine import memory
from tensordb_data.errors import SchemaError, TensorDBError
from tensordb_data.ingest.engine.format1 import old_key
from tensordb_data.ingest.source import CHUNK_BYTES, CHUNK_ROWS, Chunk, FileInfo
from tensordb_data.schema import Array, Bytes, Field, Scalar

if TYPE_CHECKING:
    from tensordb_data.ingest.given import Given

_DAMAGED = (ValueError, OSError, EOFError, KeyError, TypeError, NotImplementedError, MemoryError, RecursionError,
            SyntaxError, zipfile.BadZipFile, zlib.error)  # fmt: skip
_NPY = b"\x93NUMPY"
_ARRAY = "array"
"""What the array of a `.npy` file is called."""
_SCALARS = {"b": "bool", "i": "int", "u": "int", "f": "float", "U": "str", "M": "datetime"}


def open_npz(given: Given) -> NpzFiles:
    """NPZ and NPY files."""
    return NpzFiles(given)


class NpzFiles:
    """NumPy `.npz` files whose arrays have one first dimension, and `.npy` files: a row of each array is a sample.

    One-dimensional arrays of numbers and strings become index fields, others arrays of fixed shape. That of a `.npy`
    file is called `array`. A row is known by its number in the file. Arrays that `fields=` or `skip=` leave out are not
    read, and may have other dimensions.
    """

    def __init__(self, given: Given) -> None:
        self._given, self.id, self.root = given, given.files.id, given.files.root
        self.files = given.choose((".npz", ".npy"))

    def schema(self, wanted: Mapping[str, Field], files: Sequence[FileInfo]) -> Mapping[str, Field]:
        found: dict[str, Field] = {}
        for file in files:
            heads = _heads(self._given, file)
            self._check(file, heads)
            for name, head in heads.items():
                if not self._is_taken(name):
                    found.setdefault(name, Scalar("json", optional=True))  # so that it can be named and left out
                    continue
                field = wanted.get(name) or _field(head)
                if found.setdefault(name, field) != field:
                    raise SchemaError(f"{file.name}, {name!r}: expected {found[name]!r}, as in {files[0].name}, found"
                                      f" {field!r}")  # fmt: skip
        return found

    def _is_taken(self, name: str) -> bool:
        columns = self._given.columns
        return name not in columns.skip and (columns.fields is None or name in columns.fields)

    def _check(self, file: FileInfo, heads: Mapping[str, _Head]) -> None:
        """Refuse arrays that are taken and cannot be.

        Raises:
            SchemaError: They hold objects, differ in their first dimension, or do not fit into memory.
        """
        path = self._given.files.path(file)
        taken = {name: head for name, head in heads.items() if self._is_taken(name)}
        for name, head in taken.items():
            if head.dtype.hasobject:
                raise SchemaError(
                    f"{path}: {name!r} holds Python objects, which are pickles and are not read: leave it out with"
                    f" skip=[{name!r}], or save it as numbers or strings"
                )
        lengths = {name: head.shape[0] if head.shape else None for name, head in taken.items()}
        if not taken or len(set(lengths.values())) != 1 or None in lengths.values():
            raise SchemaError(
                f"{path}: expected arrays of one first dimension, found {lengths}; take those that belong together with"
                " fields=[...]"
            )
        here, total = memory(), sum(head.nbytes for head in taken.values() if not head.by_row)
        if here is not None and total > here:
            raise SchemaError(f"{path}: its arrays expand to {total:,} bytes, and this machine has {here:,} of memory")

    def _load(self, file: FileInfo) -> dict[str, Column]:
        heads = _heads(self._given, file)
        self._check(file, heads)
        return _read(self._given, file, [name for name in heads if self._is_taken(name)])

    def rows(self, files: Sequence[FileInfo]) -> Iterator[Chunk]:
        for file in files:
            columns = self._load(file)
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


class _Head(NamedTuple):
    """What the header of an array says."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_row: bool = False
    """Whether its rows lie one behind the other in the file, and can be read one by one."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@contextlib.contextmanager
def _opened(given: Given, file: FileInfo) -> Iterator[BinaryIO]:
    """A file, open. What is wrong with it is an error that names it."""
    path = given.files.path(file)
    with given.open(file) as opened:
        try:
            yield opened
        except _DAMAGED as error:
            if isinstance(error, TensorDBError):
                raise
            kind = "npz" if zipfile.is_zipfile(opened) else "npy"
            raise SchemaError(f"{path}: expected a .{kind} file of arrays of numbers or strings: {error}") from None


def _heads(given: Given, file: FileInfo) -> dict[str, _Head]:
    """The headers of the arrays of a file, by their names.

    Raises:
        SchemaError: It is damaged, or an array is larger than what there is of it.
    """
    with _opened(given, file) as opened:
        if not zipfile.is_zipfile(opened):
            opened.seek(0)
            if opened.read(len(_NPY)) != _NPY:
                raise SchemaError(f"{given.files.path(file)}: expected a .npz or .npy file, found something else")
            opened.seek(0)
            return {_ARRAY: _head(opened, _ARRAY, file.size, alone=True)}
        opened.seek(0)
        found: dict[str, _Head] = {}
        with zipfile.ZipFile(opened) as archive:
            for member in archive.infolist():
                with archive.open(member) as part:
                    name = member.filename.removesuffix(".npy")
                    found[name] = _head(part, member.filename, member.file_size)
        return found


def _head(opened: IO[bytes], name: str, size: int, *, alone: bool = False) -> _Head:
    version = np.lib.format.read_magic(opened)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(opened)
    head = _Head(shape, dtype, alone and not fortran)
    if head.nbytes > size and not dtype.hasobject:
        raise ValueError(f"{name} claims the shape {shape} of {dtype}, and has {size} bytes")
    return head


class _Rows:
    """The rows of a `.npy` file in C order, which are read when they are asked for."""

    def __init__(self, given: Given, file: FileInfo, head: _Head, start: int) -> None:
        self._given, self._file, self._start = given, file, start
        self.shape, self.dtype, self.nbytes = head.shape, head.dtype, head.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        first, last, _ = rows.indices(len(self))
        each = self.nbytes // max(1, len(self))
        with _opened(self._given, self._file) as opened:
            opened.seek(self._start + first * each)
            data = opened.read((last - first) * each)
            return np.frombuffer(data, self.dtype).reshape(last - first, *self.shape[1:])


Column = npt.NDArray[Any] | _Rows


def _read(given: Given, file: FileInfo, names: Sequence[str]) -> dict[str, Column]:
    """Some arrays of a file."""
    with _opened(given, file) as opened:
        if zipfile.is_zipfile(opened):
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as archive:
                return {name: np.asarray(archive[name]) for name in names}
        opened.seek(0)
        head = _head(opened, _ARRAY, file.size, alone=True)
        if head.by_row and head.nbytes:
            return {_ARRAY: _Rows(given, file, head, opened.tell())}
        opened.seek(0)
        return {_ARRAY: np.load(opened, allow_pickle=False)}


def _field(column: _Head) -> Field:
    if len(column.shape) == 1 and column.dtype.kind in _SCALARS:
        return Scalar(_SCALARS[column.dtype.kind])
    if len(column.shape) == 1 and column.dtype.kind == "S":
        return Bytes()
    return Array(column.dtype.newbyteorder("=").name, column.shape[1:])


def _plain(column: npt.NDArray[Any]) -> Any:
    return column.tolist() if column.dtype.kind in "US" else column

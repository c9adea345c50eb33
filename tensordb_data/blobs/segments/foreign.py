"""Blobs that lie in files of others: what tells where, and the table of the files of a segment."""

from __future__ import annotations

import dataclasses

import bson
import bson.errors
import numpy as np
import numpy.typing as npt
import zstandard

from tensordb_data.blobs.stores.foreign import ForeignFile, is_foreign_key, is_root_name
from tensordb_data.common.zstd import expand
from tensordb_data.errors import CorruptBlobError

SELF = 0xFFFFFFFF
"""The number of a file that stands for the segment's own object."""
_LEVEL = 3


@dataclasses.dataclass(frozen=True)
class ForeignBlob:
    """A blob that stays where it is, and what was found of it when it was read."""

    file: ForeignFile
    offset: int
    length: int
    """Bytes."""
    checksum: int
    """The xxh3 of these bytes."""
    compressed: bool = False
    """Whether they are a zstd frame, which is the blob when it is expanded."""
    digest: bytes = b""
    """The xxh3_128 of the bytes, while they come in."""
    damage: str | None = None
    """What is wrong with the image in it, if somebody has looked."""

    def __len__(self) -> int:
        return self.length


@dataclasses.dataclass(frozen=True)
class FileTable:
    """The files of a segment, in little memory: keys as one run of bytes, numbers in columns."""

    roots: tuple[str, ...]
    """The names of the roots."""
    root: npt.NDArray[np.uint32]
    """uint32[f]: which of `roots` each file is below."""
    size: npt.NDArray[np.int64]
    """int64[f]: bytes."""
    mtime_ns: npt.NDArray[np.int64]
    """int64[f]: nanoseconds since 1970."""
    ends: npt.NDArray[np.int64]
    """int64[f]: where the key of each ends in `keys`."""
    keys: bytes
    """All keys, one behind the other, in UTF-8."""

    def __len__(self) -> int:
        return len(self.root)

    def file(self, number: int) -> ForeignFile:
        """One file.

        Raises:
            CorruptBlobError: Its key is not one of a file below a root.
        """
        start = int(self.ends[number - 1]) if number else 0
        try:
            key = self.keys[start : int(self.ends[number])].decode()
        except UnicodeDecodeError:
            key = ""
        if not is_foreign_key(key):
            raise CorruptBlobError(f"expected the path of a file below a root, found {key!r:.200}")
        name = self.roots[int(self.root[number])]
        return ForeignFile(name, key, int(self.size[number]), int(self.mtime_ns[number]))


def pack_files(files: list[ForeignFile]) -> bytes:
    """The table of some files, as it is stored: zstd over BSON."""
    roots = sorted({file.root for file in files})
    numbers = {name: number for number, name in enumerate(roots)}
    keys = [file.key.encode() for file in files]
    document = {
        "roots": roots,
        "root": np.array([numbers[file.root] for file in files], "<u4").tobytes(),
        "size": np.array([file.size for file in files], "<i8").tobytes(),
        "time": np.array([file.mtime_ns for file in files], "<i8").tobytes(),
        "end": np.cumsum([len(key) for key in keys], dtype="<i8").tobytes(),
        "keys": b"".join(keys),
    }
    return zstandard.ZstdCompressor(level=_LEVEL).compress(bson.encode(document))


def read_files(part: bytes | memoryview, name: str) -> FileTable:
    """The table that `pack_files` has made.

    Args:
        part: Its bytes.
        name: What messages call the segment.

    Raises:
        CorruptBlobError: It is none.
    """
    try:
        found = bson.decode(expand(part))
        roots = tuple(found["roots"])
        table = FileTable(
            roots,
            np.frombuffer(found["root"], "<u4").astype(np.uint32, copy=False),
            np.frombuffer(found["size"], "<i8").astype(np.int64, copy=False),
            np.frombuffer(found["time"], "<i8").astype(np.int64, copy=False),
            np.frombuffer(found["end"], "<i8").astype(np.int64, copy=False),
            bytes(found["keys"]),
        )
        n = len(table)
        if not all(map(is_root_name, roots)) or {
            len(table.size),
            len(table.mtime_ns),
            len(table.ends),
        } != {n}:
            raise ValueError("columns of one length, and names of roots")
        if n and (int(table.root.max()) >= len(roots) or int(table.ends[-1]) != len(table.keys)):
            raise ValueError("numbers of roots, and keys that fill their place")
        if n and (int(table.ends[0]) < 0 or int(np.diff(table.ends).min(initial=0)) < 0 or int(table.size.min()) < 0):
            raise ValueError("places and sizes from 0 on")
    except (zstandard.ZstdError, bson.errors.BSONError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise CorruptBlobError(f"{name}: expected a table of files, found something else: {error}: damaged") from None
    return table

"""Where in its file a value of an Arrow file lies.

Arrow keeps the bytes that it reads, and its values are slices of them. So a value lies in the file where the bytes do
that its memory is part of. What was decompressed is in no such bytes.
"""

from __future__ import annotations

import ctypes
from collections import deque
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from tensordb_data.ingest.readers.arrow_types import is_media, pyarrow

if TYPE_CHECKING:
    from tensordb_data.ingest.in_place import MakeRange, Range

_READS = 1024
"""Reads that are remembered: more than a batch of records takes."""


class Places:
    """A file that remembers what it has read into which memory.

    Args:
        file: The file.
        ranges: Makes ranges of it.
    """

    def __init__(self, file: BinaryIO, ranges: MakeRange) -> None:
        self._file, self._ranges = file, ranges
        self._reads: deque[tuple[int, int, int]] = deque(maxlen=_READS)
        self.lost = 0
        """Values that lie nowhere in the file as they are."""

    def read(self, nbytes: int = -1) -> bytes:
        """Read, as a file does."""
        at = self._file.tell()
        data = self._file.read(nbytes)
        if data:
            address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
            self._reads.append((address, len(data), at))
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place, as in a file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place, as of a file."""
        return self._file.tell()

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def writable(self) -> bool:
        """False."""
        return False

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._file.closed

    def close(self) -> None:
        """Nothing: whoever has opened the file closes it."""

    def flush(self) -> None:
        """Nothing."""

    def locate(self, column: Any) -> list[Range | None]:
        """For each value of a column of bytes, or of structs of bytes and path, the range in which it lies.

        Those that are missing, or lie nowhere, are None.
        """
        pa = pyarrow()
        if is_media(column.type):
            missing = column.is_null() if column.null_count else None
            column = column.field("bytes")
        else:
            missing = None
        if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
            return [None] * len(column)
        _, offsets, data = column.buffers()
        if offsets is None or data is None:
            return [None] * len(column)
        wide = np.int64 if pa.types.is_large_binary(column.type) else np.int32
        ends = np.frombuffer(offsets, wide)[column.offset : column.offset + len(column) + 1].astype(np.int64)
        at = self._place(data.address, int(ends[-1]))
        there = column.is_valid().to_numpy(zero_copy_only=False)
        if missing is not None:
            there &= ~missing.to_numpy(zero_copy_only=False)
        if at is None:
            self.lost += int(there.sum())
            return [None] * len(column)
        pairs = zip(ends[:-1].tolist(), ends[1:].tolist(), there.tolist(), strict=True)
        found = [self._ranges(at + low, high - low) if is_there else None for low, high, is_there in pairs]
        return found if self._is_right(column, found) else [None] * len(column)

    def _place(self, address: int, nbytes: int) -> int | None:
        """Where in the file some memory is from. Memory is used again: the last read counts."""
        for start, size, at in reversed(self._reads):
            if start <= address and address + nbytes <= start + size:
                return at + address - start
        return None

    def _is_right(self, column: Any, found: list[Range | None]) -> bool:
        """Whether the file has the first and the last value where they were found."""
        rows = [row for row, place in enumerate(found) if place is not None]
        for row in rows[:1] + rows[-1:]:
            place = found[row]
            if place is not None and place.read() != column[row].as_py():
                return False
        return True

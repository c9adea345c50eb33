"""Files of records with checksums: TFRecord, and the event files of TensorBoard.

u64 length | u32 checksum of it | data | u32 checksum of it
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from tensordb_data.common.system.modules import optional
from tensordb_data.errors import CorruptBlobError

_MOST_RECORD = 2 << 30
_LOOKED = 100
"""Of so many records one has its checksum compared, where no library does this fast."""
_SHORT = 4096
_GZIP = b"\x1f\x8b"


def is_record(head: bytes) -> bool:
    """Whether bytes begin with a record, by the checksum of its length."""
    return len(head) >= 12 and masked(crc32c(head[:8])) == int.from_bytes(head[8:12], "little")


def records(
    file: BinaryIO, size: int, *, most: int = _MOST_RECORD, cut: Callable[[], None] | None = None
) -> Iterator[bytes]:
    """The data of each record of a file, also of one that gzip has compressed.

    Args:
        file: The file.
        size: Its bytes.
        most: The largest record, in bytes.
        cut: Called in place of an error if the file ends within a record, as that of a writer that was killed does.

    Raises:
        CorruptBlobError: A record is cut off, or does not match its checksum.
    """
    head = file.read(2)
    file.seek(0)
    source = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if head == _GZIP else file
    fast, number = _fast_crc(), 0
    limit = most if head == _GZIP or cut is not None else min(size, most)
    try:
        while header := source.read(12):
            if len(header) < 12:
                if cut is not None:
                    return cut()
                raise CorruptBlobError(f"record {number}: expected a length, found the end of the file")
            length, check = struct.unpack("<QI", header)
            if masked(crc32c(header[:8])) != check:
                raise CorruptBlobError(f"record {number}: its length does not match its checksum: no TFRecord file, or "
                                       "a damaged one")  # fmt: skip
            if length > limit:
                raise CorruptBlobError(f"record {number}: expected at most {limit:,} bytes, found {length:,}")
            data, footer = source.read(length), source.read(4)
            if len(data) < length or len(footer) < 4:
                if cut is not None:
                    return cut()
                raise CorruptBlobError(f"record {number}: expected {length:,} bytes, found the end of the file")
            if fast is not None or length <= _SHORT or number % _LOOKED == 0:
                found = crc32c(data) if fast is None else fast(data)
                if masked(found) != struct.unpack("<I", footer)[0]:
                    raise CorruptBlobError(f"record {number}: does not match its checksum")
            yield data
            number += 1
    except (OSError, EOFError) as error:
        if isinstance(error, CorruptBlobError):
            raise
        raise CorruptBlobError(f"record {number}: {error}") from None


def masked(crc: int) -> int:
    """A checksum as it stands in a file."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _make_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _make_table()


def crc32c(data: bytes) -> int:
    """The checksum CRC-32C, slowly."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _fast_crc() -> Callable[[bytes], int] | None:
    """The checksum by a library, if one is installed."""
    for module, name in (("google_crc32c", "value"), ("crc32c", "crc32c")):
        found = getattr(optional(module), name, None)
        if found is not None:
            return cast(Callable[[bytes], int], found)
    return None

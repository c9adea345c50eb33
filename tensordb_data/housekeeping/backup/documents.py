"""The documents of a collection in a file of a backup: BSON, one after the other, compressed with zstd."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from tensordb_data.common.zstd import decompressor
from tensordb_data.errors import CorruptBlobError
from tensordb_data.housekeeping.backup.layout import PIECE, Entry, Output, pieces

LARGEST = (16 << 20) + (16 << 10)
"""Bytes of a document, at most: what MongoDB allows, and what it adds itself."""
_LENGTH = struct.Struct("<i")


def file_of(name: str) -> str:
    """The path of a collection in a backup."""
    return f"index/{name}.bson.zst"


def write_documents(output: Output, batches: Iterable[bytes]) -> tuple[int, int]:
    """Write documents, as the server sends them.

    Args:
        output: The file.
        batches: Whole documents, many in each.

    Returns:
        How many documents, and their bytes.
    """
    count = nbytes = 0
    target: Any = output
    with zstandard.ZstdCompressor(level=3).stream_writer(target, closefd=False) as writer:
        for batch in batches:
            writer.write(batch)
            nbytes += len(batch)
            at = 0
            while at < len(batch):
                at += _LENGTH.unpack_from(batch, at)[0]
                count += 1
    return count, nbytes


def read_documents(folder: Path, entry: Entry, limit: int) -> Iterator[bytes]:
    """The documents of a file, each as BSON. After the last, the checksum of the file was compared.

    Args:
        folder: The backup.
        entry: The file.
        limit: Bytes that all documents may have.

    Raises:
        CorruptBlobError: These are no documents, or more than `limit` says.
    """
    rest = bytearray()
    for part in _expanded(folder, entry, limit):
        rest += part
        at = 0
        while len(rest) - at >= _LENGTH.size:
            size = _LENGTH.unpack_from(rest, at)[0]
            if not 5 <= size <= LARGEST:
                raise CorruptBlobError(f"{folder / entry.path}: expected a document, found one of {size:,} bytes")
            if len(rest) - at < size:
                break
            yield bytes(rest[at : at + size])
            at += size
        del rest[:at]
    if rest:
        raise CorruptBlobError(f"{folder / entry.path} ends in the middle of a document")


def _expanded(folder: Path, entry: Entry, limit: int) -> Iterator[bytes]:
    source: Any = _Source(pieces(folder, entry))
    left = limit
    try:
        with decompressor().stream_reader(source, read_size=PIECE, read_across_frames=True) as reader:
            while part := reader.read(PIECE):
                left -= len(part)
                if left < 0:
                    raise CorruptBlobError(f"{folder / entry.path} holds more than the {limit:,} bytes that are named")
                yield part
    except zstandard.ZstdError as error:
        raise CorruptBlobError(f"{folder / entry.path} is damaged: {error}") from None
    if left:
        raise CorruptBlobError(f"{folder / entry.path} holds {left:,} bytes less than are named")


class _Source:
    """Pieces of bytes as a file that is read."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts, self._rest = parts, b""

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`."""
        if not self._rest:
            self._rest = next(self._parts, b"")
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

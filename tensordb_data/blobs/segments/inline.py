"""Inline blobs: small ones of live writers, which travel inside their samples' documents until they are compacted.

Such a reference is `{d: stored bytes, n: how many, x: their xxh3 checksum, z: true if zstd}` where one into a segment
is `{k, o, n, z}`. Where the bytes themselves are not wanted, as in a plan, its segment is `INLINE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xxhash
import zstandard
from bson import ObjectId

from tensordb_data.blobs.stores.base import Buffer
from tensordb_data.errors import CorruptBlobError

INLINE = ObjectId("0" * 24)
"""Stands for the segment of a blob that is in its sample's document."""

MAX_INLINE = 4096
"""Bytes of the largest blob that goes into a document."""

MAX_INLINE_TOTAL = 64 * 1024
"""Bytes of all blobs that go into one document; more would make the index slow to scan."""


def checksum(data: Buffer) -> int:
    """xxh3 of some bytes, as the signed number that BSON has."""
    found = xxhash.xxh3_64_intdigest(data)
    return found - 2**64 if found >= 2**63 else found


def inline_reference(stored: bytes, compressed: bool = False) -> dict[str, Any]:
    """The reference that holds a blob itself."""
    reference: dict[str, Any] = {"d": stored, "n": len(stored), "x": checksum(stored)}
    if compressed:
        reference["z"] = True
    return reference


def is_inline(reference: Mapping[str, Any]) -> bool:
    """Whether a reference holds the blob, rather than saying where it is."""
    return "d" in reference


def check_inline(stored: Buffer, expected: int) -> None:
    """Compare inline bytes with their checksum.

    Raises:
        CorruptBlobError: they differ.
    """
    if (found := checksum(stored)) != expected:
        raise CorruptBlobError(
            f"the {len(stored)} bytes in the sample's document do not match their checksum (expected"
            f" {expected % 2**64:016x}, found {found % 2**64:016x}): damaged, or edited by another tool"
        )


def unpacked(stored: Buffer) -> bytes:
    """Stored bytes decompressed.

    Raises:
        CorruptBlobError: they are no zstd frame.
    """
    try:
        return zstandard.ZstdDecompressor().decompress(stored)
    except zstandard.ZstdError as error:
        raise CorruptBlobError(f"expected a zstd frame in the sample's document: {error}") from None


def read_inline(reference: Mapping[str, Any]) -> bytes:
    """The blob in an inline reference: checked and decompressed.

    Raises:
        CorruptBlobError: it is damaged.
    """
    stored: bytes = reference["d"]
    check_inline(stored, reference["x"])
    return unpacked(stored) if reference.get("z") else stored

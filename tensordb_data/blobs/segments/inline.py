"""Inline blobs: small ones of live writers, which travel inside their samples' documents until they are compacted.

Such a reference is `{d: stored bytes, n: how many, x: their xxh3 checksum, z: true if zstd}` where one into a segment
is `{k, o, n, z}`. Where the bytes themselves are not wanted, as in a plan, its segment is `INLINE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
import zstandard
from bson import ObjectId

from tensordb_data.blobs.stores.base import Buffer
from tensordb_data.common.zstd import MAX_EXPANDED, expand
from tensordb_data.errors import CorruptBlobError

INLINE = ObjectId("0" * 24)
"""Stands for the segment of a blob that is in its sample's document."""

MAX_INLINE = 4096
"""Bytes of the largest blob that goes into a document."""

MAX_INLINE_TOTAL = 64 * 1024
"""Bytes of all blobs that go into one document; more would make the index slow to scan."""


def checksum(data: Any) -> int:
    """xxh3 of some bytes, a buffer or an array, as the signed number that BSON has."""
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


def check_inline(stored: object, expected: object) -> None:
    """Compare inline bytes with their checksum.

    Raises:
        CorruptBlobError: they differ, or are no bytes or no checksum.
    """
    if not isinstance(stored, (bytes, bytearray, memoryview, np.ndarray)) or not isinstance(expected, int):
        raise CorruptBlobError(
            f"expected bytes and a checksum in the sample's document, found {type(stored).__name__} and "
            f"{type(expected).__name__}: edited by another tool?"
        )
    if (found := checksum(stored)) != expected:
        raise CorruptBlobError(
            f"the {len(stored)} bytes in the sample's document do not match their checksum (expected"
            f" {expected % 2**64:016x}, found {found % 2**64:016x}): damaged, or edited by another tool"
        )


def unpacked(stored: Buffer, limit: int = MAX_EXPANDED) -> bytes:
    """Stored bytes decompressed.

    Raises:
        CorruptBlobError: they are no zstd frame, or one of more than `limit` bytes.
    """
    try:
        return expand(stored, limit)
    except zstandard.ZstdError as error:
        raise CorruptBlobError(f"expected a zstd frame in the sample's document: {error}") from None


def read_inline(reference: Mapping[str, Any], nbytes: int | None = None) -> bytes:
    """The blob in an inline reference: checked and decompressed.

    Args:
        reference: it.
        nbytes: how many bytes the blob has at most; None where that is not known.

    Raises:
        CorruptBlobError: it is damaged, or larger.
    """
    stored: bytes = reference["d"]
    check_inline(stored, reference.get("x"))
    return unpacked(stored, MAX_EXPANDED if nbytes is None else nbytes) if reference.get("z") else stored

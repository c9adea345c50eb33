"""Decompress zstd frames of which the size is known, and compared with a bound, before memory is asked for."""

from __future__ import annotations

import zstandard

MAX_EXPANDED = 1 << 30
"""Bytes that a frame may expand to, where nothing else says how many. What is larger is stored as it is."""

_MAX_WINDOW = 1 << 27
"""Bytes of the window that a frame may ask for: that of the highest level of zstd."""

_MAX_RATIO = 1 << 15
"""A block of 4 bytes, the smallest, expands to 128 KiB, the most."""

Stored = bytes | bytearray | memoryview


def decompressor() -> zstandard.ZstdDecompressor:
    """A decompressor, for one thread, that refuses a frame with a huge window."""
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)


def expanded_size(stored: Stored, limit: int = MAX_EXPANDED) -> int:
    """How many bytes a frame says that it expands to.

    Args:
        stored: The frame.
        limit: How many they may be.

    Raises:
        zstandard.ZstdError: It is no frame, does not say its size, expands to more than `limit`, or claims more than
            so many bytes can hold.
    """
    size = zstandard.frame_content_size(stored)
    if size < 0:
        raise zstandard.ZstdError("expected a frame that says how many bytes it expands to, found one that does not")
    if size > limit:
        raise zstandard.ZstdError(f"expected a frame of at most {limit:,} bytes, found one that claims {size:,}")
    if size > largest_expanded(len(stored)):
        raise zstandard.ZstdError(f"{len(stored):,} bytes cannot expand to the {size:,} that they claim")
    return size


def largest_expanded(nbytes: int, bounded: bool = False) -> int:
    """The most that a frame of so many bytes can hold; with `bounded`, and may hold where its size is not known."""
    return min(_MAX_RATIO * nbytes, MAX_EXPANDED) if bounded else _MAX_RATIO * nbytes


def expand(stored: Stored, limit: int = MAX_EXPANDED) -> bytes:
    """Decompress a frame.

    Args:
        stored: The frame.
        limit: How many bytes it may expand to.

    Raises:
        zstandard.ZstdError: It is damaged, or larger than `limit`.
    """
    expanded_size(stored, limit)
    return decompressor().decompress(stored)

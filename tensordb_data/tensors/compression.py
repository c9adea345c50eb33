"""Compress tensors with zstd, if they become much smaller and training can spare the processor.

A sample of a tensor tells how much smaller it becomes. For most floats a small sample, in 6 µs, already tells that
there is nothing to gain. Otherwise a larger one is compressed, in some 20 µs. Zeros, masks, indices, sparse embeddings
and moments of frozen layers become smaller. Of trained floats only the exponents do, which is not worth the time. A
tensor is stored as it is if compressing it saves too little, or takes longer than allowed.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import numpy as np
import xxhash
import zstandard

from tensordb_data.common.zstd import MAX_EXPANDED, decompressor, expanded_size
from tensordb_data.tensors.leaf import Leaf

LEVEL = 1  # twice as fast as the next, for a hundredth of the bytes
LARGEST = 128 << 20
"""Bytes that the compressed form of one tensor may take: it is held in memory until its object is written."""
_LEAST = 4096  # smaller tensors are not worth a look
_PIECES, _PIECE = 8, (512, 4096)  # of a sample: so many, and the fewest and most bytes of each
_GLANCE, _NOTHING = 96, 0.95  # bytes of each in the small sample; what it leaves where there is nothing to gain
_STEP = 4 << 20  # bytes between two looks at the clock
_WORTH, _WORTH_FLOAT = 0.9, 0.75
"""The stored bytes divided by the given bytes, at most. Noise in bfloat16 leaves 0.78 of them, in float16 and float32
0.92, at the price of a second of processor time for each 100 to 300 MB that are saved."""


class TensorCompressor:
    """Compresses the tensors of one save, in one thread.

    Args:
        seconds: Processor time that it may take in all, samples included.
        clock: Tells the processor time of this thread.
    """

    def __init__(self, seconds: float = math.inf, clock: Callable[[], float] = time.thread_time) -> None:
        self.seconds = seconds
        self._clock = clock
        self._compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False)

    def compress(self, leaf: Leaf, data: memoryview) -> bytes | None:
        """The bytes of a tensor as one zstd frame; None if they are better stored as they are."""
        if leaf.nbytes < _LEAST or self.seconds <= 0 or (leaf.kind == "bytes" and leaf.nbytes > MAX_EXPANDED):
            return None
        began = self._clock()
        worth = _WORTH_FLOAT if is_float(leaf) else _WORTH
        try:
            if self._shrinks(_sample(data, _GLANCE)) > _NOTHING:
                return None
            sample = _sample(data, min(max(len(data) // (8 * _PIECES), _PIECE[0]), _PIECE[1]))
            found = self._shrinks(sample)
            took = (self._clock() - began) * leaf.nbytes / len(sample)
            if found > worth or took > self.seconds or found * leaf.nbytes > LARGEST:
                return None
            return self._compress(data, int(worth * leaf.nbytes), began)
        finally:
            self.seconds -= self._clock() - began

    def _shrinks(self, sample: bytes) -> float:
        return len(self._compressor.compress(sample)) / len(sample)

    def _compress(self, data: memoryview, most: int, began: float) -> bytes | None:
        frame = self._compressor.compressobj(size=len(data))
        parts, size = [], 0
        for start in range(0, len(data), _STEP):
            parts.append(frame.compress(data[start : start + _STEP]))
            size += len(parts[-1])
            if size > min(most, LARGEST) or self._clock() - began > self.seconds:
                return None
        parts.append(frame.flush())
        whole = b"".join(parts)
        return whole if len(whole) <= most else None


def is_float(leaf: Leaf) -> bool:
    """Whether the values are floating-point numbers, real or complex."""
    return "float" in leaf.dtype or "complex" in leaf.dtype or leaf.dtype[1:2] in ("f", "c")


def decompress(stored: memoryview | bytes, target: memoryview | None, nbytes: int) -> bytes:
    """Decompress a zstd frame piece by piece, and hash the bytes.

    Args:
        stored: The frame.
        target: Gets the bytes, `nbytes` of them; with None they are thrown away.
        nbytes: How many bytes the frame holds.

    Returns:
        The digest of the bytes.

    Raises:
        zstandard.ZstdError: It is not a zstd frame, or holds another number of bytes.
    """
    if (claimed := expanded_size(stored, sys.maxsize)) != nbytes:
        raise zstandard.ZstdError(f"a frame of {claimed} bytes, not of {nbytes}")
    hasher, done = xxhash.xxh3_128(), 0
    piece = np.empty(min(_STEP, nbytes), np.uint8).data if target is None else None
    with decompressor().stream_reader(stored) as reader:
        while done < nbytes:
            part = target[done : done + _STEP] if target is not None else piece[: nbytes - done]  # type: ignore[index]
            got = reader.readinto(part)
            if not got:
                raise zstandard.ZstdError(f"a frame of {done} bytes, not of {nbytes}")
            hasher.update(part[:got])
            done += got
        if reader.read(1):
            raise zstandard.ZstdError(f"a frame of more than {nbytes} bytes")
    return hasher.digest()


def _sample(data: memoryview, size: int) -> bytes:
    """Pieces of so many bytes, from everywhere in a tensor."""
    last = len(data) - size
    starts = [last * i // (_PIECES - 1) // 64 * 64 for i in range(_PIECES)]  # whole values
    return b"".join([data[start : start + size] for start in starts])

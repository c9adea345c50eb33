"""What several tests need."""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np


def same(found: Any, expected: Any) -> bool:
    """Asserts that two values are equal to the last bit, types and the order of keys included."""
    assert type(found) is type(expected)
    torch = sys.modules.get("torch")
    if isinstance(expected, dict):
        assert list(found) == list(expected) and [*map(type, found)] == [*map(type, expected)]
        assert all(same(found[key], expected[key]) for key in expected)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected) and all(map(same, found, expected))
    elif isinstance(expected, (np.ndarray, np.generic)):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
    elif torch is not None and isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        if expected.numel():
            assert found.reshape(-1).view(torch.uint8).equal(expected.reshape(-1).view(torch.uint8))
    elif isinstance(expected, float):
        alike = found == expected and math.copysign(1, found) == math.copysign(1, expected)
        assert alike or (math.isnan(found) and math.isnan(expected))
    else:
        assert found == expected
    return True


def bomb(nbytes: int, claimed: int | None = None) -> bytes:
    """A zstd frame of zeros, 32,768 times smaller than what it expands to, and what it claims to expand to."""
    window = b"\xc0\x38"  # 8 bytes say the size; 128 KiB
    head = b"\x28\xb5\x2f\xfd" + window + (nbytes if claimed is None else claimed).to_bytes(8, "little")
    whole, rest = divmod(nbytes, 1 << 17)
    block = ((1 << 17) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    return head + block * whole + (rest << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"


@contextlib.contextmanager
def at_most(nbytes: int) -> Iterator[None]:
    """Asserts that no more memory than that is asked for within."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < nbytes, f"{peak:,} bytes"

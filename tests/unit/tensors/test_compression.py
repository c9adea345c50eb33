"""What is compressed, and what is not: by a sample, within an allowance of processor time."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data.tensors.compression import TensorCompressor, decompress
from tensordb_data.tensors.leaf import host_bytes
from tensordb_data.tensors.tree import flatten
from tensordb_data.tensors.write import digest

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.standard_normal(300_000).astype("f4")
GAINS = {
    "zeros": np.zeros(300_000, "f4"),
    "mask": NOISE > 0,
    "int8": np.clip(NOISE * 20, -127, 127).astype("i1"),
    "indices": RANDOM.integers(0, 50_000, 100_000),
    "sparse rows": np.where(RANDOM.random((3000, 1)) < 0.8, 0, NOISE.reshape(3000, 100)),
    "text": b"structure " * 1000,
    "bfloat16 zeros": torch.zeros(100_000, dtype=torch.bfloat16),
    "of bfloat16": torch.from_numpy(NOISE).bfloat16().float(),
}
STAYS = {
    "float32": NOISE,
    "uniform": RANDOM.random(300_000, dtype="f4"),
    "float16": NOISE.astype("f2"),
    "bfloat16": torch.from_numpy(NOISE).bfloat16(),
    "variance": NOISE**2 * 1e-3,
    "bytes": RANDOM.integers(0, 256, 300_000, dtype="u1"),
    "complex": NOISE[::2] + 1j * NOISE[1::2],
    "small": np.zeros(1000, "f4"),
}


def leaf(value):
    (found,) = flatten({"x": value}).leaves
    return found, host_bytes(found)


@pytest.mark.parametrize("name", GAINS)
def test_what_gains(name):
    found, data = leaf(GAINS[name])
    small = TensorCompressor().compress(found, data)
    assert small is not None and len(small) < 0.9 * len(data)
    target = np.empty(len(data), np.uint8)
    assert decompress(small, target.data, len(data)) == digest(data) == decompress(memoryview(small), None, len(data))
    assert target.tobytes() == bytes(data)


@pytest.mark.parametrize("name", STAYS)
def test_what_does_not(name):
    assert TensorCompressor().compress(*leaf(STAYS[name])) is None


def test_no_more_than_allowed():
    found, data = leaf(np.zeros(4_000_000, "f4"))
    assert TensorCompressor(0.0).compress(found, data) is None
    asked = itertools.count()
    busy = TensorCompressor(5.0, clock=lambda: float(next(asked)))  # each look takes a second
    assert busy.compress(found, data) is None and busy.seconds < 5
    left = TensorCompressor(1e9, clock=lambda: float(next(asked)))
    assert left.compress(found, data) is not None and 0 < left.seconds < 1e9
    # a machine that stalls in the middle of it
    times = iter([0.0, 0.0, *[100.0] * 9])
    assert TensorCompressor(50.0, clock=lambda: next(times)).compress(found, data) is None


def test_a_sample_that_promises_too_much():
    """Zeros where the sample looks, noise elsewhere."""
    data = RANDOM.integers(0, 256, 8 << 20, dtype="u1")
    for start in np.linspace(0, len(data) - 4096, 8).astype(int):
        data[start - start % 64 : start + 4096] = 0
    assert TensorCompressor().compress(*leaf(data)) is None


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=200), st.integers(1, 3000), st.data())
def test_a_damaged_frame_is_never_taken_for_whole(piece, times, drawn):
    data = memoryview(piece * times)
    frame = bytearray(zstandard.ZstdCompressor(level=1).compress(data))
    at = drawn.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= 1 << drawn.draw(st.integers(0, 7))
    target = np.empty(len(data), np.uint8)
    with contextlib.suppress(zstandard.ZstdError):
        content = decompress(bytes(frame), target.data, len(data))
        # some bits of a header say nothing
        assert (content == digest(data)) == (target.tobytes() == bytes(data))
    for wrong in (len(data) - 1, len(data) + 1):
        with pytest.raises(zstandard.ZstdError):
            decompress(zstandard.ZstdCompressor(level=1).compress(data), None, wrong)

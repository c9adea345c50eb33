"""What a frame claims is compared with a bound before any of it is expanded."""

from __future__ import annotations

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.common.zstd import MAX_EXPANDED, expand, expanded_size
from tests.helpers import at_most, bomb


@given(st.binary(max_size=300), st.integers(0, 300), st.sampled_from([1, 3, 22]))
def test_a_frame_expands_to_its_bytes_if_they_are_few_enough(data: bytes, more: int, level: int) -> None:
    frame = zstandard.ZstdCompressor(level=level).compress(data)
    assert expand(memoryview(frame), len(data) + more) == data
    if data:
        with pytest.raises(zstandard.ZstdError, match=f"at most {len(data) - 1} bytes, found one that claims"):
            expand(frame, len(data) - 1)


def test_what_is_refused_takes_no_memory() -> None:
    assert expand(bomb(1 << 20)) == bytes(1 << 20)
    stream = zstandard.ZstdCompressor().compressobj()
    without_a_size = stream.compress(b"some") + stream.flush()
    with at_most(5 << 20):
        for frame, says in [
            (bomb(3 * 10**9), r"claims 3,000,000,000"),
            (bomb(100, claimed=2**50), "at most 1,073,741,824 bytes, found one that claims 1,125,899,906,842,624"),
            (bomb(100, claimed=MAX_EXPANDED), "18 bytes cannot expand to the 1,073,741,824 that they claim"),
            (bomb(100)[:12], "error when determining content size"),
            (without_a_size, "says how many bytes"),
            (b"", "error when determining content size"),
        ]:
            with pytest.raises(zstandard.ZstdError, match=says):
                expand(frame)
    assert expanded_size(bomb(3 * 10**9), 2**40) == 3 * 10**9
    with pytest.raises(zstandard.ZstdError):
        expand(bomb(100, claimed=99))
    huge_window = b"\x28\xb5\x2f\xfd\xc0\xa8" + bomb(100)[6:]
    with pytest.raises(zstandard.ZstdError, match="memory"):
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(huge_window) as reader:
            reader.read(10)

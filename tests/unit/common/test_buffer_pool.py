"""The memory of a batch is used again, and never while anybody can see it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data.common import buffer_pool

MB = 1 << 20


@pytest.fixture(autouse=True)
def _none_spare() -> None:
    buffer_pool._free.clear()


VIEWS: list[Callable[[Any], Any]] = [
    lambda array: array,
    lambda array: array[1:],
    lambda array: array[2, 5:9],
    lambda array: array.view(np.uint8).reshape(-1)[7:],
    lambda array: array.T,
    torch.from_numpy,
    lambda array: torch.from_numpy(array)[1:].view(torch.uint8),
    lambda array: memoryview(array)[1:],
    lambda array: np.frombuffer(array.data[1:], np.uint8),
    lambda array: array.astype(array.dtype, copy=False)[..., None],
]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_seen_is_never_handed_out(data: st.DataObject) -> None:
    held: list[tuple[Any, int]] = []
    for value in range(data.draw(st.integers(1, 25))):
        rows = data.draw(st.sampled_from([8, 16]))
        array = buffer_pool.empty((rows, MB // 32), np.float32)
        array.view(np.uint8).fill(value)
        held.append((data.draw(st.sampled_from(VIEWS))(array), value))
        del array
        if data.draw(st.booleans()):
            held.pop(data.draw(st.integers(0, len(held) - 1)))
        for view, expected in held:
            assert set(np.asarray(view).reshape(-1)[[0, -1]].tobytes()) == {expected}
        assert sum(block.nbytes for block in buffer_pool._free) <= 64 * MB


@pytest.mark.parametrize("view", VIEWS)
def test_the_last_view_gives_it_back(view: Callable[[Any], Any]) -> None:
    array = buffer_pool.empty((8, MB // 8), np.float32)
    address = array.ctypes.data
    seen = view(array)
    del array
    assert not buffer_pool._free
    del seen
    assert len(buffer_pool._free) == 1
    again = buffer_pool.empty((MB, 4), np.uint8)
    assert again.ctypes.data == address and again.shape == (MB, 4) and again.flags.writeable
    assert not buffer_pool._free


def test_small_ones_and_objects_are_numpys_own() -> None:
    for array in (
        buffer_pool.empty((3, 5), np.int16),
        buffer_pool.empty((MB,), object),
        buffer_pool.empty((0, MB), np.int64),
    ):
        del array
    assert not buffer_pool._free


def test_little_is_kept_while_nobody_uses_it() -> None:
    many = [buffer_pool.empty((16 * MB,), np.uint8) for _ in range(10)]
    del many
    assert [block.nbytes for block in buffer_pool._free] == [16 * MB] * 4
    large = [buffer_pool.empty((100 * MB,), np.uint8) for _ in range(3)]
    del large
    assert [block.nbytes for block in buffer_pool._free] == [100 * MB] * 2


def test_garbage_that_is_collected_in_the_middle_of_it_waits_for_nobody() -> None:
    array = buffer_pool.empty((MB,), np.uint8)
    with buffer_pool._lock:
        del array
    assert not buffer_pool._free
    array = buffer_pool.empty((MB,), np.uint8)
    del array
    assert len(buffer_pool._free) == 1


def test_many_threads_share_them() -> None:
    def work(number: int) -> bool:
        sound = True
        for turn in range(50):
            array = buffer_pool.empty((MB,), np.uint8)
            array.fill((number + turn) % 251)
            sound &= bool((torch.from_numpy(array) == (number + turn) % 251).all())
        return sound

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(16)))
    assert len(buffer_pool._free) <= 16  # the next before the last is let go


def test_a_forked_child_has_its_own() -> None:
    array = buffer_pool.empty((MB,), np.uint8)
    del array
    with buffer_pool._lock:  # as it may be in another thread at that moment
        child = os.fork()
        if not child:
            try:
                other = buffer_pool.empty((MB,), np.uint8)
                other.fill(1)
                del other
                os._exit(0 if len(buffer_pool._free) == 1 else 1)
            finally:
                os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(buffer_pool._free) == 1

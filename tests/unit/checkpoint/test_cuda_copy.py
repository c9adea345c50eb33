"""When a copy within the device is made, and when not. What copies a GPU makes is seen on one: see test_cuda.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tensordb_data.checkpoint.cuda_copy import DeviceCopy

N = 1000


class Stream:
    """Of a device on which everything happens at once."""

    def wait_stream(self, other: Any) -> None:
        pass

    def record_event(self) -> Any:
        return self

    def synchronize(self) -> None:
        pass


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The memory of a device whose memory is that of the host: bytes that are free, and the largest piece of them."""
    memory = {"free": 10 * N, "piece": 10 * N}
    empty = torch.empty

    def allocate(nbytes: int, *, dtype: torch.dtype, device: Any) -> torch.Tensor:
        if nbytes > memory["piece"]:
            raise torch.cuda.OutOfMemoryError("none in one piece")
        return empty(nbytes, dtype=dtype)

    monkeypatch.setattr(torch, "empty", allocate)
    fakes: dict[str, Callable[..., Any]] = {
        "Stream": lambda device: Stream(), "current_stream": lambda device: Stream(),
        "stream": lambda stream: contextlib.nullcontext(), "device": lambda device: contextlib.nullcontext(),
        "memory_reserved": lambda device: 0, "memory_allocated": lambda device: 0,
        "mem_get_info": lambda device: (memory["free"], 100 * N),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return memory


def room(copy: DeviceCopy) -> int:
    return 0 if copy._within is None else int(copy._within.untyped_storage().nbytes())


def test_the_copy_within_takes_room_only_while_it_is_under_way(free: dict[str, int]) -> None:
    host, source = torch.zeros(N, dtype=torch.uint8), torch.arange(N).to(torch.uint8)
    copy = DeviceCopy("cuda:0", host, lambda memory: [memory[:10], memory[10:]])
    for turn in range(3):
        assert room(copy) == 0
        copy.start([source[:10] + turn, source[10:] + turn])
        assert room(copy) == N
        copy.wait()
        assert torch.equal(host, source + turn) and room(copy) == 0


@pytest.mark.parametrize("little", [{"free": 2 * N - 1, "piece": N}, {"free": 10 * N, "piece": N - 1}])
def test_without_room_the_loop_waits_for_the_host(free: dict[str, int], little: dict[str, int]) -> None:
    """From the start, when nothing has been laid out yet; once there is room, it is taken."""
    much = dict(free)
    free.update(little)
    host, source = torch.zeros(N, dtype=torch.uint8), torch.arange(N).to(torch.uint8)
    copy = DeviceCopy("cuda:0", host, lambda memory: [memory])
    for turn, now in enumerate((little, much, little if little["free"] < 2 * N else much)):
        free.update(now)
        copy.start([source + turn])
        assert room(copy) == (N if now == much else 0)
        copy.wait()
        assert torch.equal(host, source + turn)

"""Collective: what the processes of torch.distributed tell each other, as bytes: its ways for objects use pickle."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from tensordb_data import errors
from tensordb_data.errors import TensorDBError


class Collective:
    """A gloo group of its own, so that nothing waits for a GPU. All processes make one, and call each method, together.

    Attributes:
        rank: Of this process.
        size: Number of processes.
        group: For further calls of torch.
    """

    def __init__(self) -> None:
        self._torch: Any = sys.modules["torch"]
        self._dist: Any = self._torch.distributed
        self.rank, self.size = int(self._dist.get_rank()), int(self._dist.get_world_size())
        self.group = self._dist.new_group(backend="gloo")

    def all(self, data: bytes) -> list[bytes]:
        """What each process gives, in the order of ranks."""
        sizes = [self._torch.zeros(1, dtype=self._torch.int64) for _ in range(self.size)]
        self._dist.all_gather(sizes, self._torch.tensor([len(data)]), group=self.group)
        longest = max(int(size) for size in sizes)
        own = self._tensor(data.ljust(longest, b"\0"))
        found = [self._tensor(bytes(longest)) for _ in sizes]
        self._dist.all_gather(found, own, group=self.group)
        return [bytes(each.numpy()[: int(size)]) for each, size in zip(found, sizes, strict=True)]

    def each(self, make: Callable[[], bytes]) -> list[bytes]:
        """What `make` returns on each process, in the order of ranks.

        Raises:
            TensorDBError: What it raises on one, on every rank, so that none waits for another that has failed.
        """
        told, failure = _attempt(make)
        found = self.all(told)
        if failure is not None:
            raise failure
        return [_told(rank, each) for rank, each in enumerate(found)]

    def first(self, make: Callable[[], bytes]) -> bytes:
        """What `make` returns on rank 0.

        Raises:
            TensorDBError: What it raises there, on every rank.
        """
        told, failure = _attempt(make) if self.rank == 0 else (b"", None)
        size = self._torch.tensor([len(told)])
        self._dist.broadcast(size, 0, group=self.group)
        content = self._tensor(told if self.rank == 0 else bytes(int(size)))
        self._dist.broadcast(content, 0, group=self.group)
        if failure is not None:
            raise failure
        return _told(0, bytes(content.numpy()))

    def _tensor(self, data: bytes) -> Any:
        if not data:
            return self._torch.zeros(0, dtype=self._torch.uint8)
        return self._torch.frombuffer(bytearray(data), dtype=self._torch.uint8)


def _attempt(make: Callable[[], bytes]) -> tuple[bytes, Exception | None]:
    """What the other processes are told, and what was raised: they wait for it, whatever it is."""
    try:
        return b"+" + make(), None
    except Exception as error:
        name = type(error).__name__
        text = str(error) if isinstance(error, TensorDBError) else f"{name}: {error}"
        return b"-" + json.dumps([name, text]).encode(), error


def _told(rank: int, told: bytes) -> bytes:
    if told[:1] == b"+":
        return told[1:]
    name, text = json.loads(told[1:])
    kind = getattr(errors, name, TensorDBError)
    if not (isinstance(kind, type) and issubclass(kind, TensorDBError)):
        kind = TensorDBError
    raise kind(f"rank {rank}: {text}")

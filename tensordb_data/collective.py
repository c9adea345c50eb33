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

    def first(self, make: Callable[[], bytes]) -> bytes:
        """What `make` returns on rank 0.

        Raises:
            TensorDBError: What it raises there, on every rank.
        """
        told, failure = b"", None
        if self.rank == 0:
            try:
                told = b"+" + make()
            except TensorDBError as error:
                failure = error
                told = b"-" + json.dumps([type(error).__name__, str(error)]).encode()
        size = self._torch.tensor([len(told)])
        self._dist.broadcast(size, 0, group=self.group)
        content = self._tensor(told if self.rank == 0 else bytes(int(size)))
        self._dist.broadcast(content, 0, group=self.group)
        if failure is not None:
            raise failure
        told = bytes(content.numpy())
        if told[:1] == b"-":
            name, text = json.loads(told[1:])
            kind = getattr(errors, name, TensorDBError)
            raise (kind if issubclass(kind, TensorDBError) else TensorDBError)(f"rank 0: {text}")
        return told[1:]

    def _tensor(self, data: bytes) -> Any:
        if not data:
            return self._torch.zeros(0, dtype=self._torch.uint8)
        return self._torch.frombuffer(bytearray(data), dtype=self._torch.uint8)

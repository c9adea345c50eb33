"""Exchange bytes between the processes of torch.distributed. Its own calls for objects use pickle."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from tensordb_data import errors
from tensordb_data.errors import TensorDBError


class Collective:
    """A gloo group for small messages. It does not wait for a GPU.

    All processes make one, and all call each method together.

    Attributes:
        rank: The rank of this process.
        size: The number of processes.
        group: The group, for further calls of torch.
    """

    def __init__(self) -> None:
        self._torch: Any = sys.modules["torch"]
        self._dist: Any = self._torch.distributed
        self.rank, self.size = int(self._dist.get_rank()), int(self._dist.get_world_size())
        self.group = self._dist.new_group(backend="gloo")

    def all(self, data: bytes) -> list[bytes]:
        """Gather the data of every process, in the order of ranks."""
        sizes = [self._torch.zeros(1, dtype=self._torch.int64) for _ in range(self.size)]
        self._dist.all_gather(sizes, self._torch.tensor([len(data)]), group=self.group)
        longest = max(int(size) for size in sizes)
        own = self._tensor(data.ljust(longest, b"\0"))
        found = [self._tensor(bytes(longest)) for _ in sizes]
        self._dist.all_gather(found, own, group=self.group)
        return [bytes(each.numpy()[: int(size)]) for each, size in zip(found, sizes, strict=True)]

    def each(self, make: Callable[[], bytes]) -> list[bytes]:
        """Call `make` on each process, and gather the results, in the order of ranks.

        Raises:
            TensorDBError: `make` has raised on one process. Every rank raises the same error, so that none waits.
        """
        message, failure = _attempt(make)
        found = self.all(message)
        if failure is not None:
            raise failure
        return [_result(rank, each) for rank, each in enumerate(found)]

    def first(self, make: Callable[[], bytes]) -> bytes:
        """Call `make` on rank 0, and send the result to all processes.

        Raises:
            TensorDBError: `make` has raised. Every rank raises the same error.
        """
        message, failure = _attempt(make) if self.rank == 0 else (b"", None)
        size = self._torch.tensor([len(message)])
        self._dist.broadcast(size, 0, group=self.group)
        content = self._tensor(message if self.rank == 0 else bytes(int(size)))
        self._dist.broadcast(content, 0, group=self.group)
        if failure is not None:
            raise failure
        return _result(0, bytes(content.numpy()))

    def _tensor(self, data: bytes) -> Any:
        if not data:
            return self._torch.zeros(0, dtype=self._torch.uint8)
        return self._torch.frombuffer(bytearray(data), dtype=self._torch.uint8)


def _attempt(make: Callable[[], bytes]) -> tuple[bytes, Exception | None]:
    """Call `make`. Return a message for the other processes, the result or the error, and the error that was raised."""
    try:
        return b"+" + make(), None
    except Exception as error:
        name = type(error).__name__
        text = str(error) if isinstance(error, TensorDBError) else f"{name}: {error}"
        return b"-" + json.dumps([name, text]).encode(), error


def _result(rank: int, message: bytes) -> bytes:
    """Read a message of a rank: return its result, or raise its error."""
    if message[:1] == b"+":
        return message[1:]
    name, text = json.loads(message[1:])
    kind = getattr(errors, name, TensorDBError)
    if not (isinstance(kind, type) and issubclass(kind, TensorDBError)):
        kind = TensorDBError
    raise kind(f"rank {rank}: {text}")

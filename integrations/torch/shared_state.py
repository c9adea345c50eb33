"""SharedState: the newest start state, in memory that the workers of a DataLoader share with their parent.

The parent writes the state, and the workers read it at each iteration. The workers write which iteration it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from tensordb_data.errors import StateError

_BYTES = 1 << 16


class SharedState:
    """One JSON document in shared memory, which the parent process writes, and a count of the writes.

    Persistent workers are started once, so they do not see what the parent assigns later. But they share this memory,
    whether they were started by fork, spawn or forkserver.
    """

    def __init__(self) -> None:
        self._head = torch.zeros(4, dtype=torch.int64)
        self._body = torch.zeros(_BYTES, dtype=torch.uint8)
        self._share_memory()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._share_memory()  # the copy has private memory, which forked workers would not share

    def _share_memory(self) -> None:
        self._head.share_memory_()  # type: ignore[no-untyped-call]
        self._body.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def iteration(self) -> str:
        """The name of the iteration that was begun last. All its workers write the same."""
        return f"{int(self._head[2])}-{int(self._head[3])}"

    def begin(self, seed: int, count: int) -> None:
        """Note that iteration number `count` begins, of the workers that the loader started with `seed`."""
        self._head[2], self._head[3] = seed, count

    @property
    def version(self) -> int:
        """The number of documents that were posted."""
        return int(self._head[0])

    def post(self, document: Mapping[str, Any]) -> None:
        """Replace the document.

        Raises:
            StateError: its JSON form is over 64 KiB.
        """
        text = json.dumps(document).encode()
        if len(text) > _BYTES:
            raise StateError(f"the stream state is too long for the workers: {len(text)} bytes, at most {_BYTES}")
        self._body[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self._head[1] = len(text)
        self._head[0] += 1

    def read(self) -> dict[str, Any]:
        """Read the newest document. There is one only if `version` is above 0."""
        document: dict[str, Any] = json.loads(bytes(self._body[: int(self._head[1])].tolist()))
        return document

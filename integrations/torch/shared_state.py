"""Mailbox: the newest start state, where the workers of a DataLoader can read it at each iteration, and in the other
direction, which iteration that is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from tensordb_data.errors import StateError

_BYTES = 1 << 16


class SharedState:
    """One JSON document in shared memory, written by the parent process, with the number of times it was written.

    Persistent workers are started once and never see the parent's later assignments; shared memory is what fork, spawn
    and forkserver all hand on.
    """

    def __init__(self) -> None:
        self._head = torch.zeros(4, dtype=torch.int64)
        self._body = torch.zeros(_BYTES, dtype=torch.uint8)
        self._share_passes()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._share_passes()  # a plain copy is private memory, which forked workers would not share

    def _share_passes(self) -> None:
        self._head.share_memory_()  # type: ignore[no-untyped-call]
        self._body.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def iteration(self) -> str:
        """Name of the iteration that was begun last; all its workers write the same."""
        return f"{int(self._head[2])}-{int(self._head[3])}"

    def begin(self, seed: int, count: int) -> None:
        """An iteration is begun: of workers that the loader started with a seed, the `count`-th of theirs."""
        self._head[2], self._head[3] = seed, count

    @property
    def version(self) -> int:
        """How often a document was posted."""
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
        """The newest document; call it only when `version` is above 0."""
        document: dict[str, Any] = json.loads(bytes(self._body[: int(self._head[1])].tolist()))
        return document

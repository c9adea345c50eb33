"""SharedState: the newest start state, in memory that the workers of a DataLoader share with their parent.

The parent writes the state, and the workers read it at each iteration. The workers write which iteration it is, and at
which pass it begins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from tensordb_data.errors import StateError

_BYTES = 1 << 16
_NONE = -1


class SharedState:
    """One JSON document in shared memory, which the parent process writes, and a count of the writes.

    Persistent workers are started once, so they do not see what the parent assigns later. But they share this memory,
    whether they were started by fork, spawn or forkserver.
    """

    def __init__(self) -> None:
        self._head = torch.zeros(6, dtype=torch.int64)
        self._head[4:] = _NONE
        self._body = torch.zeros(_BYTES, dtype=torch.uint8)

    def share(self) -> None:
        """Move to shared memory, before workers are started. A copy has private memory, which they would not share."""
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
    def current(self) -> int | None:
        """The pass with which the newest iteration began. None: it began at the document, or none has begun."""
        return self._number(4)

    @property
    def next(self) -> int | None:
        """The pass with which the next iteration begins. None: it begins at the document."""
        return self._number(5)

    def go_on(self, current: int | None, following: int | None, *, back: bool = False) -> None:
        """Note that an iteration begins at pass `current`, and that pass `following` is the one after it.

        All workers of an iteration note the same. One that is late changes nothing.

        Args:
            current: See `current`.
            following: None if the iteration has no end. Nothing is noted then.
            back: Whether the iteration may be an earlier one than the newest.
        """
        if following is not None and (back or following > int(self._head[5])):
            self._head[4], self._head[5] = _NONE if current is None else current, following

    def _number(self, place: int) -> int | None:
        number = int(self._head[place])
        return None if number == _NONE else number

    @property
    def version(self) -> int:
        """The number of documents that were posted."""
        return int(self._head[0])

    def post(self, document: Mapping[str, Any]) -> None:
        """Replace the document. The next iteration begins there.

        Raises:
            StateError: its JSON form is over 64 KiB.
        """
        text = json.dumps(document).encode()
        if len(text) > _BYTES:
            raise StateError(f"the stream state is too long for the workers: {len(text)} bytes, at most {_BYTES}")
        self._body[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self._head[1] = len(text)
        self._head[4:] = _NONE
        self._head[0] += 1

    def read(self) -> dict[str, Any]:
        """Read the newest document. There is one only if `version` is above 0."""
        document: dict[str, Any] = json.loads(bytes(self._body[: int(self._head[1])].tolist()))
        return document

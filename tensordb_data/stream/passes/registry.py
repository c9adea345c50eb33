"""PassRegistry: which data each pass goes over. The first reader that comes to a pass registers its data.

The readers of a shared stream are worker processes and ranks, on any host. They register passes as documents of the
database, each inserted once and never changed. No reader waits for another one, so a reader may be killed at any point.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pymongo.errors import OperationFailure

from tensordb_data.mongo.errors import UNAUTHORIZED
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.state import State

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_PART = 8 << 20

OpenedPasses = Sequence[tuple[int, State]]
"""Passes that were opened ahead of time: their numbers, and the data that they were opened on."""


class PassRegistry:
    """The passes of one iteration, for a stream with one reader."""

    iteration: str | None = None
    """The name of the iteration, if its readers share one."""

    def __init__(self) -> None:
        self._found: dict[int, State] = {}

    def get(self, number: int) -> State | None:
        """The data of a pass; None if nobody has registered it."""
        return self._found.get(number)

    def setdefault(self, number: int, data: State) -> State:
        """Register the data of a pass. Returns `data`, or what another reader has registered before."""
        return self._found.setdefault(number, data)


class SharedPassRegistry(PassRegistry):
    """The passes of one iteration, for a stream with readers in several processes or ranks.

    Its documents are removed after some days.

    Args:
        warehouse: Where the documents are.
        spec: The spec of the stream.
        token: The name that the readers of the stream share.
        iteration: The name that the readers of the iteration share.
        ranks: Whether there are readers in several ranks.
    """

    def __init__(
        self, warehouse: Warehouse, spec: StreamSpec, token: str, iteration: str = "", *, ranks: bool = False
    ) -> None:
        super().__init__()
        self.warehouse, self.spec, self.token, self.iteration = warehouse, spec, token, iteration
        self._ranks = ranks

    def of_iteration(self, name: str) -> SharedPassRegistry:
        """The registry of another iteration.

        Ranks have no common name for an iteration. So among ranks, what is registered holds in all iterations.
        """
        name = "" if self._ranks else name
        return SharedPassRegistry(self.warehouse, self.spec, self.token, name, ranks=self._ranks)

    @property
    def for_good(self) -> SharedPassRegistry:
        """Where the readers of a pinned stream register the data of all of its passes, as pass 0."""
        return SharedPassRegistry(self.warehouse, self.spec, self.token, "pinned", ranks=self._ranks)

    def is_writable(self) -> bool:
        """Whether this user may write to the database. Without this right, nothing can be registered."""
        if self.warehouse.address.read_only:
            return False
        try:
            self._documents.update_one({"_id": self.token}, {"$set": {"at": _now()}}, upsert=True)
        except OperationFailure as error:
            if error.code == UNAUTHORIZED:
                return False
            raise
        return True

    def get(self, number: int) -> State | None:
        """See `PassRegistry`."""
        if number not in self._found:
            doc = self._documents.find_one({"_id": self._key(number)})
            if doc is None:
                return None
            self._found[number] = State.from_doc(json.loads(doc["state"]), self.spec)
        return self._found[number]

    def setdefault(self, number: int, data: State) -> State:
        """See `PassRegistry`."""
        content = {"state": json.dumps(data.to_doc(self.spec)), "at": _now()}
        self._documents.update_one({"_id": self._key(number)}, {"$setOnInsert": content}, upsert=True)
        found = self.get(number)
        assert found is not None
        return found

    def send_plan(self, name: str, plan: NDArray[np.uint8]) -> None:
        """Store a plan, for readers that share no cache with this one."""
        for part in range(0, len(plan), _PART):
            content = {"part": part, "ids": name, "data": plan[part : part + _PART].tobytes(), "at": _now()}
            key = {"_id": f"{self.token}/plan {name}/{part}"}
            self._documents.update_one(key, {"$setOnInsert": content}, upsert=True)

    def receive_plan(self, name: str) -> NDArray[np.uint8] | None:
        """A plan that another reader has stored; None if there is none of this name."""
        key = {"_id": {"$gte": f"{self.token}/plan {name}/", "$lt": f"{self.token}/plan {name}0"}}
        parts = sorted(self._documents.find(key), key=lambda doc: int(doc["part"]))
        found = b"".join(doc["data"] for doc in parts)
        return np.frombuffer(found, np.uint8) if found else None

    @property
    def _documents(self) -> Any:
        return self.warehouse.index["passes"]

    def _key(self, number: int) -> str:
        return f"{self.token}/iteration {self.iteration}/pass {number}"


def new_token() -> str:
    """A name for the registries of a stream."""
    return os.urandom(12).hex()


def _now() -> datetime:
    return datetime.now(timezone.utc)

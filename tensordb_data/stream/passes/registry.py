"""Passes: which data each pass of a shared stream goes over. The first reader that comes to a pass says so.

Readers are worker processes and ranks, on any host: what they agree on are documents of the database, each inserted
once and never changed. Nobody is waited for, so that a reader may be killed at any point.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pymongo.errors import OperationFailure

from tensordb_data.mongo.errors import UNAUTHORIZED
from tensordb_data.stream.spec import StreamSpec
from tensordb_data.stream.state import State

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_PART = 8 << 20

Opened = Sequence[tuple[int, State]]
"""Passes that were opened ahead of time: their numbers, and the data that they were opened on."""


class Passes(Protocol):
    """The data of the passes of one iteration."""

    def get(self, number: int) -> State | None:
        """The data of a pass, if that is settled."""
        ...

    def put(self, number: int, data: State) -> State:
        """The data of a pass: `data`, unless somebody was first."""
        ...


class OwnPasses:
    """Of a stream with one reader."""

    def __init__(self) -> None:
        self._found: dict[int, State] = {}

    def get(self, number: int) -> State | None:
        """See `Passes`."""
        return self._found.get(number)

    def put(self, number: int, data: State) -> State:
        """See `Passes`."""
        return self._found.setdefault(number, data)


class Ledger:
    """What the copies of one stream, in processes and ranks, have agreed on. Its documents are gone after some days."""

    def __init__(self, warehouse: Warehouse, spec: StreamSpec, token: str) -> None:
        self.warehouse, self.spec, self.token = warehouse, spec, token

    def writable(self) -> bool:
        """Whether this user may write to the database, which agreeing takes."""
        try:
            self._passes.update_one({"_id": self.token}, {"$set": {"at": _now()}}, upsert=True)
        except OperationFailure as error:
            if error.code == UNAUTHORIZED:
                return False
            raise
        return True

    def iteration(self, name: str) -> SharedPasses:
        """The passes of the iteration that its readers know as `name`.

        Ranks have no name in common for an iteration: among them, what was said of a pass once holds in all.
        """
        return SharedPasses(self, name if self.spec.world_size == 1 else "")

    def send(self, ids: str, plan: NDArray[np.uint8]) -> None:
        """Keep a plan for readers that share no cache with this one."""
        for part in range(0, len(plan), _PART):
            content = {"part": part, "ids": ids, "data": plan[part : part + _PART].tobytes(), "at": _now()}
            key = {"_id": f"{self.token}/plan {ids}/{part}"}
            self._passes.update_one(key, {"$setOnInsert": content}, upsert=True)

    def receive(self, ids: str) -> NDArray[np.uint8] | None:
        """A plan that was sent, or `None`."""
        parts = self._passes.find({"_id": {"$gte": f"{self.token}/plan {ids}/", "$lt": f"{self.token}/plan {ids}0"}})
        found = b"".join(doc["data"] for doc in sorted(parts, key=lambda doc: int(doc["part"])))
        return np.frombuffer(found, np.uint8) if found else None

    @property
    def _passes(self) -> Any:
        return self.warehouse.index["passes"]


class SharedPasses:
    """Of one iteration of a stream with several readers."""

    def __init__(self, ledger: Ledger, iteration: str) -> None:
        self.ledger, self.name = ledger, iteration
        self._found: dict[int, State] = {}

    def get(self, number: int) -> State | None:
        """See `Passes`."""
        if number not in self._found:
            doc = self.ledger._passes.find_one({"_id": self._key(number)})
            if doc is None:
                return None
            self._found[number] = State.from_doc(json.loads(doc["state"]), self.ledger.spec)
        return self._found[number]

    def put(self, number: int, data: State) -> State:
        """See `Passes`."""
        content = {"state": json.dumps(data.to_doc(self.ledger.spec)), "at": _now()}
        self.ledger._passes.update_one({"_id": self._key(number)}, {"$setOnInsert": content}, upsert=True)
        found = self.get(number)
        assert found is not None
        return found

    def _key(self, number: int) -> str:
        return f"{self.ledger.token}/iteration {self.name}/pass {number}"


def new_token() -> str:
    """The name of a ledger."""
    return os.urandom(12).hex()


def _now() -> datetime:
    return datetime.now(timezone.utc)

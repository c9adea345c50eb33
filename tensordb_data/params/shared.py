"""Save one set by several processes: each stores its parts of tensors, process 0 commits the set when all of them have.

They agree through the database, from their background threads, and not through the process group, which belongs to the
training. Each holds a lease (`tensors.lease`) from before it stores anything until the set is committed, and renews it
from a thread. The document of the lease says what the process has stored. In the transaction that commits the set,
process 0 notes in the others' leases that it is done.

A process that dies is silent: the others then give up. What was stored stays unused, and a gc removes it.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from pymongo.errors import PyMongoError

from tensordb_data.errors import CheckpointError, UnsupportedError
from tensordb_data.params.table import Table, merge
from tensordb_data.tensors.lease import Lease, LeaseLost

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.warehouse.context import Warehouse

_BEAT = 5.0  # seconds between renewals of the lease
_SILENT = 120.0  # seconds after which a process that says nothing is taken for dead
_LOOK = 0.5  # seconds between looks at the others, at most

Doc = Mapping[str, Any]


@dataclass(frozen=True)
class Share:
    """The place of a process among those that save a set together."""

    set: ObjectId
    """The `_id` that the set will have; the same in all of them."""
    rank: int
    """Of this process; 0 commits."""
    count: int
    """How many processes there are."""


@contextlib.contextmanager
def taking_part(warehouse: Warehouse, share: Share) -> Iterator[SharedSave]:
    """Within it, a process stores what it has of a set. An error is told to the others.

    Raises:
        UnsupportedError: The database has no transactions.
        CheckpointError: This process was silent for so long that a gc has taken it for dead.
    """
    if not warehouse.index.is_server:
        raise UnsupportedError("mongomock has no transactions, so several processes cannot save one set; use a server")
    lease = Lease(warehouse, ObjectId())
    shared = SharedSave(warehouse, share, lease)
    try:
        with lease, lease.kept_alive(_BEAT):
            lease.hold(None, {"share": {"set": share.set, "rank": share.rank}})
            yield shared
    except BaseException as error:
        reason = (
            "it was silent for half an hour" if isinstance(error, LeaseLost) else f"{type(error).__name__}: {error}"
        )
        if not shared.other_failed:
            said = {"set": share.set, "rank": share.rank, "failed": reason[:1000]}
            with contextlib.suppress(PyMongoError):  # then the others find out by its silence
                warehouse.index["leases"].insert_one(
                    {"_id": ObjectId(), "state": "ended", "objects": [], "share": said}
                )
        if isinstance(error, LeaseLost):
            raise CheckpointError(
                f"what this process has stored of a set is not protected any more: {reason}"
            ) from None
        raise


class SharedSave:
    """A save of one set by several processes, as one of them sees it."""

    def __init__(self, warehouse: Warehouse, share: Share, lease: Lease) -> None:
        self._leases = warehouse.index["leases"]
        self._share, self._lease = share, lease
        self.other_failed = False
        """Whether another process has said that it failed."""

    def publish(self, table: Table) -> None:
        """Say what this process has stored; all of it is durable.

        Raises:
            LeaseLost: The lease was ended.
        """
        self._lease.hold(None, {"share": {"stored": True, "table": json.dumps(table).encode()}})

    def wait_for_commit(self) -> None:
        """Wait until process 0 has committed the set.

        Raises:
            CheckpointError: It failed, or is silent.
        """

        def committed(found: Mapping[int, Doc]) -> bool | None:
            own = self._leases.find_one({"_id": self._lease.id}, {"state": 1, "share.done": 1})
            if own is None or own["state"] != "held":
                raise LeaseLost
            return True if own.get("share", {}).get("done") else None

        self._watch({0}, committed)

    def with_others(self, table: Table) -> tuple[Table, Callable[[ClientSession | None], None]]:
        """Wait until all other processes have stored their parts.

        Returns:
            The table with their parts; and what to call in the transaction that commits the set.

        Raises:
            CheckpointError: One of them failed, or is silent, or has other tensors.
        """
        others = set(range(1, self._share.count))

        def stored(found: Mapping[int, Doc]) -> list[Doc] | None:
            ready = [doc for _, doc in sorted(found.items()) if "stored" in doc["share"]]
            return ready if len(ready) == len(others) else None

        docs = self._watch(others, stored) if others else []
        said = self._leases.find({"_id": {"$in": [doc["_id"] for doc in docs]}}, {"share.table": 1})
        tables = {doc["_id"]: json.loads(doc["share"]["table"]) for doc in said}

        def finish(session: ClientSession | None) -> None:
            self._lease.hold(session)
            ids = [doc["_id"] for doc in docs]
            held = {"_id": {"$in": ids}, "state": "held"}
            done = self._leases.update_many(held, {"$set": {"share.done": True}}, session=session)
            if done.matched_count < len(ids):
                raise CheckpointError("what another process has stored of this set is not protected any more")

        # one that has gone meanwhile is not held any more, which `finish` refuses
        return merge(table, [tables.get(doc["_id"], []) for doc in docs]), finish

    def _watch(self, ranks: set[int], wanted: Callable[[Mapping[int, Doc]], Any]) -> Any:
        """Wait until `wanted` gives something, called with the leases of other processes by their ranks."""
        heard = dict.fromkeys(ranks, time.monotonic())
        seen: dict[int, Any] = {}
        pause = threading.Event()
        seconds = 0.01
        while True:
            found: dict[int, Doc] = {}
            some = [{"share.rank": {"$in": sorted(ranks)}}, {"share.failed": {"$exists": True}}]
            theirs = {"share.set": self._share.set, "$or": some}
            for doc in self._leases.find(theirs, {"share.table": 0}):
                if "failed" in doc["share"]:
                    self.other_failed = True
                    raise CheckpointError(
                        f"process {doc['share']['rank']} could not store its part of the set: {doc['share']['failed']}"
                    )
                if doc["state"] == "held":
                    found[doc["share"]["rank"]] = doc
            if result := wanted(found):
                return result
            for rank, doc in found.items():
                if doc.get("until") != seen.get(rank):
                    seen[rank], heard[rank] = doc.get("until"), time.monotonic()
                if "stored" in doc["share"]:
                    heard[rank] = time.monotonic()  # what it has stored is durable, and protected
            if silent := [rank for rank, at in heard.items() if time.monotonic() - at > _SILENT]:
                raise CheckpointError(
                    f"process {silent[0]} has said nothing for {_SILENT:g} seconds: the set was not saved, and what is "
                    "stored of it is removed by a gc"
                )
            pause.wait(seconds)
            seconds = min(2 * seconds, _LOOK)

"""Mutations: changes of existing samples. A reader of a plan sees each of them whole, or not at all.

A mutation that fits a transaction is one transaction, together with the mutation counter of its datasets. A larger one
is many transactions, and announces itself: its datasets name it in `open` from before the first until after the last.

    datasets: {…, mut: 8, open: [{id, mut: 8, kind, host, pid, since, stamps}],
               calm: {at: Timestamp, seq, mut: 7}, stamps: {since: 5, to: 8}}
    mutations: {_id: id, p: project, d: [dataset, …], kind, until}

`mut` in `open` is what the counter was raised to when the mutation began: the number of the mutation. `calm` is a time
of the server's cluster at which nothing was open, shortly before the oldest one in `open` began, and the counters at
that time. A reader can go back to it. `until` is a lease on the server's clock, which each transaction renews. When it
has run out, whoever reads a plan ends the mutation in place of its process. If that process lives after all, its next
transaction fails, and it announces itself again. The lease is in a collection of its own, so that its writes do not
conflict with those of writers, which increment a counter in the document of the dataset.

If a document has no `open`, no mutation of its dataset is open.

A mutation of few samples **stamps** them with its number, in `_tdb.m`. So whoever has a plan of before reads these
only. `stamps` says that all mutations after 5 and up to 8 did so. One that does not leaves `stamps` as it is, and so
does a program that does not know of stamps: then `to` is less than `mut`, and plans are read as a whole.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from bson import ObjectId
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.write_concern import WriteConcern

from tensordb_data.mongo.errors import UNAUTHORIZED, is_too_large
from tensordb_data.mongo.transactions import end_stale_transactions
from tensordb_data.samples.commit import back_off
from tensordb_data.samples.commit_lock import commit_lock
from tensordb_data.samples.renamed import refuse_renamed
from tensordb_data.warehouse.datasets import ONE_MORE

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from tensordb_data.warehouse.context import Warehouse
    from tensordb_data.warehouse.documents.samples import DatasetDocument

T = TypeVar("T")

LIMIT = 10_000
"""Samples that one transaction changes at most."""
LEASE = 20.0
"""Seconds for which a mutation may be silent: more than one transaction takes."""

_FEW = 100
_ALL = WriteConcern("majority")
_MORE = {"$add": ["$mut", 1]}


class _Ended(Exception):
    """The lease has run out, and a reader has ended the mutation."""


class Mutation:
    """One change of samples: a context manager around its steps.

    Args:
        warehouse: The warehouse.
        kind: "update", "delete", "annotate" or "compact".
        datasets: The datasets that it may touch; None for all of the project.
        alone: Whether it has one step only, and so needs no announcement.
        stamps: Whether its steps stamp the samples that they change, or name those that they delete in the log.
        prepare: Called with the session in each transaction that announces it, before the announcement.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        kind: str,
        datasets: Iterable[str] | None,
        *,
        alone: bool,
        stamps: bool = False,
        prepare: Callable[[Any], None] = lambda session: None,
    ) -> None:
        self._warehouse, self._kind, self.alone, self._prepare = warehouse, kind, alone, prepare
        self.stamps = stamps and warehouse.index.is_server
        """Whether it stamps samples."""
        self._counted: Mapping[str, DatasetDocument] = {}
        self._names = None if datasets is None else sorted(datasets)
        self._id: ObjectId | None = None

    @property
    def numbers(self) -> Mapping[str, int]:
        """Its number in each dataset; within a step, and after it."""
        return {name: doc["mut"] for name, doc in self._counted.items()}

    def at(self, name: str) -> dt.datetime | None:
        """Within a step, the time of its transaction on the clock of the server; None if that is not known."""
        return self._counted[name].get("changed") if self._id is None and name in self._counted else None

    def check_not_renamed(self, fields: Iterable[str]) -> None:
        """Within a step, refuse to write under the old name of a field.

        Raises:
            SchemaError: A field had such a name, and has another one now.
        """
        for name, doc in self._counted.items():
            refuse_renamed(name, doc.get("renamed", {}), fields)

    def __enter__(self) -> Mutation:
        self._warehouse.index.make("changes")
        if not self._warehouse.index.is_server:
            self._prepare(None)
            self._counted = self._warehouse.datasets.mark_changed(self._names, deleted=self._kind == "delete")
        elif not self.alone:
            self._announce()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._warehouse.index.is_server:
            self._warehouse.datasets.mark_changed(self._names, deleted=self._kind == "delete")
        elif self._id is not None:
            # If this fails after an error, the mutation ends a little later, when its lease has run out.
            with contextlib.nullcontext() if error is None else contextlib.suppress(PyMongoError):
                self._warehouse.index.transaction(_End(self._warehouse, self._id, self._names))

    def step(self, items: Sequence[T], change: Callable[[Sequence[T], Any], int]) -> int:
        """Change some samples in one transaction, or in several if the server cannot take so many at once.

        Args:
            items: The samples, as ids or updates; at most `LIMIT`, and no sample in two steps.
            change: Called with the items and the session, and again after a conflict. Returns how many were changed.
        """
        if not self._warehouse.index.is_server:
            return change(items, None)
        while True:
            try:
                with self._commit_lock():
                    return self._warehouse.index.transaction(_Step(self, items, change))
            except _Ended:
                self._announce()
            except OperationFailure as error:
                if not is_too_large(error) or len(items) == 1:
                    raise
                break
        if self._id is None:
            self._announce()
        half = len(items) // 2
        return self.step(items[:half], change) + self.step(items[half:], change)

    def count(self, session: ClientSession) -> None:
        """Within the transaction of a step, raise the mutation counter or renew the lease.

        Raises:
            _Ended: The lease has run out, and a reader has ended the mutation.
        """
        if self._id is None:
            self._counted = self._warehouse.datasets.mark_changed(
                self._names, deleted=self._kind == "delete", stamped=self.stamps, session=session
            )
            return
        renewed = self._warehouse.index["mutations"].update_one({"_id": self._id}, [_until()], session=session)
        if not renewed.matched_count:
            raise _Ended

    def _commit_lock(self) -> contextlib.AbstractContextManager[None]:
        """The commit lock of the dataset, if this step writes its document, as a commit does."""
        if self._id is not None or self._names is None or len(self._names) != 1:
            return contextlib.nullcontext()
        return commit_lock(self._warehouse, self._names[0])

    def _announce(self) -> None:
        id = ObjectId()
        begin = _Begin(self._warehouse, id, self._kind, self._names, self.stamps)

        def announce(session: Any) -> None:
            self._prepare(session)
            begin(session)
            self._counted = self._warehouse.datasets.counted(self._names, session)

        self._warehouse.index.make("mutations")
        self._warehouse.index.transaction(announce)
        self._id = id


class _Step:
    """A transaction of a mutation. It may run several times."""

    def __init__(self, mutation: Mutation, items: Sequence[T], change: Callable[[Sequence[T], Any], int]) -> None:
        self._mutation = mutation
        self._change: Callable[[Any], int] = lambda session: change(items, session)
        self._attempts = 0

    def __call__(self, session: Any) -> int:
        back_off(self._attempts)
        self._attempts += 1
        self._mutation.count(session)
        return self._change(session)


class _Begin:
    """The transaction that announces a mutation."""

    def __init__(
        self, warehouse: Warehouse, id: ObjectId, kind: str, names: Sequence[str] | None, stamps: bool
    ) -> None:
        self._warehouse, self._id, self._kind, self._names, self._stamps = warehouse, id, kind, names, stamps
        self._attempts = 0

    def __call__(self, session: Any) -> None:
        back_off(self._attempts)
        self._attempts += 1
        index = self._warehouse.index
        entry = {
            "id": self._id, "mut": _MORE, "kind": self._kind, "host": {"$literal": socket.gethostname()},
            "pid": os.getpid(), "since": "$$NOW", **({"stamps": True} if self._stamps else {}),
        }  # fmt: skip
        now = {"at": {"$literal": cluster_time(self._warehouse)}, "seq": "$seq", "mut": "$mut"}
        # Plans do not wait for a compaction.
        waited = {"$filter": {"input": _OPEN, "cond": {"$ne": ["$$this.kind", "compact"]}}}
        calm = {"$cond": [{"$eq": [waited, []]}, now, "$calm"]}
        opened = {"$concatArrays": [_OPEN, [entry]]}
        begun: dict[str, Any] = {"mut": _MORE, "changed": "$$NOW", "open": opened, "calm": calm}
        if self._kind == "delete":
            begun["del"] = _MORE
        if self._stamps:
            begun["stamps"] = ONE_MORE
        index["datasets"].update_many(self._warehouse.datasets.filter(self._names), [{"$set": begun}], session=session)
        about = {"p": self._warehouse.project, "d": self._names, "kind": self._kind}
        new = [{"$set": {name: {"$literal": value} for name, value in about.items()}}, _until()]
        index["mutations"].update_one({"_id": self._id}, new, upsert=True, session=session)


class _End:
    """The transaction that ends a mutation.

    It raises the counter again. So a plan that an earlier version of this library has read in between is not used
    again.
    """

    def __init__(self, warehouse: Warehouse, id: ObjectId, names: Sequence[str] | None) -> None:
        self._warehouse, self._id, self._names = warehouse, id, names
        self._attempts = 0

    def __call__(self, session: Any) -> None:
        back_off(self._attempts)
        self._attempts += 1
        index = self._warehouse.index
        index["mutations"].delete_one({"_id": self._id}, session=session)
        # The document tells whether it is a deletion, so that any reader can end it.
        own = {"$filter": _only(self._id, "$eq")}
        deleted = {"$in": ["delete", {"$map": {"input": own, "in": "$$this.kind"}}]}
        stamped = {"$in": [True, {"$map": {"input": own, "in": "$$this.stamps"}}]}
        ended = {
            "mut": _MORE, "open": {"$filter": _only(self._id, "$ne")}, "del": {"$cond": [deleted, _MORE, "$del"]},
            "changed": "$$NOW", "stamps": {"$cond": [stamped, ONE_MORE, "$stamps"]},
        }  # fmt: skip
        there = {**self._warehouse.datasets.filter(self._names), "open.id": self._id}
        index["datasets"].update_many(there, [{"$set": ended}], session=session)


_OPEN = {"$ifNull": ["$open", []]}


def _only(id: ObjectId, comparison: str) -> dict[str, Any]:
    return {"input": _OPEN, "cond": {comparison: ["$$this.id", id]}}


def end_silent(warehouse: Warehouse, ids: Sequence[ObjectId], names: Sequence[str] | None) -> set[ObjectId]:
    """End open mutations whose lease has run out.

    Args:
        warehouse: The warehouse.
        ids: The mutations to look at.
        names: The datasets that name them; None for all of the project.

    Returns:
        The mutations that no process works on. They were ended, or would have been if this user could write.
    """
    left = {"$subtract": ["$until", "$$NOW"]}
    found = warehouse.index["mutations"].aggregate(
        [{"$match": {"_id": {"$in": list(ids)}}}, {"$project": {"left": left}}]
    )
    living = {doc["_id"] for doc in found if doc["left"] > 0}
    silent = {id for id in ids if id not in living}
    if warehouse.address.read_only:
        return silent
    done: set[ObjectId] = set()
    for id in silent:
        try:
            # Without a retry: if the process is in a transaction after all, this one has to give way.
            with (
                warehouse.index.database.client.start_session() as session,
                session.start_transaction(write_concern=_ALL),
            ):
                _EndSilent(warehouse, id, names)(session)
            done.add(id)
        except OperationFailure as error:
            if error.code == UNAUTHORIZED:
                done.add(id)
            elif not error.has_error_label("TransientTransactionError"):
                raise
            else:
                end_stale_transactions(warehouse.index.database.client)
    return done


class _EndSilent(_End):
    """Ends a mutation if its lease has run out."""

    def __call__(self, session: Any) -> None:
        """In a transaction."""
        index = self._warehouse.index
        out = {"_id": self._id, "$expr": {"$lte": ["$until", "$$NOW"]}}
        lease = index["mutations"].find_one_and_delete(out, session=session)
        if lease is None and index["mutations"].find_one({"_id": self._id}, session=session) is not None:
            return
        if lease is not None:
            self._names = lease["d"]
        super().__call__(session)


def are_few(warehouse: Warehouse, count: int, names: Iterable[str]) -> bool:
    """Whether a mutation of so many samples should stamp them: where they are less than a quarter of their datasets.

    A stamp costs about as much as an update, and saves reading three samples that did not change.
    """
    versions = warehouse.datasets.versions
    return count <= _FEW or 4 * count < sum(sequence for sequence, _ in versions(list(names)).values())


def cluster_time(warehouse: Warehouse) -> Any:
    """A time of the cluster up to which a majority has all writes, as a `Timestamp`; None if the server has none."""
    command = {"find": "datasets", "filter": {"_id": None}, "limit": 1, "readConcern": {"level": "snapshot"}}
    try:
        return warehouse.index.database.command(command)["cursor"].get("atClusterTime")
    except OperationFailure:
        return None


def _until() -> dict[str, Any]:
    return {"$set": {"until": {"$add": ["$$NOW", int(LEASE * 1000)]}}}

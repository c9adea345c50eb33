"""The index: the MongoDB database, as this process is connected to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pymongo import UpdateOne

from tensordb_data.mongo.retry import retry_while_unavailable
from tensordb_data.mongo.transactions import write_past_stale_transactions

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession
    from pymongo.collection import Collection
    from pymongo.database import Database

    from tensordb_data.warehouse.connection import Connections

T = TypeVar("T")

Update = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A filter and what to do with the first document that matches."""


class Index:
    """The documents of a warehouse: `index["data"]` is a collection. It reconnects after a fork.

    The first use of a collection in a process makes it and its indexes, if it is not there yet.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    @property
    def database(self) -> Database[Any]:
        """The pymongo database of this process, with the write concern of the warehouse."""
        database: Database[Any] = self._connections.get().mongo
        return database

    @property
    def is_server(self) -> bool:
        """Whether this is a real server, with sessions, change streams and raw batches; False for mongomock."""
        return self._connections.get().is_server

    def __getitem__(self, name: str) -> Collection[Any]:
        collection: Collection[Any] = self._connections.get().collection(name)
        return collection

    def make(self, *names: str) -> None:
        """Make the collections that a transaction is about to use; one that is made within it lets it begin again."""
        for name in names:
            self._connections.get().collection(name)

    def transaction(self, body: Callable[[ClientSession | None], T]) -> T:
        """Run `body(session)` in one transaction, retried on conflicts; without one, `body(None)`, on mongomock."""
        return self._connections.get().transaction(body)

    def write(self, call: Callable[[], T]) -> T:
        """Do a write outside of a transaction. It waits for an unavailable server, and ends what a killed process left.

        Args:
            call: Does the write. It does no harm if it runs twice.

        Raises:
            ConnectError: The server did not come back.
        """
        if not self.is_server:
            return call()
        return retry_while_unavailable(lambda: write_past_stale_transactions(self.database.client, call))

    def check_place(self) -> None:
        """Check that the folder of an embedded warehouse is where it was; each transaction does so, too.

        Raises:
            StorageError: It was moved, deleted or replaced.
        """
        self._connections.get().check_place()

    def update_each(self, name: str, updates: Sequence[Update], session: ClientSession | None = None) -> int:
        """Carry out updates of single documents in one round trip, in no particular order.

        Args:
            name: The collection.
            updates: A filter and an update each.
            session: Of a transaction.

        Returns:
            How many documents were modified.
        """
        collection = self[name]
        if not self.is_server:  # mongomock has no bulk writes with current drivers
            return sum(collection.update_one(*update).modified_count for update in updates)
        requests = [UpdateOne(*update) for update in updates]
        return int(collection.bulk_write(requests, ordered=False, session=session).modified_count)

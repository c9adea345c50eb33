"""Look at a server before trusting it with a warehouse, and say in one line why it cannot be used."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import pymongo
from pymongo.common import SERVER_SELECTION_TIMEOUT
from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError, ServerSelectionTimeoutError

from tensordb_data.errors import ConnectError
from tensordb_data.mongo.address import CONNECT_SECONDS, OLDEST_WIRE_VERSION
from tensordb_data.mongo.errors import AUTHENTICATION_FAILED, UNAUTHORIZED, is_transient

if TYPE_CHECKING:
    from pymongo import MongoClient

    from tensordb_data.mongo.address import Address


def check_server(client: MongoClient[dict[str, Any]], address: Address) -> None:
    """Make sure that the server answers, lets us in, and is a replica set or sharded cluster of MongoDB 5.0 or newer.

    Raises:
        ConnectError: With one line that names the address and the remedy, and no password.
    """
    patience = _patience(client, address)
    deadline = time.monotonic() + patience
    while True:
        try:
            with pymongo.timeout(max(0.1, deadline - time.monotonic())):
                hello = client.admin.command("hello")
                _check_kind(client, hello, address)
                # `hello` needs no login: ask for something that does.
                client[address.database].command({"find": "warehouse", "limit": 1, "singleBatch": True})
            return
        except ConnectError:
            raise
        except (PyMongoError, OSError, RuntimeError) as error:  # those that are not its own: of mechanisms that log in
            # A primary may be lost in the middle. Then the next one is asked.
            if not is_transient(error) or time.monotonic() >= deadline or _timed_out(error):
                raise ConnectError(explain(error, address, patience)) from None
            time.sleep(0.05)


def _timed_out(error: Exception) -> bool:
    return isinstance(error, PyMongoError) and (isinstance(error, ServerSelectionTimeoutError) or error.timeout)


def _patience(client: MongoClient[dict[str, Any]], address: Address) -> float:
    """Seconds until a server that is not there is reported: ours, unless the address or the client has its own."""
    own = client.options.server_selection_timeout
    if address.client is None:
        chosen = "serverselectiontimeoutms=" in str(address.uri).lower()
    else:
        chosen = own != SERVER_SELECTION_TIMEOUT
    return own if chosen else CONNECT_SECONDS


def _check_kind(client: MongoClient[dict[str, Any]], hello: dict[str, Any], address: Address) -> None:
    if int(hello.get("maxWireVersion", 0)) < OLDEST_WIRE_VERSION:
        version = client.admin.command("buildInfo").get("version")
        raise ConnectError(f"{address.hosts} is MongoDB {version}, and 5.0 or newer is needed: upgrade the server")
    if hello.get("setName") or hello.get("msg") == "isdbgrid":
        return
    if hello.get("isreplicaset"):
        raise ConnectError(
            f"{address.hosts} was started with --replSet, and its replica set was never initiated: run once "
            "mongosh --eval 'rs.initiate()' on it"
        )
    raise ConnectError(
        f"{address.hosts} is a standalone server, and TensorDB needs a replica set (of one node, say) for its commits: "
        "start it with `mongod --replSet rs0 …` (or replication.replSetName: rs0 in mongod.conf), then run once "
        "mongosh --eval 'rs.initiate()'"
    )


def explain(error: Exception, address: Address, patience: float = CONNECT_SECONDS) -> str:
    """One line that says what went wrong with an address, without its password."""
    reason = address.redact(" ".join(str(error).split()))
    if isinstance(error, OperationFailure) and error.code == AUTHENTICATION_FAILED:
        return f"{address.hosts} refused the user name or password: check both, and authSource, the user's database"
    if isinstance(error, OperationFailure) and error.code == UNAUTHORIZED:
        return (
            f"{address.hosts} does not let this user read the database {address.database!r}: give user_name and "
            "password (or mongodb://user:password@…), or ask its administrator for the role readWrite"
        )
    where, why = address.hosts, _shorten(reason)
    if isinstance(error, PyMongoError) and _timed_out(error):
        return f"no MongoDB answers at {where} within {patience:g} s ({why}): is it running, and is the address right?"
    if isinstance(error, ConfigurationError) and "wire version" in reason:
        return f"{where} is too old, and MongoDB 5.0 or newer is needed: upgrade the server ({why})"
    return f"cannot connect to {where}: {why}"


def _shorten(reason: str) -> str:
    """The first cause in pymongo's long text, without its advice and topology."""
    reason = re.split(r", Timeout: |, topology_type|, Topology Description| \(configured timeouts", reason)[0]
    return reason[:200]

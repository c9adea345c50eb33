"""Divide a warehouse over the shards of a cluster: the commands for it, and their execution on a mongos.

`SHARD_KEYS` names the collections that are divided. All others are small, and stay whole on the primary shard. The
document of the warehouse is marked first, so that no client asks for the unique index again that is given up: MongoDB
keeps an index unique over all shards only if it begins with the shard key. Each step may be done twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pymongo.errors import OperationFailure

from tensordb_data.errors import ConnectError, UnsupportedError
from tensordb_data.mongo.errors import first_line
from tensordb_data.warehouse.collection_indexes import CHUNKS_KEY, SHARD_KEYS

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

_DONE = {20, 23, 27}
"""What a server says of what is there already: sharded, or of an index that is gone."""


@dataclass(frozen=True)
class Step:
    """A command for a database."""

    database: str
    command: dict[str, Any]
    why: str

    def __str__(self) -> str:
        """As mongosh takes it."""
        text = json.dumps(self.command, ensure_ascii=False)
        return f"db.getSiblingDB({json.dumps(self.database)}).runCommand({text})  // {self.why}"


def plan(warehouse: Warehouse) -> list[Step]:
    """The commands that divide a warehouse, in order. Nothing is asked of the server."""
    name = warehouse.address.database
    steps = [Step("admin", {"enableSharding": name}, "needed before MongoDB 6.0, and does no harm")]
    for collection, key in SHARD_KEYS.items():
        steps += _shard(name, collection, key, ready=key == {"_id": 1})
    for root in warehouse.blobs.roots:
        if root["url"].startswith("gridfs://"):
            bucket = root["url"].removeprefix("gridfs://") or "blobs"
            steps += _shard(name, f"{bucket}.chunks", CHUNKS_KEY, ready=True, unique=True)
    return steps


def execute(warehouse: Warehouse, say: Callable[[str], None] = lambda line: None) -> int:
    """Run the commands of `plan`, on a mongos; returns how many there were.

    Args:
        warehouse: The warehouse.
        say: Called with each command before it runs.

    Raises:
        UnsupportedError: This is no mongos; nothing was done.
        ConnectError: The server refused a command. Those before it were done; call this again.
    """
    if not warehouse.index.is_server:
        raise UnsupportedError("mongomock has no shards")
    client = warehouse.index.database.client
    hello = client.admin.command("hello")
    if hello.get("msg") != "isdbgrid":
        what = f"the replica set {hello['setName']!r}" if "setName" in hello else "a single server"
        raise UnsupportedError(
            f"{warehouse.address.hosts} is {what}, and no mongos: only a sharded cluster divides data; nothing was"
            " done. --dry-run prints the commands"
        )
    warehouse.index.make("data")  # without the unique index of earlier versions, which no shard could keep
    steps = plan(warehouse)
    for step in steps:
        say(str(step))
        try:
            client[step.database].command(step.command)
        except OperationFailure as error:
            if error.code not in _DONE:
                raise ConnectError(
                    f"{warehouse.address.hosts} refused {next(iter(step.command))}: "
                    f"{warehouse.address.redact(first_line(error))}; it needs the role clusterManager"
                ) from None
    return len(steps)


def _shard(database: str, collection: str, key: dict[str, Any], *, ready: bool, unique: bool = False) -> list[Step]:
    """The steps for a collection; one that has no index on the key gets it."""
    command = {"shardCollection": f"{database}.{collection}", "key": key, **({"unique": True} if unique else {})}
    shard = Step("admin", command, f"{collection} goes over the shards")
    if ready:
        return [shard]
    name = "_".join(f"{field}_{kind}" for field, kind in key.items())
    return [Step(database, _create(collection, [{"name": name, "key": key}]), "the index of the shard key"), shard]


def _create(collection: str, indexes: list[dict[str, Any]]) -> dict[str, Any]:
    return {"createIndexes": collection, "indexes": [{**index, "key": dict(index["key"])} for index in indexes]}

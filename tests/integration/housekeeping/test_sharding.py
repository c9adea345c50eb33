"""Sharded clusters, without one: the commands that are printed, who runs them, and what a server is asked to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pymongo.errors import OperationFailure
from typer.testing import CliRunner

from tensordb_data import ConnectError, TensorDB, UnsupportedError
from tensordb_data.cli.main import app
from tensordb_data.housekeeping import sharding
from tensordb_data.warehouse.collection_indexes import INDEXES, SHARD_KEYS


def commands(db: TensorDB) -> list[tuple[str, str]]:
    return [(step.database, str(step).split("//")[0].strip()) for step in sharding.plan(db.warehouse)]


def test_the_commands_are_printed_and_nothing_is_done(mongo_uri: str, db: TensorDB) -> None:
    name = db.database.name
    with TensorDB(mongo_uri, blobs="gridfs://") as gridfs:
        printed = [line for _, line in commands(gridfs)]
    assert printed == [
        f'db.getSiblingDB("admin").runCommand({{"enableSharding": "{name}"}})',
        f'db.getSiblingDB("{name}").runCommand({{"createIndexes": "data", "indexes": [{{"name": "_id_hashed", "key": '
        '{"_id": "hashed"}}]})',
        f'db.getSiblingDB("admin").runCommand({{"shardCollection": "{name}.data", "key": {{"_id": "hashed"}}}})',
        f'db.getSiblingDB("admin").runCommand({{"shardCollection": "{name}.tensors", "key": {{"_id": 1}}}})',
        f'db.getSiblingDB("{name}").runCommand({{"createIndexes": "logs", "indexes": [{{"name": '
        '"_tdb.p_1_run_1__id_1", "key": {"_tdb.p": 1, "run": 1, "_id": 1}}]})',
        f'db.getSiblingDB("admin").runCommand({{"shardCollection": "{name}.logs", "key": '
        '{"_tdb.p": 1, "run": 1, "_id": 1}})',
        f'db.getSiblingDB("admin").runCommand({{"shardCollection": "{name}.blobs.chunks", "key": '
        '{"files_id": 1, "n": 1}, "unique": true})',
    ]
    found = CliRunner().invoke(app, ["shard", "--db", mongo_uri])
    assert found.exit_code == 0 and found.output.count("runCommand") == len(printed)
    assert "_id_hashed" not in db.database["data"].index_information()
    assert set(SHARD_KEYS) <= set(INDEXES)


def test_a_replica_set_is_refused(mongo_uri: str, db: TensorDB) -> None:
    with pytest.raises(UnsupportedError, match=r"is the replica set .*, and no mongos.*nothing was done"):
        sharding.execute(db.warehouse)
    found = CliRunner().invoke(app, ["shard", "--db", mongo_uri, "--execute"])
    assert found.exit_code == 1 and "no mongos" in found.output
    assert "_id_hashed" not in db.database["data"].index_information()


class Mongos:
    """Does what a mongos would do, as far as a replica set can."""

    def __init__(self, client: Any, *, refuses: str = "") -> None:
        self.client, self.done, self.refuses = client, list[str](), refuses
        self.admin = self

    def __getitem__(self, name: str) -> Any:
        return self if name == "admin" else Mongos.Database(self, self.client[name])

    def command(self, command: Any) -> Any:
        if command == "hello":
            return {"msg": "isdbgrid"}
        kind = next(iter(command))
        if kind == self.refuses:
            raise OperationFailure("not authorized on admin", 13)
        assert kind in ("enableSharding", "shardCollection")
        self.done.append(kind)
        if self.done.count("enableSharding") > 1:
            raise OperationFailure("it is sharded already", 23)
        return {"ok": 1}

    class Database:
        def __init__(self, mongos: Mongos, database: Any) -> None:
            self.mongos, self.database = mongos, database

        def command(self, command: Any) -> Any:
            self.mongos.done.append(next(iter(command)))
            return self.database.command(command)


def test_the_commands_run_in_order_and_again(
    mongo_uri: str, db: TensorDB, monkeypatch: pytest.MonkeyPatch, warehouse_dir: Any
) -> None:
    with db.data.writer("d") as writer:
        writer.add_many(x=np.zeros((4, 2)), label=[0, 1, 2, 3])
    mongos = Mongos(db.database.client)
    index = type(db.warehouse.index)

    class Seen:
        client = mongos

    with monkeypatch.context() as patched:
        patched.setattr(index, "database", Seen)
        for _ in range(2):
            assert sharding.execute(db.warehouse) == len(sharding.plan(db.warehouse))
        mongos.refuses = "shardCollection"
        with pytest.raises(ConnectError, match=r"refused shardCollection: not authorized.*clusterManager"):
            sharding.execute(db.warehouse)
    assert mongos.done[:3] == ["enableSharding", "createIndexes", "shardCollection"]
    # Who opens it now writes, and reads in order.
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs") as other:
        with other.data.writer("d") as writer:
            writer.add_many(x=np.ones((2, 2)), label=[4, 5])
        assert [sample["label"] for sample in other.data.find()] == [0, 1, 2, 3, 4, 5]
        (batch,) = other.data.find().stream(batch_size=6, shuffle=True, passes=1)
        assert sorted(batch["label"].tolist()) == [0, 1, 2, 3, 4, 5]
        found = other.database["data"].index_information()
        assert not any(index.get("unique") for index in found.values()) and "_id_hashed" in found

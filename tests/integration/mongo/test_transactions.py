"""A process killed, or stopped, in the middle of a commit holds up the others for a moment only."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from tensordb_data import TensorDB
from tensordb_data.mongo import transactions
from tests import warm

WRITER = """
import os, signal, sys
from tensordb_data import TensorDB
from tensordb_data.samples import commit

def pause(self, session, body=commit._Body.__call__):
    schema = body(self, session)
    print("in a transaction", flush=True)
    sys.stdin.readline() or os.kill(os.getpid(), signal.SIGKILL)
    return schema

commit._Body.__call__ = pause
with TensorDB(sys.argv[1], blobs=sys.argv[2]) as db, db.data.writer("d") as w:
    w.add(x=2)
print(w.written)
"""


@pytest.fixture
def paused(db: TensorDB, mongo_uri: str, warehouse_dir, monkeypatch: pytest.MonkeyPatch):
    """A writer of the dataset "d" that waits for a line in its transaction."""
    with db.data.writer("d") as w:
        w.add(x=1)
    ended: list[int] = []
    original = transactions.end_stale_transactions
    monkeypatch.setattr(transactions, "end_stale_transactions", lambda client: ended.append(original(client)))
    command = [sys.executable, "-c", WRITER, mongo_uri, f"file://{warehouse_dir}/blobs"]
    process = warm.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "in a transaction\n"
        yield process, ended
        process.kill()


def found(db: TensorDB) -> list[tuple[int, int]]:
    return [(doc["_tdb"]["s"], doc["x"]) for doc in db.database["data"].find({"dataset": "d"}).sort("_tdb.s")]


@pytest.mark.parametrize("change", ["write", "tag"])
def test_killed_in_a_commit(db: TensorDB, paused, change: str) -> None:
    process, ended = paused
    process.stdin.close()
    process.wait()
    if change == "write":
        with db.data.writer("d") as w:
            w.add(x=3)
        assert found(db) == [(1, 1), (2, 3)]
    else:
        assert db.data.find({"dataset": "d"}).tag("t") == 1
        assert found(db) == [(1, 1)]
    assert sum(ended) == 1


def test_stopped_in_a_commit(db: TensorDB, paused) -> None:
    process, ended = paused
    with db.data.writer("d") as w:
        w.add(x=3)
    assert sum(ended) == 1
    out, _ = process.communicate("go on\n" * 9)
    assert process.returncode == 0 and out.endswith("1\n")
    assert found(db) == [(1, 1), (2, 3), (3, 2)]


def test_none_to_end(db: TensorDB) -> None:
    assert transactions.end_stale_transactions(db.database.client) == 0


def test_a_transaction_that_the_server_has_ended_runs_again(db: TensorDB) -> None:
    runs = []

    def body(session) -> str:
        runs.append(session)
        if len(runs) == 1:
            raise OperationFailure("operation was interrupted because the transaction exceeded its lifetime", 290)
        return "done"

    assert db.warehouse.index.transaction(body) == "done"
    assert len(runs) == 2


def test_what_takes_too_long_twice_is_done_in_parts(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    with db.data.writer("d") as writer:
        writer.add_many(n=list(range(20)))
    update, sizes = Collection.update_many, list[int]()

    def refused(self: Any, filter: Any, *args: Any, **more: Any) -> Any:
        some = filter.get("_id", {}).get("$in", ()) if self.name == "data" else ()
        if some:
            sizes.append(len(some))
        if len(some) > 5:
            raise OperationFailure("operation was interrupted because it exceeded its lifetime", 290)
        return update(self, filter, *args, **more)

    monkeypatch.setattr(Collection, "update_many", refused)
    assert db.data.rename("d", "e") == 20
    assert sorted(sample["n"] for sample in db.data.find({"dataset": "e"})) == list(range(20))
    assert sizes == [20, 20, 10, 10, 5, 5, 10, 10, 5, 5], "each is tried twice, then halved"

"""A freeze whose process is killed leaves nothing that is seen, or all."""

from __future__ import annotations

import datetime as dt
import os
import signal
import sys
from typing import Any

import pytest

from tensordb_data import TensorDB
from tensordb_data.errors import StorageError
from tensordb_data.mongo.transactions import end_stale_transactions
from tensordb_data.time import freeze
from tests import warm
from tests.integration.time import killed
from tests.integration.time.test_freeze import content, fill

PROGRAM = """
import os, signal, sys
from tensordb_data import TensorDB
from tensordb_data.frozen import holds
from tensordb_data.time import freeze

def killed(*given):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[3] == "pieces":
    stored = freeze.store_tensors
    freeze.store_tensors = lambda *given, **more: (stored(*given, **more), killed())
elif sys.argv[3] == "segments":
    freeze.put_segment = killed
elif sys.argv[3] == "commit":
    held = freeze.hold_segments
    freeze.hold_segments = lambda *given: (held(*given), killed())
db = TensorDB(sys.argv[1], blobs=sys.argv[2])
db.data.find({"dataset": "mixed"}).freeze("v1")
killed()
"""


def end_leases(db: TensorDB) -> None:
    """End the leases of whom was killed, without waiting until the server gives up his open transaction."""
    end_stale_transactions(db.database.client, 0.0)
    long_ago = dt.datetime(2020, 1, 1)
    db.database["leases"].update_many({}, {"$set": {"until": long_ago}})
    db.database["segments"].update_many({"state": "writing"}, {"$set": {"created": long_ago}})


@pytest.mark.parametrize("where", ["pieces", "commit"])
def test_killed(db: TensorDB, mongo_uri: str, warehouse_dir: Any, where: str) -> None:
    fill(db, 30, live=True)
    expected = content(db.data.find({"dataset": "mixed"}))
    command = [sys.executable, "-c", PROGRAM, mongo_uri, str(warehouse_dir / "blobs"), where]
    done = warm.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    seen = [card.name for card in db.data.frozen()]
    assert seen == (["v1"] if where == "end" else [])
    if not seen:
        assert db.database["frozen_segments"].count_documents({}) == 0
        db.data.find({"dataset": "mixed"}).freeze("v1")
    assert content(db.data.frozen("v1")) == expected
    leases = db.database["leases"]
    until = {"$set": {"left": {"$dateDiff": {"startDate": "$$NOW", "endDate": "$until", "unit": "second"}}}}
    left = [lease["left"] for lease in leases.aggregate([{"$match": {"backup": True}}, until])]
    assert len(left) == 1 and left[0] <= freeze._SILENT, "what was killed holds a gc off for a short time only"
    end_leases(db)
    db.data.drop("mixed")
    for _ in range(3):
        db.gc(grace=0)
    assert content(db.data.frozen("v1")) == expected and db.fsck().findings == []


@pytest.mark.parametrize("where", ["read_samples", "store_tensors"])
def test_a_freeze_that_a_gc_took_for_dead(db: TensorDB, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    fill(db, 30)
    do = getattr(freeze, where)

    def late(*given: Any, **more: Any) -> Any:
        found = do(*given, **more)
        db.database["leases"].update_many({"backup": True}, {"$set": {"until": dt.datetime(2020, 1, 1)}})
        db.gc(grace=0)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(freeze, where, late)
        with pytest.raises(StorageError, match=r"silent for 20 s.*freeze it again"):
            db.data.find({"dataset": "mixed"}).freeze("v1")
    assert not db.data.frozen() and db.database["frozen_segments"].count_documents({}) == 0
    assert db.data.find({"dataset": "mixed"}).freeze("v1").count() == 30


def test_a_freeze_renews_its_lease(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db, 30)
    monkeypatch.setattr(freeze, "_SILENT", 0.03)
    leases, read = db.database["leases"], freeze.read_samples

    def slow(*given: Any) -> Any:
        (first,) = leases.find({"backup": True})
        while leases.find_one({"_id": first["_id"], "until": {"$gt": first["until"]}}) is None:
            pass  # the heartbeat comes
        return read(*given)

    monkeypatch.setattr(freeze, "read_samples", slow)
    assert db.data.find({"dataset": "mixed"}).freeze("v1").count() == 30


COUNTED = """
v0 = db.data.frozen("v0")
Killer.count = 0
if given[0] == "freeze":
    db.data.find({"dataset": "mixed"}).freeze(given[1])
else:
    v0.restore()
"""


def test_killed_at_any_command(db: TensorDB, mongo_uri: str, warehouse_dir: Any) -> None:
    """At whatever command to the server: a set is there as a whole or not at all, and a restore too."""
    fill(db, 30, live=True)
    data = db.data.find({"dataset": "mixed"})
    original = content(data)
    data.freeze("v0")

    def run(do: str, point: int) -> int:
        return killed.run(COUNTED, mongo_uri, warehouse_dir, point, do, f"v{point or 'x'}")

    def points(do: str) -> list[int]:
        data.tag("other")
        return killed.some_points(run(do, 0), do, 2)

    for point in points("freeze"):
        data.tag(f"t{point}")
        expected = content(data)
        run("freeze", point)
        if f"v{point}" not in [card.name for card in db.data.frozen()]:
            data.freeze(f"v{point}")
        assert content(db.data.frozen(f"v{point}")) == expected == content(data)
    for point in points("restore"):
        data.tag(f"t{point}")
        before = content(data)
        run("restore", point)
        assert content(data) in (before, original)
    assert content(db.data.frozen("v0")) == original
    end_leases(db)
    for _ in range(2):
        db.gc(grace=0)
    assert content(db.data.frozen("v0")) == original and db.fsck().findings == []

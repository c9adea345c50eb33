"""A freeze whose process is killed leaves nothing that is seen, or all."""

from __future__ import annotations

import datetime as dt
import os
import signal
import sys
from typing import Any

import pytest

from tensordb_data import TensorDB
from tests import warm
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
    db.database["leases"].update_many({}, {"$set": {"until": db.data.frozen("v1").card.created}})
    db.database["segments"].update_many({"state": "writing"}, {"$set": {"created": dt.datetime(2020, 1, 1)}})
    db.data.drop("mixed")
    for _ in range(3):
        db.gc(grace=0)
    assert content(db.data.frozen("v1")) == expected and db.fsck().findings == []

"""Logs: rows arrive, in order, off the training thread, and loss is loud."""

from __future__ import annotations

import datetime as dt
import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from pymongo.errors import AutoReconnect

from tensordb_data.errors import SchemaError, StorageError
from tensordb_data.records import logs


def test_rows_come_back(db):
    with db.logs.run("cnn-1", tags=["cnn"]) as log:
        for step in range(5000):
            log.write(step, loss=step / 2, acc=np.float32(0.5))
        log.write(5000, kind="valid", loss=float("nan"), big=math.inf, name="x", ok=True, none=None, per_class=[1, 0.5])
        log.write(np.int64(5001), loss=torch.tensor(0.25), n=np.int64(3), when=dt.datetime(2024, 1, 1))
    rows = db.logs.find({"run": "cnn-1", "kind": "train"}).all()
    assert [row.step for row in rows[:-1]] == list(range(5000))
    assert rows[8]["loss"] == 4.0 and rows[8].tags == ["cnn"] and isinstance(rows[8]["time"], dt.datetime)
    assert (rows[-1].step, rows[-1]["loss"], rows[-1]["n"]) == (5001, 0.25, 3)
    valid = db.logs.find({"kind": "valid"}).one()
    assert math.isnan(valid["loss"]) and valid["big"] == math.inf and valid["per_class"] == [1, 0.5]


def test_as_a_table(db):
    with db.logs.run("r") as log:
        log.write(1, loss=0.5)
        log.write(2, loss=0.25, acc=0.9)
    rows = db.logs.find({"run": "r"}, sort=[("step", 1)])
    assert rows.to_arrow().column("acc").to_pylist() == [None, 0.9]
    assert rows.to_pandas()["loss"].tolist() == [0.5, 0.25]


def test_flush_makes_rows_visible(db):
    log = db.logs.run("r")
    for step in range(3):
        log.write(step, loss=1.0)
        log.flush()
        assert db.logs.find({"run": "r"}).count() == step + 1
    log.close()
    log.close()
    with pytest.raises(StorageError, match="closed"):
        log.write(4, loss=1.0)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"loss": np.ones(2)}, r"'loss'.*shape \(2,\)"),
        ({"loss": torch.ones(2, 2)}, r"shape \(2, 2\)"),
        ({"loss": {"a": 1}}, "dict"),
        ({"loss": object()}, "object"),
        ({"loss": 2**64}, "64-bit"),
        ({"time": 1}, "taken"),
        ({"$set": 1}, "beginning with"),
        ({"a.b": 1}, "without '.'"),
    ],
)
def test_odd_values_are_refused(db, values, says):
    with db.logs.run("r") as log, pytest.raises(SchemaError, match=says):
        log.write(1, **values)
    with pytest.raises(SchemaError, match="step"):
        log.write(1.5, loss=1.0)


class Away:
    """A server that does not answer."""

    def __init__(self, mongo):
        self.mongo, self.away = mongo, True

    def __getitem__(self, name):
        if self.away:
            raise AutoReconnect("no primary")
        return self.mongo[name]


def test_an_outage_is_survived_and_loss_is_loud(db, monkeypatch):
    monkeypatch.setattr(logs, "CAPACITY", 50)
    server = Away(db._mongo())
    monkeypatch.setattr(db, "_mongo", lambda: server)
    log = db.logs.run("r")
    with pytest.warns(UserWarning, match="further ones are dropped"):
        for step in range(60 + logs._BATCH):
            log.write(step, loss=1.0)
    with pytest.raises(StorageError, match="no primary"):
        log.flush()
    dropped = log.dropped
    assert dropped > 0
    server.away = False
    log.flush()
    with pytest.raises(StorageError, match=f"{dropped:,} rows were lost: no primary"):
        log.close()
    monkeypatch.undo()
    assert db.logs.find({"run": "r"}).count() == 60 + logs._BATCH - dropped


def test_close_without_a_server_says_what_is_lost(db, monkeypatch):
    server = Away(db._mongo())
    monkeypatch.setattr(db, "_mongo", lambda: server)
    log = db.logs.run("r")
    for step in range(10):
        log.write(step, loss=1.0)
    with pytest.raises(StorageError, match="10 rows were lost"):
        log.close()


def test_a_process_that_forgets_to_close_loses_nothing(db, mongo_uri):
    script = """
        import sys
        from tensordb_data import TensorDB
        db = TensorDB(sys.argv[1])
        log = db.logs.run("r")
        for step in range(3000):
            log.write(step, loss=1.0)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), mongo_uri], check=True, timeout=60)
    assert db.logs.find({"run": "r"}).count() == 3000

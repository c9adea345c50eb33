"""Logs: rows arrive, in order, off the training thread, and loss is loud."""

from __future__ import annotations

import csv
import datetime as dt
import math
import subprocess
import sys
import textwrap
import time
import unittest.mock

import numpy as np
import pytest
import torch
from pymongo.errors import AutoReconnect

from tensordb_data.errors import NotFoundError, QueryError, SchemaError, StorageError
from tensordb_data.logs import ids
from tensordb_data.logs import writer as logs
from tensordb_data.warehouse.index import Index


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
    valid = db.logs.find({"kind": "valid"}).first()
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
        ({"loss": np.ones(2, complex)}, r"'loss'.*array of numbers.*complex128 \(2,\)"),
        ({"loss": np.array(["a", "b"])}, "array of numbers"),
        ({"loss": torch.ones(0, 2)}, r"at least one, found float32 \(0, 2\)"),
        ({"loss": np.histogram([1.0, float("nan")], [0, 1, np.inf])}, "finite numbers"),
        ({"loss": {"a": 1}}, "dict"),
        ({"loss": object()}, "object"),
        ({"loss": 2**64}, "64-bit"),
        ({"time": 1}, "taken"),
        ({"$set": 1}, "beginning with"),
        ({"a.b": 1}, "without '.'"),
        ({"note": "\ud800"}, "lone surrogate"),
        ({"notes": ["fine", "\ud800"]}, "lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
        ({"kind": "\ud800"}, "a kind is"),
        ({"step": 2}, "the step is given twice: 1 and step=2"),
    ],
)
def test_odd_values_are_refused(db, values, says):
    with db.logs.run("r") as log, pytest.raises(SchemaError, match=says):
        log.write(1, **values)
    with pytest.raises(SchemaError, match="a run is named"):
        db.logs.run("\udc80")
    with db.logs.run("r") as log:
        for step in (1.5, 2**63, -(2**63) - 1, "1", None, np.uint64(2**63)):
            with pytest.raises(SchemaError, match="step"):
                log.write(step, loss=1.0)
        with pytest.raises(SchemaError, match="a row has a step"):
            log.write(loss=1.0)
        log.write(step=2**63 - 1, loss=1.0)
    assert db.logs.find({"run": "r"}).first().step == 2**63 - 1


def test_a_row_that_is_refused_is_left_out_alone_and_named_at_once(db):
    """By the driver, for its size, and by the server, for a validator that somebody has set."""
    db.warehouse.index.make("logs")
    db.database.command("collMod", "logs", validator={"secret": {"$exists": False}})
    log = db.logs.run("r")
    with pytest.warns(UserWarning, match="is left out") as said:
        for step in range(10):
            more = {3: {"note": "x" * 17_000_000}, 5: {"secret": 1}, 7: {"note": "x" * 2_000_000}}
            log.write(step, loss=1.0, **more.get(step, {}))
        log.flush()
    assert {str(one.message).split(": ")[1] for one in said} == {
        "the row of step 3 is left out", "the row of step 5 is left out",
    }  # fmt: skip
    assert [row.step for row in db.logs.find({"run": "r"})] == [0, 1, 2, 4, 6, 7, 8, 9] and log.dropped == 2
    log.write(10, loss=1.0)
    with pytest.raises(StorageError, match="2 rows were lost: the log of run 'r': the row of step"):
        log.close()
    assert db.logs.find({"step": 10}).count() == 1


def test_a_value_that_a_device_does_not_give_costs_its_row_alone(db, monkeypatch):
    class Gone:
        is_cuda = True

        def numel(self):
            return 1

        def detach(self):
            return self

        def item(self):
            raise RuntimeError("the device is gone")

    log = db.logs.run("r")
    with pytest.warns(UserWarning, match="step 1 is left out: the device is gone"):
        for step in range(3):
            log.write(step, loss=Gone() if step == 1 else 0.5)
        log.flush()
    with pytest.raises(StorageError, match="1 rows were lost"):
        log.close()
    assert [row.step for row in db.logs.find()] == [0, 2]


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
    server = Away(db.database)
    monkeypatch.setattr(Index, "__getitem__", lambda index, name: server[name])
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
    server = Away(db.database)
    monkeypatch.setattr(Index, "__getitem__", lambda index, name: server[name])
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


def test_more_rows_than_the_buffer_holds_wait_and_none_is_lost(db, monkeypatch):
    monkeypatch.setattr(logs, "CAPACITY", 500)
    with db.logs.run("r") as log:
        for step in range(20_000):
            log.write(step, loss=1.0)
    assert log.dropped == 0
    assert [row.step for row in db.logs.find({"run": "r"})] == list(range(20_000))


def test_a_killed_process_loses_what_waited_and_nothing_else(db, mongo_uri):
    script = """
        import os, signal, sys
        from tensordb_data import TensorDB
        log = TensorDB(sys.argv[1]).logs.run("r")
        for step in range(1000):
            log.write(step, loss=1.0)
        log.flush()
        log.write(1000, loss=1.0)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), mongo_uri], timeout=60)
    assert db.logs.find({"run": "r"}).count() in (1000, 1001)


def test_entities_and_texts(db):
    with db.data.writer("d") as writer:
        id = writer.add(image=np.ones((2, 2), np.uint8), label=1)
    params = db.params.save({"w": np.ones(3)}, run="r", step=1)
    with db.logs.run("r") as log:
        log.write(1, worst=db.data.find().first(), of=db.params.find().first(), note="diverged, again")
        log.write(2, loss="three")
    row = db.logs.find({"worst.id": id}).first()
    assert row["note"] == "diverged, again" and row.entity("worst")["label"] == 1 and row.entity("of").id == params
    with pytest.raises(QueryError, match="no entity"):
        row.entity("note")
    assert row["worst"] == {"collection": "data", "id": id}
    assert db.logs.find().to_pandas()["worst"].tolist()[0] == f"data/{id}"


def test_the_machine_is_logged_on_request(db):
    with db.logs.run("r", system=0.01) as log:
        log.write(7, loss=1.0)
    rows = db.logs.find({"kind": "system"}).all()
    assert rows[-1].step == 7 and rows[-1]["process_memory_bytes"] > 0 and 0 <= rows[-1]["cpu_percent"] <= 100
    with pytest.raises(SchemaError, match="seconds"):
        db.logs.run("r", system=0)
    with db.logs.run("r", system=1000.0):
        pass
    log = db.logs.run("r", system=1000.0)
    system = log._system
    del log  # forgotten: its thread must not hold it, nor fail
    system.stop()


def test_ids_ascend_whatever_the_clock_does(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(ids.time, "time", lambda: clock[0])
    monkeypatch.setattr(ids, "_COUNTS", 8)
    one, found = ids.Ids(), []
    for now in (100, 101, 99, 99, 102, 102.5, 50):
        clock[0] = now
        found += one.take(5)
    assert found == sorted(set(found)) and len(found) == 35


def test_series_are_thinned_by_the_server(db):
    with db.logs.run("a") as log:
        for step in range(10_000):
            log.write(step, loss=float(step), text="x")
        log.write(5, loss=float("nan"))
        log.write(5, loss=-math.inf)
        log.write(6, loss="broken")
        log.write(9, kind="valid", loss=3, ok=True)
    with db.logs.run("b", tags=["cnn"]) as log:
        log.write(0, loss=np.float32("nan"))
    a_train, a_valid, b = db.logs.find().series("loss", points=100)
    assert [(one.run, one.kind) for one in (a_train, a_valid, b)] == [("a", "train"), ("a", "valid"), ("b", "train")]
    assert len(a_train.step) == 100 and a_train.count.tolist() == [100] * 100
    assert a_train.mean[0] == 49.5 and (a_train.low[0], a_train.high[0]) == (0, 99)
    assert a_train.nonfinite.tolist() == [2] + [0] * 99
    assert a_valid.mean.tolist() == [3.0] and a_valid.step.tolist() == [9]
    assert np.isnan(b.mean[0]) and (b.count[0], b.nonfinite[0]) == (0, 1)
    assert db.logs.find({"run": "a"}, sort=[("step", 1)], limit=10).series("loss", points=2)[0].count.sum() < 11
    assert db.logs.find().series("text") == [] and db.logs.find().series("nothing") == []
    for bad in ({"name": "$where"}, {"name": ""}, {"name": "loss", "points": 0}):
        with pytest.raises(QueryError):
            db.logs.find().series(**bad)


def test_plot_is_a_png(db, tmp_path):
    with db.logs.run("cnn-1", tags=["cnn"]) as log:
        for step in range(3000):
            log.write(step, loss=1 / (1 + step) if step != 1000 else math.nan)
    picture = db.logs.plot("loss", {"tags": "cnn"}, path=tmp_path / "loss.png")
    assert picture.startswith(b"\x89PNG") and (tmp_path / "loss.png").read_bytes() == picture
    assert picture._repr_png_() == picture
    with pytest.raises(NotFoundError, match="there are 'loss'"):
        db.logs.plot("los")
    with pytest.raises(NotFoundError, match="no row matches"):
        db.logs.plot("loss", {"tags": "rnn"})
    with pytest.raises(StorageError, match="cannot be written"):
        db.logs.plot("loss", path=tmp_path / "missing" / "x.png")


def test_mixed_columns_become_tables_too(db):
    with db.logs.run("r") as log:
        log.write(1, loss=1, a=True, l=[1, 2])
        log.write(2, loss=0.5, a="text", l="no list", n=2**62)
        log.write(3, loss=math.nan, b=None)
    table = db.logs.find().to_arrow()
    assert table.column("loss").to_pylist()[:2] == [1.0, 0.5] and math.isnan(table.column("loss")[2].as_py())
    assert table.column("a").to_pylist() == ["True", "text", None]
    assert table.column("l").to_pylist() == ["[1, 2]", "no list", None]
    assert table.column("n").to_pylist() == [None, 2**62, None]
    assert "_tdb" not in table.column_names
    assert db.logs.find({"run": "none"}).to_arrow().num_rows == 0
    assert db.logs.find({"run": "none"}).to_pandas().empty


def test_csv(db, tmp_path):
    with db.logs.run("r", tags=["x"]) as log:
        log.write(1, loss=0.5)
        log.write(2, note='a "quoted", line\nbreak', loss=math.inf)
    assert db.logs.find().to_csv(tmp_path / "r.csv") == 2
    with (tmp_path / "r.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first)[:6] == ["_id", "run", "kind", "step", "time", "tags"]
    assert (first["loss"], first["note"], first["tags"]) == ("0.5", "", '["x"]')
    assert (second["loss"], second["note"]) == ("inf", 'a "quoted", line\nbreak')
    with pytest.raises(StorageError, match="cannot be written"):
        db.logs.find().to_csv(tmp_path / "missing" / "r.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


def test_tensorboard_reads_what_was_exported(db, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with db.logs.run("odd/../run", tags=["x"]) as log:
        for step in range(50):
            log.write(step, loss=step / 2, per_class=[1, 2.5], note=f"step {step}")
        log.write(50, loss=math.nan)
        log.write(50, kind="valid", acc=True)
    with unittest.mock.patch.dict(sys.modules, {"tensorflow": None}):  # several seconds, and nothing is wanted of it
        assert db.logs.find().to_tensorboard(tmp_path / "tb") == 50 * 4 + 2
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_dir()) == [
        "tb", "tb/odd%2F..%2Frun", "tb/odd%2F..%2Frun/train", "tb/odd%2F..%2Frun/valid",
    ]  # fmt: skip
    found = EventAccumulator(
        str(tmp_path / "tb/odd%2F..%2Frun/train"), size_guidance={"scalars": 0, "tensors": 0}
    ).Reload()
    scalars = found.Scalars("loss")
    assert [(one.step, one.value) for one in scalars[:3]] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert math.isnan(scalars[-1].value) and abs(scalars[0].wall_time - time.time()) < 3600
    assert found.Scalars("per_class/1")[0].value == 2.5
    assert found.Tensors("note/text_summary")[3].tensor_proto.string_val[0] == b"step 3"


def test_runs_are_exported_apart_and_a_second_time_the_same(db, tmp_path):
    pytest.importorskip("tensorboard")
    names = ["a/b", "a_b", "a%2Fb", "..", "日本", "x" * 300, "x" * 299 + "/"]
    for name in names:
        with db.logs.run(name) as log:
            log.write(1, loss=0.5)
    with unittest.mock.patch.dict(sys.modules, {"tensorflow": None}):
        found = []
        for _ in range(2):
            assert db.logs.find().to_tensorboard(tmp_path / "tb") == len(names)
            files = [path for path in (tmp_path / "tb").rglob("*") if path.is_file()]
            found.append({path: path.read_bytes() for path in files})
        assert len(files) == len(names) and found[0] == found[1] and all("tfevents" in path.name for path in files)
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match="cannot be written"):
            db.logs.find().to_tensorboard(tmp_path / "file")

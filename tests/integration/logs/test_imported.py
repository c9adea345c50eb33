"""Runs of other trackers: what comes in, what is left out, and what damaged or hostile files do."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tensordb_data import IngestError, NotFoundError, QueryError, TensorDB
from tensordb_data.cli.main import app
from tensordb_data.common.wire.tfrecord import crc32c, masked
from tensordb_data.errors import ReadOnlyError


def write(path: Path, data: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def mlflow_run(store: Path, id: str, name: str, *, status: int = 3, more: str = "", **metrics: list[Any]) -> Path:
    write(store / "1/meta.yaml", "experiment_id: '1'\nname: 'digits: first'\nlifecycle_stage: active\n")
    folder = store / "1" / id
    write(folder / "meta.yaml", f"run_id: {id}\nrun_name: {name}\nstatus: {status}\nstart_time: 1700000000000\n"
                                f"end_time: 1700000060000\nlifecycle_stage: active\ntags: []\n{more}")  # fmt: skip
    write(folder / "params/lr", "0.01")
    write(folder / "params/model.name", "cnn")
    write(folder / "tags/mlflow.user", "ann")
    write(folder / "tags/owner", "ann")
    for name, values in metrics.items():
        lines = [f"{1700000000000 + step * 1000} {value} {step}\n" for step, value in enumerate(values)]
        write(folder / "metrics" / name.replace("__", "/"), "".join(lines))
    return folder


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def framed(*events: bytes) -> bytes:
    """Records of an event file."""
    out = b""
    for data in events:
        head = len(data).to_bytes(8, "little")
        out += head + masked(crc32c(head)).to_bytes(4, "little") + data + masked(crc32c(data)).to_bytes(4, "little")
    return out


def event(step: int, **values: Any) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    data: bytes = Event(wall_time=1700000000.0 + step, step=step, summary=Summary(value=found)).SerializeToString()
    return data


def trackio(path: Path, rows: list[tuple[str, int, dict[str, Any]]], **configs: dict[str, Any]) -> None:
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE IF NOT EXISTS metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp TEXT, "
                     "run_name TEXT, step INTEGER, metrics TEXT)")  # fmt: skip
        base.execute("CREATE TABLE IF NOT EXISTS configs (id INTEGER PRIMARY KEY, run_name TEXT, config TEXT)")
        base.executemany("INSERT INTO metrics (timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?)",
                         [(f"2026-11-01T10:00:{step:02}", run, step, json.dumps(values)) for run, step, values in rows],
                         )  # fmt: skip
        base.executemany("INSERT INTO configs (run_name, config) VALUES (?, ?)",
                         [(run, json.dumps(config)) for run, config in configs.items()])  # fmt: skip
    base.close()


def message(*parts: tuple[int, Any]) -> bytes:
    """A message of Protocol Buffers."""
    out = b""
    for number, value in parts:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value if isinstance(value, bytes) else value.encode()
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def wandb_file(*records: bytes) -> bytes:
    """A file of W&B."""
    out = b":W&B\xe1\xbe\0"
    for data in records:
        begun = False
        while True:
            left = 32768 - len(out) % 32768
            if left < 7:
                out += bytes(left)
                left = 32768
            piece, data = data[: left - 7], data[left - 7 :]
            kind = (3 if data else 4) if begun else (2 if data else 1)
            out += struct.pack("<IHB", zlib.crc32(bytes([kind]) + piece), len(piece), kind) + piece
            begun = True
            if not data:
                break
    return out


def items(number: int, **values: Any) -> list[tuple[int, bytes]]:
    return [(number, message((1, key), (16, json.dumps(value)))) for key, value in values.items()]


def row(db: TensorDB, run: str, step: int, kind: str = "train") -> dict[str, Any]:
    found = dict(db.logs.find({"run": run, "step": step, "kind": kind}).first())
    return {name: value for name, value in found.items() if name not in ("_id", "run", "step", "kind", "tags", "time")}


def test_mlflow(db: TensorDB, tmp_path: Path) -> None:
    folder = mlflow_run(tmp_path, "a" * 32, "good-run-1", loss=[1.0, 0.5, "nan"], acc=[0.1, 0.2, 0.3],
                        system__cpu=[5, 6])  # fmt: skip
    write(folder / "metrics/val.loss", "1700000002000 -inf 2\n1700000002000 7 2\n")
    write(folder / "metrics/step", "1700000002000 3 2\n")
    write(folder / "artifacts/model.pkl", b"x")
    mlflow_run(tmp_path, "b" * 32, "'it''s: this'", status=4, loss=[2])
    mlflow_run(tmp_path, "c" * 32, "gone", loss=[2], more="lifecycle_stage: deleted\n")
    report = db.logs.import_runs("mlflow", tmp_path, tags=["old"])
    assert (report.added, report.rows, report.failures) == (2, 7, 0), report
    assert report.left_out == {"artifacts": 1, "deleted runs": 1}
    assert report.notes == ["metric 'val.loss' is called 'val/loss' here", "metric 'step' is called 'step_' here"]
    first, second = db.runs(sort=[("name", 1)])
    assert (first.name, first.status, second.name, second.status) == ("good-run-1", "ended", "it's: this", "failed")
    assert first.config == {"lr": 0.01, "model/name": "cnn"} and first["tags"] == ["old", "owner=ann"]
    assert first["began"].timestamp() - first["ended"].timestamp() == -60
    assert first["imported"]["about"] == {"experiment": "digits: first", "mlflow/user": "ann"}
    assert first.last["acc"] == 0.3 and first.best["loss"] == 0.5 and "system/cpu" not in first.last
    found = row(db, "good-run-1", 2)
    assert math.isnan(found.pop("loss")) and found == {"acc": 0.3, "val/loss": -math.inf, "step_": 3.0}
    assert row(db, "good-run-1", 1, "system") == {"system/cpu": 6.0}
    assert [run.name for run in db.runs({"config.lr": {"$lt": 0.1}, "tags": "old"})] == [first.name, second.name]


def test_the_database_of_mlflow(db: TensorDB, tmp_path: Path) -> None:
    place = tmp_path / "mlflow.db"
    with sqlite3.connect(place) as base:
        base.executescript(
            """CREATE TABLE experiments (experiment_id INTEGER, name TEXT);
            CREATE TABLE runs (run_uuid TEXT, name TEXT, status TEXT, start_time INTEGER, end_time INTEGER,
                lifecycle_stage TEXT, experiment_id INTEGER);
            CREATE TABLE metrics (run_uuid TEXT, key TEXT, value REAL, timestamp INTEGER, step INTEGER, is_nan BOOLEAN);
            CREATE TABLE params (run_uuid TEXT, key TEXT, value TEXT);
            CREATE TABLE tags (run_uuid TEXT, key TEXT, value TEXT);
            INSERT INTO experiments VALUES (1, 'digits');
            INSERT INTO runs VALUES ('aa', 'r', 'FAILED', 1700000000000, 1700000001000, 'active', 1),
                ('bb', 'gone', 'FINISHED', 1, 2, 'deleted', 1);
            INSERT INTO metrics VALUES ('aa', 'loss', 0.5, 1700000000500, 1, 0), ('aa', 'acc', 0, 1700000000500, 1, 1),
                ('aa', 'loss', -1.7976931348623157e308, 1700000000600, 2, 0), ('aa', 'system/cpu', 3, 1, 0, 0);
            INSERT INTO params VALUES ('aa', 'lr', '0.1');
            INSERT INTO tags VALUES ('aa', 'mlflow.user', 'ann'), ('aa', 'owner', 'ann');"""
        )
    report = db.logs.import_runs("mlflow", tmp_path)
    assert (report.added, report.rows, report.left_out) == (1, 3, {"deleted runs": 1}), report.failed
    (run,) = db.runs()
    assert (run.name, run.status, run.config, run["tags"]) == ("r", "failed", {"lr": 0.1}, ["owner=ann"])
    assert run["imported"]["about"] == {"experiment": "digits", "mlflow/user": "ann"}
    found = row(db, "r", 1)
    assert math.isnan(found.pop("acc")) and found == {"loss": 0.5} and row(db, "r", 2) == {"loss": -math.inf}
    assert row(db, "r", 0, "system") == {"system/cpu": 3.0} and db.logs.import_runs("mlflow", place).unchanged == 1
    base.execute("INSERT INTO metrics VALUES ('aa', 'loss', 'x', 1, 3, 0)")
    base.execute("UPDATE metrics SET value = 'x' WHERE step = 2")
    base.commit()
    base.close()
    report = db.logs.import_runs("mlflow", place)
    assert report.failures == 1 and "expected a metric" in report.failed[0].why and db.logs.find().count() == 3
    write(place, "text")
    assert "SQLite" in db.logs.import_runs("mlflow", place).failed[0].why


def test_twice_adds_nothing_and_a_run_that_has_grown_is_replaced(db: TensorDB, tmp_path: Path) -> None:
    folder = mlflow_run(tmp_path, "a" * 32, "r", loss=[1, 2])
    db.logs.import_runs("mlflow", tmp_path)
    before = sorted(each.id for each in db.logs.find())
    report = db.logs.import_runs("mlflow", folder)  # the run alone: it is known by its id
    assert (report.added, report.unchanged, report.rows) == (0, 1, 0)
    assert sorted(each.id for each in db.logs.find()) == before and db.runs().count() == 1
    mlflow_run(tmp_path, "a" * 32, "r", loss=[1, 2, 3])
    report = db.logs.import_runs("mlflow", tmp_path)
    assert (report.added, report.updated, report.rows) == (0, 1, 3)
    assert [each.step for each in db.logs.find({"run": "r"})] == [0, 1, 2]
    with db.logs.run("r") as log:
        log.write(9, loss=4.0)
    write(folder / "metrics/loss", "damaged")
    report = db.logs.import_runs("mlflow", tmp_path)  # what was there stays
    assert report.failures == 1 and "metrics/loss, line 1" in report.failed[0].why
    assert [each.step for each in db.logs.find({"run": "r"})] == [0, 1, 2, 9]
    with pytest.raises(IngestError, match="metrics/loss"):
        report.raise_if_failed()


def test_an_import_that_was_killed_leaves_nothing_double(db: TensorDB, tmp_path: Path, monkeypatch: Any) -> None:
    from tensordb_data.logs.imported import write as module

    mlflow_run(tmp_path, "a" * 32, "r", loss=[1, 2, 3])
    with monkeypatch.context() as patch:
        patch.setattr(module.RunImporter, "_finish", lambda *_: 1 / 0)
        patch.setattr(module.RunImporter, "_undo", lambda *_: None)
        with pytest.raises(ZeroDivisionError):
            db.logs.import_runs("mlflow", tmp_path)
    assert db.logs.find({"run": "r"}).count() == 3  # of the one that was cut off
    db.warehouse.index["runs"].update_one({"name": "r"}, {"$unset": {"_tdb.saver": 1}})
    report = db.logs.import_runs("mlflow", tmp_path)
    assert (report.added, report.failures) == (1, 0)
    assert [each.step for each in db.logs.find({"run": "r"})] == [0, 1, 2]


def test_copies_of_a_run_stay_apart(db: TensorDB, tmp_path: Path) -> None:
    import shutil

    folder = mlflow_run(tmp_path, "a" * 32, "r", loss=[1])
    shutil.copytree(folder, folder.with_name("copy"))
    write(folder.with_name("copy") / "metrics/loss", "1700000000000 5 1\n")
    assert db.logs.import_runs("mlflow", tmp_path).added == 2
    assert db.logs.import_runs("mlflow", tmp_path).unchanged == 2


def test_who_only_reads_imports_nothing(db: TensorDB, mongo_uri: str, tmp_path: Path) -> None:
    mlflow_run(tmp_path, "a" * 32, "r", loss=[1])
    with TensorDB(mongo_uri, read_only=True) as reader, pytest.raises(ReadOnlyError):
        reader.logs.import_runs("mlflow", tmp_path)
    assert db.runs().count() == 0


def test_a_name_that_is_taken_gets_the_id(db: TensorDB, tmp_path: Path) -> None:
    with db.logs.run("r") as log:
        log.write(1, loss=9.0)
    mlflow_run(tmp_path, "a" * 32, "r", loss=[1])
    mlflow_run(tmp_path, "b" * 32, "r", loss=[2])
    report = db.logs.import_runs("mlflow", tmp_path)
    assert {run.name for run in db.runs()} == {"r", "r-aaaaaaaa", "r-bbbbbbbb"} and len(report.notes) == 2
    assert db.logs.import_runs("mlflow", tmp_path).unchanged == 2
    assert [each["loss"] for each in db.logs.find({"run": "r"})] == [9.0]


def test_links_are_not_followed_and_odd_files_do_not_stop_the_others(db: TensorDB, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    write(secret / "x", "1700000000000 5 1\n")
    store = tmp_path / "mlruns"
    folder = mlflow_run(store, "a" * 32, "r", loss=[1])
    (folder / "metrics/link").symlink_to(secret / "x")
    (folder / "metrics/folder").symlink_to(secret)
    (store / "1" / ("d" * 32)).symlink_to(folder)
    os.mkfifo(folder / "params/pipe")
    write(mlflow_run(store, "b" * 32, "no") / "meta.yaml", b"\x00\xff")
    report = db.logs.import_runs("mlflow", store)
    assert report.added == 1 and report.failures == 4, report.failed
    assert row(db, "r", 0) == {"loss": 1.0}


def test_tensorboard(db: TensorDB, tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event

    begin = Event(wall_time=1700000000.0, file_version="brain.Event:2").SerializeToString()
    write(tmp_path / "logs/cnn/train/events.out.tfevents.1.host",
          framed(begin, event(1, **{"epoch.loss": 0.5}), event(1, acc=0.5), event(2, acc=math.inf)))  # fmt: skip
    write(tmp_path / "logs/cnn/validation/events.out.tfevents.1.host", framed(begin, event(2, acc=0.25)))
    write(tmp_path / "logs/a/b/events.out.tfevents.1.host", framed(begin, event(-3, acc=1.0)) + b"\x07\0\0")
    report = db.logs.import_runs("tensorboard", tmp_path / "logs")
    assert (report.added, report.rows, report.failures) == (2, 4, 0), report.failed
    assert any("ends within a record" in note for note in report.notes)
    assert row(db, "cnn", 1) == {"epoch/loss": 0.5, "acc": 0.5} and row(db, "cnn", 2) == {"acc": math.inf}
    assert row(db, "cnn", 2, "valid") == {"acc": 0.25} and row(db, "a/b", -3) == {"acc": 1.0}
    assert db.runs({"name": "cnn"}).first()["ended"].timestamp() > 0
    assert db.logs.import_runs("tensorboard", tmp_path / "logs").unchanged == 2


def test_tensorboard_gives_back_what_was_exported_to_it(db: TensorDB, tmp_path: Path) -> None:
    import numpy as np

    with db.logs.run("a/b: c") as log:
        log.write(1, loss=0.5, note="fine", weights=np.arange(100.0))
        log.write(1, kind="odd kind", loss=2.0)
    db.logs.find().to_tensorboard(tmp_path)
    other = db.logs.import_runs("tensorboard", tmp_path, prefix="back/")
    assert other.failures == 0 and other.names == ["back/a/b: c"], other
    found = db.logs.find({"run": "back/a/b: c", "kind": "train"}).first()
    assert (found["loss"], found["note"]) == (0.5, "fine")
    assert found.histogram("weights").n == 100 and found.histogram("weights").max == 99
    assert row(db, "back/a/b: c", 1, "odd kind") == {"loss": 2.0}


def test_tensorboard_of_newer_writers(db: TensorDB, tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    def value(tag: str, plugin: str, tensor: TensorProto) -> bytes:
        about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin))
        found = Summary.Value(tag=tag, metadata=about, tensor=tensor)
        data: bytes = Event(wall_time=1.7e9, step=4, summary=Summary(value=[found])).SerializeToString()
        return data

    dim = TensorShapeProto.Dim
    number = TensorProto(dtype="DT_FLOAT", tensor_content=b"\0\0\0\x40")
    bins = TensorProto(dtype="DT_DOUBLE", double_val=[0, 1, 3, 1, 2, 4], tensor_shape=TensorShapeProto(
        dim=[dim(size=2), dim(size=3)]))  # fmt: skip
    picture = TensorProto(dtype="DT_STRING", string_val=[b"1", b"1", b"png"])
    hparams = Event(wall_time=1.7e9, summary=hparams_pb({"lr": 0.1, "model": "cnn", "deep": True})).SerializeToString()
    write(tmp_path / "events.out.tfevents.1.h", framed(
        hparams, value("loss", "scalars", number), value("w", "histograms", bins), value("pic", "images", picture)
    ))  # fmt: skip
    report = db.logs.import_runs("tensorboard", tmp_path)
    (run,) = db.runs()
    assert run.config == {"lr": 0.1, "model": "cnn", "deep": True} and run.name == tmp_path.name
    found = db.logs.find().first()
    assert found["loss"] == 2.0 and found.histogram("w").counts == (3.0, 4.0) and report.left_out == {"images": 1}


def test_damaged_event_files(db: TensorDB, tmp_path: Path) -> None:
    data = bytearray(framed(event(1, loss=1.0), event(2, loss=2.0)))
    data[-10] ^= 1
    write(tmp_path / "damaged/events.out.tfevents.1", bytes(data))
    write(tmp_path / "text/events.out.tfevents.1", b"no event file at all, but a text")
    write(tmp_path / "other/events.out.tfevents.1", framed(b"\x2a\xff\xff\xff"))
    write(tmp_path / "large/events.out.tfevents.1",
          (head := (1 << 40).to_bytes(8, "little")) + masked(crc32c(head)).to_bytes(4, "little") + b"x")  # fmt: skip
    write(tmp_path / "good/events.out.tfevents.1", framed(event(1, loss=1.0)))
    report = db.logs.import_runs("tensorboard", tmp_path)
    assert report.names == ["good"] and [where.split("/")[0] for where, _ in report.failed] == [
        "damaged", "large", "other", "text"]  # fmt: skip
    assert [run.name for run in db.runs()] == ["good"] and db.logs.find().count() == 1


def test_trackio(db: TensorDB, tmp_path: Path) -> None:
    place = tmp_path / "shoes.db"
    values = {"loss": "NaN", "a.b": 1, "note": "x", "deep": {"x": 1}, "pic": {"_type": "trackio.image", "path": "/etc"},
              "step": 3, "big": 10**30}  # fmt: skip
    trackio(place, [("r", 0, values), ("r", 1, {"loss": 0.5}), ("s", 0, {"loss": math.inf})], r={"lr": 0.1, "m": [1]})
    report = db.logs.import_runs("trackio", tmp_path)
    assert (report.added, report.rows, report.left_out) == (2, 3, {"values of the type trackio.image": 1})
    found = row(db, "r", 0)
    assert math.isnan(found.pop("loss"))
    assert found == {"a/b": 1, "note": "x", "deep/x": 1, "step_": 3, "big": 1e30}
    run = db.runs({"name": "r"}).first()
    assert run.config == {"lr": 0.1, "m": [1]} and run["began"].isoformat() == "2026-11-01T10:00:00"
    assert [each.name for each in tmp_path.iterdir()] == ["shoes.db"]  # nothing was written
    assert db.logs.import_runs("trackio", place).unchanged == 2
    trackio(place, [("s", 1, {"loss": 1})])
    assert db.logs.import_runs("trackio", place).updated == 1


def test_wandb(db: TensorDB, tmp_path: Path) -> None:
    config = message(*items(1, lr=0.1, _wandb={"v": 1}, deep={"a.b": 1}))
    time = message((1, 1700000000), (2, 500000000))
    begun = message((17, message((1, "1a2b"), (3, "shoes"), (8, "cnn"), (10, "x"), (10, "y"), (13, "host"), (17, time),
                                 (4, config))))  # fmt: skip
    picture = {"_type": "image-file", "path": "/etc/passwd"}
    rows = []
    for step in range(3):
        about = {"_step": step, "_timestamp": 1700000001.5 + step, "note": "n" * 40000, "pic": picture}
        rows.append(message((2, message(*items(1, loss=1 / (1 + step), **about), (2, message((1, step)))))))
    nested = message((2, message((1, message((2, "val"), (2, "acc"), (16, "NaN"))), (2, message((1, 3))))))
    stats = message((7, message((2, message((1, 1700000002))), *items(3, cpu=7))))
    ends = message((18, message((1, 1))))
    place = tmp_path / "wandb/offline-run-1/run-1a2b.wandb"
    write(place, wandb_file(message((21, b"")), begun, *rows, nested, stats, message((8, b"")), ends))
    (tmp_path / "wandb/latest-run").symlink_to(place.parent)
    report = db.logs.import_runs("wandb", tmp_path / "wandb")
    assert (report.added, report.rows, report.failures) == (1, 5, 0), report.failed
    assert report.left_out == {"values of the type image-file": 3, "artifacts": 1}
    (run,) = db.runs()
    assert (run.name, run.status, run["tags"], run["host"]) == ("cnn", "failed", ["x", "y"], "host")
    assert run.config == {"lr": 0.1, "deep": {"a/b": 1}} and run["imported"]["about"]["project"] == "shoes"
    assert run["began"].isoformat() == "2023-11-14T22:13:20.500000"
    assert row(db, "cnn", 1) == {"loss": 0.5, "note": "n" * 40000} and row(db, "cnn", 3, "system") == {"cpu": 7}
    assert math.isnan(row(db, "cnn", 3)["val/acc"])
    data = place.read_bytes()
    write(place, data[: len(data) // 2])  # of a program that was killed
    report = db.logs.import_runs("wandb", place)
    assert report.updated == 1 and "ends within a record" in report.notes[0]
    assert db.runs().first().status == "lost" and db.logs.find({"kind": "train"}).count() == 1
    damaged = bytearray(data)
    damaged[len(data) // 3] ^= 1
    write(tmp_path / "wandb/b/run-b.wandb", bytes(damaged))
    write(tmp_path / "wandb/c/run-c.wandb", "text")
    write(tmp_path / "wandb/d/run-d.wandb", wandb_file(b"\xff" * 9))
    report = db.logs.import_runs("wandb", tmp_path / "wandb")
    assert {where[:3] for where, _ in report.failed} >= {"c/r", "d/r"} and report.failures == 3, report.failed


def test_a_database_that_is_being_written(db: TensorDB, tmp_path: Path) -> None:
    place = tmp_path / "p.db"
    trackio(place, [("r", 0, {"loss": 1})])
    writer = sqlite3.connect(place)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("INSERT INTO metrics (timestamp, run_name, step, metrics) VALUES ('x', 'r', 1, '{\"loss\": 2}')")
    writer.commit()
    assert (tmp_path / "p.db-wal").stat().st_size
    report = db.logs.import_runs("trackio", place)
    assert (report.rows, report.failures) == (2, 0), report.failed
    writer.close()
    (tmp_path / "p.db-wal").symlink_to("/etc/passwd")
    assert "a link lies beside it" in db.logs.import_runs("trackio", place).failed[0].why


def test_names_that_would_be_the_same_stay_apart(db: TensorDB, tmp_path: Path) -> None:
    place = tmp_path / "p.db"
    trackio(place, [("r", 0, {"a.b": 1, "a/b": 2, "c/d": 3, "c": {"d": 4}})], r={"x.y": 1, "x/y": 2})
    trackio(place, [("s", 0, {"loss": 1})], s={"large": "x" * (9 << 20)})
    report = db.logs.import_runs("trackio", place)
    assert row(db, "r", 0) == {"a/b": 1, "a/b_2": 2, "c/d": 3}
    assert report.left_out == {"values whose name is taken by another of the same row": 1}
    assert db.runs({"name": "r"}).first().config == {"x/y": 1, "x/y_2": 2}
    assert report.failures == 1 and "bytes of configuration" in report.failed[0].why and db.runs().count() == 1


def test_databases_that_are_none(db: TensorDB, tmp_path: Path) -> None:
    write(tmp_path / "a.db", "text")
    with sqlite3.connect(tmp_path / "b.db") as base:
        base.execute("CREATE VIEW metrics AS SELECT 'r' AS run_name, 1 AS step, '{}' AS metrics")
    base.close()
    trackio(tmp_path / "c.db", [("r", step, {"loss": "x" * 500}) for step in range(60)])
    data = bytearray((tmp_path / "c.db").read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    write(tmp_path / "c.db", bytes(data))
    (tmp_path / "d.db").symlink_to("/etc/passwd")
    trackio(tmp_path / "e.db", [("r", 1, {"loss": 1})])
    with sqlite3.connect(tmp_path / "e.db") as base:
        base.execute("UPDATE metrics SET metrics = '[1'")
    base.close()
    report = db.logs.import_runs("trackio", tmp_path)
    assert report.added == 0 and sorted(where[:4] for where, _ in report.failed) == [
        "a.db", "b.db", "c.db", "d.db", "e.db"], report.failed  # fmt: skip
    assert db.logs.find().count() == 0 and db.runs().count() == 0


def test_what_is_no_source(db: TensorDB, tmp_path: Path) -> None:
    for kind in ("mlflow", "wandb", "tensorboard", "trackio"):
        with pytest.raises(QueryError, match="found no"):
            db.logs.import_runs(kind, tmp_path)
    with pytest.raises(NotFoundError, match="nothing to import"):
        db.logs.import_runs("mlflow", tmp_path / "typo")
    with pytest.raises(QueryError, match="mlflow, wandb"):
        db.logs.import_runs("aim", tmp_path)


def test_the_command(db: TensorDB, mongo_uri: str, tmp_path: Path) -> None:
    mlflow_run(tmp_path, "a" * 32, "\x1b]0;t", loss=[1])

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["import", *words, "--db", mongo_uri])

    done = run("mlflow", str(tmp_path), "--tag", "old")
    assert done.exit_code == 0 and "1 runs added" in done.stdout, done.output
    assert json.loads(run("mlflow", str(tmp_path), "--json").stdout)["unchanged"] == 1
    write(mlflow_run(tmp_path, "b" * 32, "x\x1b") / "metrics/loss", "x\x1b")
    done = run("mlflow", str(tmp_path))
    assert done.exit_code == 1 and "failed: 1/bbb" in done.stderr and "\x1b" not in done.output, done.output
    assert run("mlflow", str(tmp_path / "typo")).exit_code == 1 and run("aim", str(tmp_path)).exit_code == 2

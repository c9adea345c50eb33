"""Everything is data: five collections, one set of verbs, as in the interface by example."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tensordb_data import Query, QueryError, TensorDB


@pytest.fixture
def fashion(db: TensorDB) -> TensorDB:
    with db.data.writer("fashion") as w:
        w.add_many(
            image=np.zeros((20, 4, 4), np.uint8), label=np.arange(20) % 10, split=["train"] * 15 + ["test"] * 5,
            tags=["raw"],
        )  # fmt: skip
    return db


def test_find_and_the_verbs(fashion: TensorDB) -> None:
    db = fashion
    sel = db.data.find({"dataset": "fashion", "split": "train", "label": {"$in": [0, 1]}})
    assert sel.count() == 4
    assert sel.first()["label"] == 0
    assert len(sel.all()) == 4 and len(sel.head(5)) == 4
    assert sel.distinct("label") == [0, 1]
    assert sel.explain()["returned"] == 4
    watch = sel.watch()
    assert sel.update({"$set": {"label": 7}}) == 4
    assert sel.count() == 0
    sel = db.data.find({"label": 7, "split": "train"})
    assert (sel.tag("clean"), sel.untag("raw")) == (5, 5)
    assert sel.first().tags == ["clean"]
    with db.data.writer("fashion") as w:
        new = w.add(image=np.ones((4, 4), np.uint8), label=1, split="train")
    assert next(watch).id == new
    watch.close()
    assert (db.data.find({"dataset": "fashion"}) & {"label": 3}).count() == 2
    with pytest.raises(QueryError):
        _ = db.data.find(limit=5) & {"label": 3}
    q = sel.query
    assert (q.collection, q.filter, q.sort, q.limit, q.fields) == (
        "data", {"label": 7, "split": "train"}, None, None, None,
    )  # fmt: skip
    text = q.to_json()
    assert Query.from_json(text) == q and Query.from_json(text).fingerprint == q.fingerprint
    assert db.select(q).count() == 5
    assert sel.delete() == 5
    assert db.data.find(limit=5).delete() == 5
    with pytest.raises(QueryError, match="all=True"):
        db.data.find().delete()
    with pytest.raises(QueryError, match="all=True"):
        db.data.find().update({"$set": {"label": 1}})
    assert db.data.find().delete(all=True) == 11


def test_the_same_on_all_five(fashion: TensorDB) -> None:
    for name in ("data", "architectures", "params", "jobs", "logs"):
        collection = getattr(fashion, name)
        sel = collection.find({"tags": "nothing"}, sort=[("x", -1)], limit=3, fields=["x"])
        assert sel.count() == 0 and sel.all() == [] and sel.query.collection == name
        with pytest.raises(QueryError, match="runs code"):
            collection.find({"$where": "true"})


def test_from_the_command_line(warehouse_dir: Path, tmp_path: Path) -> None:
    def tensordb(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tensordb_data.cli.main", *args, "--db", str(warehouse_dir)]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    np.savez(tmp_path / "t.npz", image=np.zeros((30, 2, 2), np.uint8), label=np.arange(30))
    done = tensordb("ingest", str(tmp_path / "t.npz"), "--dataset", "d", "--split", "train", "--set", "year=2024")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("d: 30 added · 0 updated · 0 unchanged · 0 failed · ")
    done = tensordb(
        "ingest", str(tmp_path / "t.npz"), "--dataset", "d", "--split", "train", "--set", "year=2024", "--json"
    )
    assert {"dataset": "d", "added": 0, "skipped": 30, "failed": []}.items() <= json.loads(done.stdout).items()
    done = tensordb(
        "find", "data", '{"label": {"$gte": 28}}', "--sort=-label", "--json", "--fields", "label,image,year"
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["label"], row["year"]) for row in rows] == [(29, 2024), (28, 2024)]
    done = tensordb("find", "data", "{}")
    assert done.returncode == 0 and "30 match" in done.stdout and "label" in done.stdout
    assert tensordb("find", "data", "--count").stdout == "30\n"
    for bad in (
        ("find", "data", "{"),
        ("find", "nope"),
        ("find", "data", '{"$where": "1"}'),
        ("ingest", "/missing", "--dataset", "d"),
    ):
        done = tensordb(*bad)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    assert tensordb("find").returncode == 2 and tensordb("find", "data", "--limit", "x").returncode == 2
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "bad.png").write_text("no")
    done = tensordb("ingest", str(tmp_path / "images"), "--dataset", "i")
    assert done.returncode == 1 and "failed: a/bad.png" in done.stderr
    (tmp_path / "t.csv").write_text("vin,class,zip,\n1,a,01,0\n2,b,02,1\n")
    table = ("ingest", str(tmp_path / "t.csv"), "--dataset", "cars", "--key", "vin", "--rename", "class=label")
    done = tensordb(*table, "--skip", "", "--type", "zip=str", "--json")
    assert done.returncode == 0 and list(json.loads(done.stdout)["schema"]) == ["vin", "label", "zip"]
    assert tensordb(*table, "--on-change", "no").returncode == 1
    environment = {**os.environ, "TENSORDB": str(warehouse_dir), "TENSORDB_PROJECT": "other"}
    environment["TENSORDB_CACHE"] = str(tmp_path / "cache")
    command = [sys.executable, "-m", "tensordb_data.cli.main", "find", "data", "--count"]
    counted = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert (counted.stdout, counted.stderr) == ("0\n", "")
    assert tensordb(*table, "--rename", "x").returncode == 2


def test_every_command_has_help() -> None:
    import typer

    from tensordb_data.cli.main import app

    group = typer.main.get_command(app)
    names = list(group.commands)  # type: ignore[attr-defined]
    assert {"up", "down", "uri", "status", "ingest", "find"} <= set(names)
    for name in names:
        command = group.commands[name]  # type: ignore[attr-defined]
        assert command.help, name
        assert all(getattr(option, "help", "x") for option in command.params), name

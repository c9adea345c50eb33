"""What there is, in the terminal: datasets, runs and status."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tensordb_data import TensorDB
from tensordb_data.cli.main import app
from tensordb_data.cli.runs import listing
from tensordb_data.table.activity.curve import main_metric, sampled_curve, thinned
from tensordb_data.table.activity.growth import growth

EVIL = "evil\x1b[2Jrun"


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def filled(db: TensorDB) -> TensorDB:
    with db.data.writer("images") as writer:
        writer.add_many(image=np.ones((50, 100), np.uint8), label=np.arange(50))
    with db.data.writer(EVIL) as writer:
        writer.add(label=1)
    with db.logs.run("cnn") as log:
        for step in range(100):
            log.write(step, kind="train", loss=100.0 - step, odd=math.nan)
            log.write(step, kind="valid", acc=float(step))
    with db.logs.run(EVIL) as log:
        log.write(1, note="text")
    for step in (1, 2):
        db.params.save({"w": np.ones(1000)}, run="cnn", step=step)
    return db


def test_datasets_show_how_their_bytes_came_in(filled: TensorDB, mongo_uri: str) -> None:
    shown = run("datasets", "--db", mongo_uri)
    (line,) = re.findall(r"images.*", shown)
    assert re.search(r"[▁▂▃▄▅▆▇█]{16}", line) and "█" in line and "\x1b" not in shown and r"evil\x1b[2Jrun" in shown
    assert sum(growth(filled.warehouse, 16)["images"]) == filled.data.dataset("images").nbytes
    assert EVIL not in growth(filled.warehouse, 16)
    filled.warehouse.index["segments"].update_many({}, {"$set": {"created": "yesterday"}})
    assert growth(filled.warehouse, 16) == {} and "images" in run("datasets", "--db", mongo_uri)


def test_runs_have_a_curve_and_bytes(filled: TensorDB, mongo_uri: str) -> None:
    shown = run("runs", "--db", mongo_uri)
    assert re.search(r"cnn .*loss █[▁▂▃▄▅▆▇█]{14}▁.* 16 kB", shown), shown
    assert re.search(r"acc ▁[▁▂▃▄▅▆▇█]{14}█", run("runs", "--metric", "acc", "--db", mongo_uri))
    assert "▁" not in run("runs", "--metric", "none", "--db", mongo_uri)
    assert [(each.name, each["bytes"]) for each in filled.runs({"bytes": {"$gt": 0}})] == [("cnn", 16_000)]
    found = [json.loads(line) for line in run("runs", "--json", "--db", mongo_uri).splitlines()]
    assert {each["name"]: each["bytes"] for each in found} == {"cnn": 16_000, EVIL: 0}


def test_curves_that_would_take_too_long_are_left_out(
    filled: TensorDB, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_ALL_SECONDS", -1.0)
    shown = run("runs", "--db", mongo_uri)
    assert "cnn" in shown and "1 curves would take too long here" in shown and "█" not in shown


def test_a_curve_is_of_a_few_rows(filled: TensorDB) -> None:
    curve = sampled_curve(filled.warehouse, "cnn", "train", "loss", 10)
    assert [step for step, _ in curve] == list(range(0, 100, 9)) and curve[0][1] == 100.0
    assert [step for step, _ in thinned(curve, 3)] == [0, 54, 99] and thinned(curve, 50) == curve
    assert len(sampled_curve(filled.warehouse, "cnn", "train", "odd", 10)) == 12
    assert sampled_curve(filled.warehouse, "cnn", "train", "note", 10) == []
    assert sampled_curve(filled.warehouse, "none", "train", "loss", 10) == []
    assert main_metric(["acc", "train_loss"]) == "train_loss" and main_metric(["acc", "b"]) == "acc"
    assert main_metric(["a_loss", "loss"]) == "loss" and main_metric([]) is None


def test_status_of_an_address(filled: TensorDB, mongo_uri: str) -> None:
    filled.jobs.push("train", entry="json:loads")
    shown = run("status", "--db", mongo_uri)
    assert "2 datasets, 51 samples written" in shown
    assert re.search(r"^saved    \d+ s ago of run cnn, step 2, 8 kB$", shown, re.MULTILINE)
    assert "jobs     1 ready; 0 workers alive" in shown and "server   MongoDB" in shown
    held = json.loads(run("status", "--json", "--db", mongo_uri))["warehouse"]
    assert (held["datasets"], held["written"], held["format"], held["missing"]) == (2, 51, 2, {})
    assert held["bytes"]["data"] > 0 and held["bytes"]["params"] > 0 and len(held["saves"]) == 2
    other = json.loads(run("status", "--json", "--project", "other", "--db", mongo_uri))["warehouse"]
    assert (other["datasets"], other["saves"]) == (0, [])


def test_status_of_nothing(mongo_uri: str, tmp_path: Path) -> None:
    shown = run("status", "--db", mongo_uri, code=1)
    assert "there is no warehouse" in shown and len(shown.splitlines()) == 1
    assert "not running" in run("status", "--db", str(tmp_path / "none"), code=1) and not (tmp_path / "none").exists()
    assert "is not a MongoDB address" in run("status", "--db", "mongodb://x:y@", code=1)
    run("status", "--db", "", code=2)


def test_status_of_a_folder_says_what_it_holds(warehouse_dir: Path) -> None:
    with TensorDB(warehouse_dir) as db:
        with db.data.writer("images") as writer:
            writer.add(label=1)
        shown = run("status", "--db", str(warehouse_dir))
        assert "server   MongoDB" in shown and "1 datasets, 1 samples written, 0 B" in shown

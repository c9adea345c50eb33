"""What a set was made from, what is known of it later, and when it is saved."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from bson import ObjectId

from tensordb_data import Every, Query, SaveOptions
from tensordb_data.errors import QueryError, SchemaError, StateError
from tensordb_data.torch import StepCheckpointer
from tests.integration.checkpoint.loops import batchwise, fill, net, sgd, train


def test_lineage_of_a_run(db):
    fill(db)
    train(db, "r", 10, batchwise(db), options=SaveOptions(architecture="small"))
    first, second = db.params.find({"run": "r"}, sort=[("step", 1)]).all()
    about = second.lineage
    assert about["parent"] == first.id and first.lineage["parent"] is None
    assert about["model"] == "torch.nn.modules.container.Sequential" and about["architecture"] == "small"
    assert about["optimizer"] == "torch.optim.sgd.SGD" and about["versions"]["torch"] == torch.__version__
    (data,) = about["data"]
    query = db.data.find({"dataset": "x"}).query
    assert Query.from_json(data["query"]) == query and data["fingerprint"] == query.fingerprint and data["seed"] == 0
    assert about["position"] == {"pass": 0, "position": 160}
    assert db.params.find({"lineage.data.fingerprint": query.fingerprint, "lineage.parent": first.id}).count() == 1
    assert second["lineage"] == about and json.dumps(about, default=str)


def test_a_resumed_run_and_one_that_starts_from_another(db):
    fill(db)
    train(db, "r", 5, batchwise(db))
    train(db, "r", 10, batchwise(db), restore=True)
    first, second = db.params.find({"run": "r"}, sort=[("step", 1)]).all()
    assert second.lineage["parent"] == first.id
    train(db, "fine", 5, batchwise(db), options=SaveOptions(parent=second))
    tuned = db.params.find({"run": "fine"}).first()
    assert tuned.lineage["parent"] == second.id
    id = db.params.save({"w": torch.ones(3)}, parent=tuned)
    assert db.params.find({"_id": id}).first().lineage["parent"] == tuned.id
    with pytest.raises(SchemaError, match="parent"):
        db.params.save({"w": torch.ones(3)}, parent="r")


SCRIPT = """
import sys
import numpy as np
from tensordb_data import TensorDB
TensorDB(sys.argv[1], blobs=sys.argv[2]).params.save({"w": np.ones(3)}, run=sys.argv[3])
"""


def test_the_code_version_is_that_of_the_script(db, mongo_uri, warehouse_dir):
    folder = warehouse_dir / "code"
    folder.mkdir()

    def run(name):
        subprocess.run([sys.executable, script, mongo_uri, f"file://{warehouse_dir}/blobs", name], check=True)
        return db.params.find({"run": name}).first().lineage["code"]

    script = folder / "train.py"
    script.write_text(SCRIPT)
    assert run("none") == {"script": "train.py", "commit": None, "dirty": None}

    def git(*arguments):
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q"), git("add", "."), git("commit", "-qm", "m")
    assert run("clean") == {"script": "train.py", "commit": git("rev-parse", "HEAD"), "dirty": False}
    script.write_text(SCRIPT + "\n")
    assert run("dirty")["dirty"] is True


def test_metrics_that_arrive_later(db):
    ids = [db.params.save({"w": torch.ones(3)}, run="r", step=step, val_acc=0.5) for step in (1, 2)]
    done = db.params.annotate({ids[0]: {"test_acc": 0.9}, ids[1]: {"test_acc": torch.tensor(0.75)}}, source="eval-1")
    assert (done.changed, done.unknown) == (2, ())
    best = db.params.find({"run": "r"}, sort=[("test_acc", -1)]).first()
    assert best.id == ids[0] and best["val_acc"] == 0.5 and best["provenance"]["test_acc"]["source"] == "eval-1"
    other = ObjectId()
    assert db.params.annotate({other: {"a": 1}, ids[0]: {"a": 1}}, source="e").unknown == (other,)
    for values, source, error in [
        ({ids[0]: {"step": 3}}, "e", SchemaError),
        ({ids[0]: {"a": 1}, ids[1]: {"lineage": 3}}, "e", SchemaError),
        ({ids[0]: {"m": torch.ones(3)}}, "e", SchemaError),
        ({ids[0]: {}}, "e", SchemaError),
        ({ids[0]: {"m": 1}}, "", QueryError),
        ({"x": {"m": 1}}, "e", QueryError),
    ]:
        with pytest.raises(error):
            db.params.annotate(values, source=source)
    assert "m" not in db.params.find({"_id": ids[0]}).first()


def test_better_than_any_set_of_the_run(db):
    model = net()

    def run(values):
        with StepCheckpointer(db, run="r", model=model, optimizer=sgd(model)[0], on_best="acc") as ckpt:
            ckpt.restore()
            for value in values:
                ckpt.step(**({} if value is None else {"acc": value}))

    run([0.1, None, 0.3, 0.2, float("nan")])
    run([0.25, 0.3, 0.5])
    found = db.params.find({"run": "r"}, sort=[("acc", 1)]).all()
    assert [(one.step, one["acc"]) for one in found] == [(1, 0.1), (3, 0.3), (6, 0.5)]


def test_as_often_as_a_budget_allows(db):
    model = net()
    with StepCheckpointer(db, run="r", model=model, every=Every(overhead=0.5)) as ckpt:
        for _ in range(40):
            with torch.no_grad():
                model[0].weight.add_(1)
            ckpt.step()
        stats = ckpt.stats()
        assert stats["saves"] >= 1 and stats["every"] >= 1
    assert min(db.params.find({"run": "r"}).distinct("step")) >= 10


def test_what_fits_is_loaded_and_the_rest_reported(db):
    small, large = net(16), net(20)
    db.params.save({**large.state_dict(), "more": torch.ones(2)}, run="r")
    found = db.params.find().first()
    with pytest.raises(StateError, match="1 unexpected: more"):
        found.load_into(large)
    assert found.load_into(large, strict=False).unexpected == ("more",)
    before = small[0].weight.detach().clone()
    difference = found.load_into(small, strict=False)
    assert difference and "0.weight: expected (16, 8), found (20, 8)" in difference.shapes
    assert torch.equal(small[0].weight, before) and torch.equal(small[3].bias, large[3].bias)
    assert not found.load_into(torch.nn.Sequential(), strict=False).missing

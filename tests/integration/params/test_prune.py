"""Prune: policies applied by a checkpointer, and afterwards."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from tensordb_data import Keep
from tensordb_data.cli.main import app
from tensordb_data.errors import CheckpointError, NotFoundError
from tensordb_data.params.prune import _unchanged
from tensordb_data.torch import StepCheckpointer


def _steps(db, run="r"):
    return sorted(each.step for each in db.params.find({"run": run}))


def test_a_checkpointer_keeps_what_its_policy_says_and_nothing_of_others(db):
    by_hand = db.params.save({"w": torch.zeros(100)}, run="r", step=1)
    db.params.save({"w": torch.zeros(100)}, run="other", step=1)
    model = torch.nn.Linear(2, 2)
    keep = Keep(last=2, best=("acc", 1), every=10)
    with StepCheckpointer(db, "r", model, every=3, keep=keep) as saver:
        for step in range(1, 31):
            saver.step(acc=1.0 if step == 6 else 0.5)
    assert _steps(db) == [1, 6, 12, 21, 27, 30]  # 12 and 21 crossed 10 and 20
    assert db.params.find({"_id": by_hand}).count() == 1 and _steps(db, "other") == [1]
    fresh = StepCheckpointer(db, "r", torch.nn.Linear(2, 2), every=3)
    assert fresh.restore() == 30
    fresh.close()
    with pytest.raises(CheckpointError, match="a policy"):
        StepCheckpointer(db, "r", model, every=3, keep=3)


def test_changed_later_with_metrics_that_came_later(db):
    ids = [db.params.save({"w": torch.full((100,), float(step))}, run="r", step=step) for step in range(1, 7)]
    db.params.annotate({ids[1]: {"test_loss": 0.1}, ids[3]: {"test_loss": 0.9}}, source="evaluator")
    db.params.find({"_id": ids[2]}).tag("release")
    keep = Keep(last=1, best=("test_loss", 1, "min"), tagged="release")
    would = db.params.prune("r", keep, dry_run=True)
    assert would.deleted == [ids[0], ids[3], ids[4]] and would.bytes == 1200 and len(_steps(db)) == 6
    assert would.kept == {ids[1]: ["best"], ids[2]: ["tagged"], ids[5]: ["newest", "last"]}
    assert db.params.prune("r", keep) == would
    assert _steps(db) == [2, 3, 6]
    assert db.params.find({"step": 2, "run": "r"}).first().load()["w"][0] == 2
    with pytest.raises(NotFoundError, match="'nothing' has no parameter sets"):
        db.params.prune("nothing", keep)


def test_what_is_tagged_or_annotated_meanwhile_is_left_alone(db):
    keep = Keep(best=("acc", 1))
    for change in (lambda s: s.tag("x"), lambda s: s.update({"$set": {"acc": 0.5}})):
        id = db.params.save({"w": torch.zeros(100)}, run="r", step=1)
        seen = db.database["params"].find_one({"_id": id})
        change(db.params.find({"_id": id}))
        assert db.database["params"].count_documents(_unchanged(seen, keep)) == 0


def test_the_commands(db, mongo_uri, warehouse_dir):
    for step in range(1, 5):
        db.params.save({"w": torch.zeros(100)}, run="r", step=step, acc=step / 10)

    def run(*words):
        return CliRunner().invoke(app, ["params", *words], env={"TENSORDB": mongo_uri})

    listed = run("--json", "--run", "r")
    assert [json.loads(line)["step"] for line in listed.stdout.splitlines()] == [4, 3, 2, 1], listed.output
    assert "acc=0.4" in run().stdout
    dry = run("prune", "--run", "r", "--last", "1", "--best", "acc:2", "--dry-run", "--json")
    assert len(json.loads(dry.stdout)["deleted"]) == 2 and len(_steps(db)) == 4
    done = run("prune", "--run", "r", "--last", "1", "--best", "acc:2")
    assert done.exit_code == 0 and "2 sets stay, 2 deleted" in done.stdout and _steps(db) == [3, 4]
    assert run("prune", "--run", "r", "--best", "acc").exit_code == 2
    assert run("prune", "--run", "r", "--best", "loss:2").exit_code == 2
    assert run("prune", "--run", "x").exit_code == 2
    assert run("prune", "--run", "x", "--last", "1").exit_code == 1

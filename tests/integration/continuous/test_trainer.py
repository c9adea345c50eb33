"""A trainer that never ends: each sample counts once in what it saves, whatever dies."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensordb_data import StateError, TensorDB
from tensordb_data.continuous import Trainer
from tests.integration.continuous import programs
from tests.integration.continuous.programs import Sum, kill_server, running


def add(db: TensorDB, first: int, end: int) -> None:
    with db.data.writer("d", live=True) as writer:
        for number in range(first, end):
            writer.add(number=number)


def newest(db: TensorDB) -> Any:
    return db.params.find({"run": "sum"}, sort=[("step", -1)]).first()


def following(db: TensorDB) -> Any:
    return db.data.find({"dataset": "d"}).stream(batch_size=8, follow=True)


def test_goes_on_where_it_was_with_its_metrics_logged(db: TensorDB) -> None:
    add(db, 0, 100)
    assert Trainer(db, "sum", Sum(), following(db), every=5).run(steps=7) == 7
    assert newest(db).step == 7 and newest(db)["seen"] == 56
    assert Trainer(db, "sum", Sum(), following(db), every=5).run(steps=3) == 10
    assert newest(db).load() == {"total": np.array([float(sum(range(80)))]), "seen": 80}
    assert sorted(found.step for found in db.params.find({"run": "sum"})) == [5, 7, 10]
    assert db.logs.find({"run": "sum"}).count() == 10
    assert newest(db).lineage["parent"] == db.params.find({"step": 7}).first().id


def test_each_run_of_it_is_one_attempt(db: TensorDB) -> None:
    add(db, 0, 100)
    trainer = Trainer(db, "sum", Sum(), following(db), every=5)
    assert not list(db.runs({"name": "sum"}))  # nothing has begun
    trainer.run(steps=7)
    Trainer(db, "sum", Sum(), following(db), every=5).run(steps=3)
    (run,) = db.runs({"name": "sum"})
    assert [attempt["state"] for attempt in run.attempts] == ["ended", "ended"]
    assert run.attempts[1]["after"]["step"] == 7


def test_a_run_of_another_kind_is_refused(db: TensorDB) -> None:
    add(db, 0, 20)
    Trainer(db, "sum", Sum(), following(db), every=5).run(steps=1)
    other = db.data.find({"dataset": "d", "number": {"$gt": 3}}).stream(batch_size=8, follow=True)
    with pytest.raises(StateError, match="query"):
        Trainer(db, "sum", Sum(), other, every=5).run(steps=1)


def test_an_error_of_the_learner_is_raised_and_what_was_saved_stays(db: TensorDB) -> None:
    class Failing(Sum):
        def step(self, batch: Any) -> dict[str, Any]:
            if self.seen >= 48:
                raise ZeroDivisionError("diverged")
            return super().step(batch)

    add(db, 0, 100)
    with pytest.raises(ZeroDivisionError, match="diverged"):
        Trainer(db, "sum", Failing(), following(db), every=2).run()
    assert newest(db)["seen"] == 48


def test_torch_learns_the_same_with_and_without_an_interruption(db: TensorDB) -> None:
    import torch

    from tensordb_data.torch import Learner

    def learner() -> Learner:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        optimizer = torch.optim.Adam(model.parameters())
        return Learner(model, optimizer, lambda model, batch: model(batch["number"][:, None].float()).square().mean())

    add(db, 0, 100)
    Trainer(db, "whole", learner(), following(db), every=100).run(steps=10)
    Trainer(db, "parts", learner(), following(db), every=100).run(steps=4)
    Trainer(db, "parts", learner(), following(db), every=100).run(steps=6)
    whole, parts = (db.params.find({"run": run, "step": 10}).first().load() for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    wide = torch.nn.Linear(3, 1)
    misfit = Learner(wide, torch.optim.Adam(wide.parameters()), lambda model, batch: model)
    with pytest.raises(StateError):
        Trainer(db, "parts", misfit, following(db), every=100).run(steps=1)


def test_survives_its_own_death_and_the_servers_and_drains_while_it_waits(warehouse_dir: Path) -> None:
    folder = warehouse_dir / "w"
    with TensorDB(folder) as db:
        add(db, 0, 100)
        with running(programs.train, folder, 3) as trainer:
            trainer.hear(seen=100)
            trainer.end(signal.SIGKILL)
        add(db, 100, 200)
        with running(programs.train, folder, 3) as trainer:
            trainer.hear(seen=200)
            kill_server(folder)
            add(db, 200, 300)
            trainer.hear(seen=300)  # and now it waits for more
            assert trainer.end(signal.SIGTERM) == 0
        found = newest(db)
        assert found["seen"] == 300 and found.load()["total"][0] == sum(range(300))

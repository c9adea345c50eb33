"""Which samples a run had received, which checkpoints have seen some samples, and what two selections share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from bson import ObjectId
from torch.utils.data import DataLoader

from tensordb_data import Keep, TensorDB
from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.torch import QueryDataset, StepCheckpointer

ALL = Keep(last=100)


def fill(db: TensorDB, n: int = 30) -> list[ObjectId]:
    with db.data.writer("d") as writer:
        ids: list[ObjectId] = writer.add_many(x=np.arange(n, dtype=np.float32).reshape(n, 1), label=np.arange(n) % 3)
    return ids


class Training:
    """A run, and what its loop has received up to each step."""

    def __init__(self, db: TensorDB, selection: Any, **options: Any) -> None:
        self.db, self.model = db, torch.nn.Linear(1, 1)
        self.seen: dict[int, list[ObjectId]] = {}
        dataset = QueryDataset(selection, batch_size=4, fields=["_id", "x"], **options)
        self.loader: DataLoader[Any] = DataLoader(dataset, batch_size=None)

    def steps(self, last: int, before: Iterable[ObjectId] = (), save_at: Iterable[int] = ()) -> list[ObjectId]:
        received = list(before)
        with StepCheckpointer(
            self.db, run="r", model=self.model, every=1, stream=self.loader, keep=ALL
        ) as checkpointer:
            step = checkpointer.restore()
            while step < last:
                for batch in self.loader:
                    step += 1
                    received += batch["_id"]
                    checkpointer.step()
                    self.seen[step] = list(received)
                    if step >= last:
                        break
        return received

    def check(self, exact: bool = True) -> None:
        found = self.db.params.find({"run": "r"}, sort=[("step", 1)]).all()
        assert found
        for one in found:
            samples = one.samples()
            expected = self.seen[one.step or 0]
            if exact:
                assert samples.exact, samples.notes
                times = dict(zip(samples.ids, samples.times.tolist(), strict=True))
                assert times == {id: expected.count(id) for id in set(expected)}
                assert len(samples) == samples.count() == len(set(expected)) and expected[0] in samples
            else:
                assert set(expected) <= set(samples.ids)


@pytest.mark.parametrize("options", [{"shuffle": True, "seed": 3}, {}, {"shuffle": True, "passes": 1}])
def test_what_a_run_had_received(db: TensorDB, options: dict[str, Any]) -> None:
    fill(db, 18)
    training = Training(db, db.data.find({"dataset": "d"}), **options)
    training.steps(11)
    training.check()


def test_over_attempts_with_changed_data(db: TensorDB) -> None:
    ids = fill(db, 18)
    first = Training(db, db.data.find({"dataset": "d"}), shuffle=True)
    received = first.steps(7)
    db.data.find({"_id": ids[0]}).update({"$set": {"label": 9}})
    with db.data.writer("d") as writer:
        writer.add_many(x=np.zeros((6, 1), np.float32), label=np.zeros(6, np.int64))
    second = Training(db, db.data.find({"dataset": "d"}), shuffle=True)
    second.seen = first.seen
    second.steps(18, received)
    second.check()
    third = Training(db, db.data.find({"dataset": "d"}), shuffle=True)
    third.steps(20, second.seen[18])
    third.seen.update(second.seen)
    third.check()


def test_a_run_on_a_frozen_set_is_known_exactly_for_ever(db: TensorDB) -> None:
    fill(db, 18)
    frozen = db.data.find({"dataset": "d"}).freeze("v1")
    training = Training(db, frozen, shuffle=True)
    training.steps(12)
    db.data.drop("d")
    db.gc(grace=0)
    training.check()
    newest = db.params.find({"run": "r"}, sort=[("step", -1)]).first()
    samples = newest.samples()
    assert {sample.id for sample in samples} == set(samples.ids) and len(samples) == 18
    assert {float(sample["x"][0]) for sample in samples} == set(map(float, range(18)))


def test_what_is_not_known_is_said(db: TensorDB) -> None:
    ids = fill(db, 8)
    training = Training(db, db.data.find({"dataset": "d"}), shuffle=True)
    with StepCheckpointer(db, run="r", model=training.model, every=2, stream=training.loader, keep=ALL) as checkpointer:
        batches = iter(training.loader)
        for step in range(1, 5):  # each save is at the end of a pass, and stores no plan
            next(batches)
            checkpointer.step()
            if step == 2:
                db.data.find({"_id": ids[0]}).update({"$set": {"label": 9}})
    newest = db.params.find({"run": "r"}, sort=[("step", -1)]).first()
    samples = newest.samples()
    assert not samples.exact and "no checkpoint has the data of pass 0" in repr(samples)
    assert set(samples.ids) == set(ids)
    id = db.params.save({"w": np.zeros(2)}, run="x", step=1)
    with pytest.raises(NotFoundError, match="says nothing of the samples"):
        db.params.find({"_id": id}).first().samples()


def test_trained_on_and_scored_on(db: TensorDB) -> None:
    ids = fill(db, 20)
    training = Training(db, db.data.find({"dataset": "d", "label": {"$ne": 2}}), shuffle=True, seed=1)
    training.steps(3)
    for chosen in (ids[0], ids[1], ids[2]):
        steps = [one.step for one in db.params.trained_on(db.data.find({"_id": chosen}))]
        assert steps == [step for step, seen in sorted(training.seen.items()) if chosen in seen]
    assert db.params.trained_on(db.data.find({"dataset": "d", "label": 2})) == []
    test = db.data.find({"dataset": "d", "label": 2}).freeze("test")
    one = db.params.find({"run": "r", "step": 2}).first()
    db.params.annotate({one.id: {"test_acc": 0.5}}, source="me", data=test)
    assert [each.step for each in db.params.scored_on(test)] == [2]
    assert [each.step for each in db.params.scored_on(db.data.find({"_id": ids[2]}))] == [2]
    assert db.params.scored_on(db.data.find({"_id": ids[0]})) == []
    for call in (db.params.trained_on, db.params.scored_on):
        with pytest.raises(QueryError):
            call(db.params.find({}))


def test_overlap(db: TensorDB) -> None:
    ids = fill(db, 10)
    with db.data.writer("d2") as writer:
        other = writer.add_many(x=np.array([[3], [70], [3]], np.float32), label=[0, 0, 0])
    train, test = db.data.find({"dataset": "d", "label": 0}), db.data.find({"dataset": "d", "label": {"$lt": 2}})
    found = db.data.overlap(train, test)
    assert set(found.by_id) == {ids[n] for n in range(10) if n % 3 == 0} and found.by_content == ()
    db.data.find({"dataset": "d"}).freeze("v1")
    found = db.data.overlap("v1", db.data.find({"dataset": "d2"}))
    assert found.by_id == () and found.by_content == ((ids[3], other[0]), (ids[3], other[2])) and found.fields == ("x",)
    assert "the same x" in repr(found) and bool(found)
    assert not db.data.overlap("v1", db.data.find({"dataset": "d", "label": 77}))
    labels = db.data.overlap("v1", db.data.find({"dataset": "d2"}), fields=["label"])
    assert len(labels.by_content) == 3
    with pytest.raises(QueryError, match="no field 'y'"):
        db.data.overlap("v1", train, fields=["y"])

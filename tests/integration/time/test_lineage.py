"""Which samples a run had received, which checkpoints have seen some samples, and what two selections share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from bson import ObjectId
from torch.utils.data import DataLoader

from tensordb_data import Array, Keep, Scalar, TensorDB
from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.table.neighbours import pairs
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


def test_overlap_by_embeddings(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_TILE", 7)
    rng = np.random.default_rng(0)
    vectors = {
        "train": rng.normal(size=(40, 8)).astype(np.float32),
        "test": rng.normal(size=(30, 8)).astype(np.float32),
    }
    vectors["test"][5:25] = vectors["train"][10:30] * 3 + rng.normal(size=(20, 8)).astype(np.float32) / 8
    vectors["train"][3], vectors["test"][4, 2] = 0, np.nan
    ids: dict[str, list[ObjectId]] = {}
    for name, values in vectors.items():
        with db.data.writer(name, schema={"n": Scalar("int"), "v": Array("float32", (8,), optional=True)}) as writer:
            ids[name] = writer.add_many(n=np.arange(len(values)), v=values)
            ids[name].append(writer.add(n=99))
    train, test = (db.data.find({"dataset": name}) for name in vectors)
    lengths = {name: np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True) for name, v in vectors.items()}
    units = {name: v / np.where(lengths[name] == 0, 1, lengths[name]) for name, v in vectors.items()}
    cosines = np.nan_to_num(units["train"] @ units["test"].T, nan=-1)
    expected = {(ids["train"][i], ids["test"][j]) for i, j in zip(*np.nonzero(cosines >= 0.95), strict=True)}
    assert len(expected) >= 15
    for one in (train, train.freeze("train")):
        found = db.data.overlap(one, test, fields=["n"], embedding="v", above=0.95)
        near = found.near
        assert near is not None and len(near) == len(expected) and {pair[:2] for pair in near} == expected
        scores = [pair.score for pair in near]
        assert scores == sorted(scores, reverse=True)
        assert [(left.missing, left.zero, left.nan) for left in near.left_out] == [(1, 1, 0), (1, 0, 1)]
        assert near.not_compared == ((ids["train"][3], ids["train"][40]), (ids["test"][4], ids["test"][30]))
        rows = {" ".join(line.split()) for line in repr(found).splitlines()}
        assert f"pairs with a near v, 0.95 or more {len(expected)}" in rows
        assert sum(row.startswith("not compared, a NaN in v: of") for row in rows) == 1
    same = db.data.overlap(train, train, embedding="v").near
    assert same is not None and not len(same), "the same sample is no near duplicate"
    none = db.data.overlap(db.data.find({"dataset": "train", "n": 99}), test, embedding="v").near
    assert none is not None and not len(none) and none.left_out[1].nan == 1, "the others are counted all the same"
    monkeypatch.setattr(pairs, "MOST_PAIRS", 3)
    many = db.data.overlap(train, test, embedding="v", above=0.95).near
    assert many is not None and len(many) == len(expected)
    with pytest.raises(QueryError, match=f"{len(expected)} near pairs"):
        list(many)


def test_overlap_refuses_embeddings_that_cannot_be_compared(db: TensorDB) -> None:
    for name, width in (("a", 3), ("b", 4)):
        with db.data.writer(name) as writer:
            writer.add_many(v=np.ones((5, width), np.float32), n=[1] * 5)
    a, b = db.data.find({"dataset": "a"}), db.data.find({"dataset": "b"})
    with pytest.raises(QueryError, match="'v' has 3 numbers in the first Selection and 4 in the second"):
        db.data.overlap(a, b, embedding="v")
    for wrong in ({"above": 0.9}, {"embedding": "v", "above": 1.5}, {"embedding": "v", "above": "x"}, {"embedding": 3},
                  {"embedding": "w"}, {"embedding": "n"}):  # fmt: skip
        with pytest.raises(QueryError, match="overlap"):
            db.data.overlap(a, a, **wrong)  # type: ignore[arg-type]
    nothing = db.data.overlap(a, db.data.find({"dataset": "b", "n": 77}), embedding="v").near
    assert nothing is not None and not len(nothing)

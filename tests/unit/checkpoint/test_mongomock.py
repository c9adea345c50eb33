"""Sets and logs in unit tests of user code: no server, no files."""

import mongomock
import numpy as np
import pytest
import torch

from tensordb_data import SaveOptions, TensorDB
from tensordb_data.checkpoint.checkpointer import Checkpointer
from tensordb_data.errors import CheckpointError


@pytest.fixture
def db():
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as opened:
        yield opened


def test_sets_and_rows(db):
    state = {"w": torch.randn(1000), "n": [np.arange(500), None, (1, 2.5)]}
    db.params.save(state, run="r", step=1, val_acc=0.5)
    back = db.params.find({"run": "r"}, sort=[("val_acc", -1)]).first().load()
    assert (
        torch.equal(back["w"], state["w"]) and np.array_equal(back["n"][0], state["n"][0]) and back["n"][2] == (1, 2.5)
    )
    with db.logs.run("r") as log:
        log.write(1, loss=0.5)
    assert db.logs.find({"run": "r"}).first()["loss"] == 0.5


def checkpointer(db, **options):
    state = lambda step: {"model": np.full(1000, step), "training": {"step": step}}  # noqa: E731
    return Checkpointer(db.warehouse, "r", state, **options)


def test_a_save_whenever_a_multiple_is_crossed(db):
    ckpt = checkpointer(db, every=10, options=SaveOptions(signals=False))
    saved = [step for step in (8, 16, 24, 29, 30, 31, 70) if ckpt.end_step(step, {})]
    ckpt.close()
    assert saved == [16, 24, 30, 70] == sorted(db.params.find().distinct("step"))
    document, parts = checkpointer(db, every=10).load(None)
    assert document["step"] == 70 and (parts["model"] == 70).all()


def test_a_run_that_has_no_set(db):
    assert checkpointer(db, every=10).load(None) is None


def test_every_due_save_is_stored_however_fast_they_come(db):
    ckpt = checkpointer(db, every=1, options=SaveOptions(memory=9000, signals=False))
    for step in range(1, 31):
        ckpt.end_step(step, {})
    ckpt.close()
    assert db.params.find().count() == 30 == ckpt.stats()["durable"]


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "10"])
def test_every_is_a_number_of_steps(db, every):
    with pytest.raises(CheckpointError, match="every"):
        checkpointer(db, every=every)

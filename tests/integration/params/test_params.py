"""Parameter sets: saved from anything, found by a query, stored once, loaded whole."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch

from tensordb_data import Query, TensorDB
from tensordb_data.errors import CheckpointError, SchemaError, StateError, StorageError
from tensordb_data.tensors import write as write_module
from tests.integration.checkpoint.loops import net


def test_saved_found_and_loaded(db):
    model = net()
    id = db.params.save(model.state_dict(), run="cnn-1", step=400, tags=["cnn"], val_acc=np.float32(0.5))
    db.params.save(model.state_dict(), run="cnn-1", step=600, val_acc=torch.tensor(0.25))
    best = db.params.find({"run": "cnn-1"}, sort=[("val_acc", -1)]).first()
    assert (best.id, best.run, best.step, best["val_acc"], best.tags, best.parts) == (
        id,
        "cnn-1",
        400,
        0.5,
        ["cnn"],
        ["model"],
    )
    assert db.select(Query.from_json(best.query.to_json())).first() == best
    other = net(16)
    torch.nn.init.zeros_(other[0].weight)
    best.load_into(other)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    other.load_state_dict(best.load())
    assert all(isinstance(value, np.ndarray) for value in best.load(framework="numpy").values())
    with pytest.raises(StateError, match=r"7 unexpected|missing: weight"):
        best.load_into(torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="no part 'optimizer'; it has model"):
        best.load("optimizer")


def test_loaded_tensors_are_ones_own(db):
    db.params.save({"w": torch.zeros(1000), "s": torch.zeros(2)}, run="r")
    found = db.params.find().first()
    first = found.load()
    first["w"] += 1
    first["s"] += 1
    assert not found.load()["w"].any() and not found.load()["s"].any()


def test_what_is_the_same_is_stored_once(db):
    frozen, head = torch.randn(9000), torch.randn(1000)
    store = db.warehouse.blobs.store()

    def stored():
        return sum(size for _, size in store.list("params/"))

    db.params.save({"frozen": frozen, "head": head}, run="a", step=1)
    first = stored()
    for step in range(2, 6):
        db.params.save({"frozen": frozen, "head": head + step}, run="b", step=step)
    assert stored() - first < 4 * 0.12 * first
    assert torch.equal(db.params.find({"step": 5}).first().load()["frozen"], frozen)
    other = TensorDB(client=db.database.client, db_name=db.database.name, project="other")
    other.params.save({"frozen": frozen})
    assert db.params.find().count() == 5 and other.params.find().count() == 1


def test_an_object_is_an_ordinary_safetensors_file(db):
    model = net()
    id = db.params.save(model.state_dict())
    opened = safetensors.torch.load_file(db.warehouse.blobs.store().local_path(f"params/{id}.safetensors"))
    assert torch.equal(opened["model/0.weight"], model[0].weight)


def round_trip(db):
    state = {
        "a": [torch.randn(50, 50), np.arange(5000)],
        "b": (b"x" * 1000, None, 1.5),
        3: torch.ones(2, dtype=torch.bfloat16),
    }
    db.params.save(state, run="r")
    back = db.params.find({"run": "r"}).first().load()
    assert torch.equal(back["a"][0], state["a"][0]) and np.array_equal(back["a"][1], state["a"][1])
    assert back["b"] == state["b"] and torch.equal(back[3], state[3])


@pytest.mark.parametrize("blobs", ["memory://", "gridfs://"])
def test_any_store(mongo_uri, blobs):
    with TensorDB(mongo_uri, blobs=blobs) as db:
        round_trip(db)


def test_s3(mongo_uri, s3):
    with TensorDB(mongo_uri, blobs=s3) as db:
        round_trip(db)


def test_nothing_is_visible_when_the_store_fails(db, monkeypatch):
    def full(*args, **options):
        raise StorageError("full")

    monkeypatch.setattr(db.warehouse.blobs.store(), "put", full)
    with pytest.raises(StorageError, match="full"):
        db.params.save({"w": torch.ones(100)})
    assert db.params.find().count() == 0 and db.database["tensors"].count_documents({}) == 0


def test_a_tensor_that_is_being_collected_lives_on(db):
    id = db.params.save({"w": torch.arange(1000)}, run="a")
    db.database["tensors"].update_many({}, {"$set": {"state": "dying"}})
    db.params.save({"w": torch.arange(1000)}, run="b")
    assert torch.equal(db.params.find({"run": "b"}).first().load()["w"], torch.arange(1000))
    content = write_module.digest(memoryview(torch.arange(1000).numpy().tobytes()))
    (tensor,) = db.database["tensors"].find({"_id.h": content})
    assert (tensor["state"], tensor["key"]) == ("live", f"params/{id}.safetensors")


def test_a_lost_tensor_is_named(db):
    id = db.params.save({"w": torch.arange(1000)})
    db.warehouse.blobs.store().delete(f"params/{id}.safetensors")
    with pytest.raises(StorageError, match=f"{id}"):
        db.params.find().first().load()
    db.database["tensors"].delete_many({})
    with pytest.raises(CheckpointError, match="incomplete"):
        db.params.find().first().load()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"run": 3}, "run is named"),
        ({"step": -1}, "number of steps"),
        ({"step": 1.5}, "number of steps"),
        ({"tags": "cnn"}, "list of strings"),
        ({"created": 1}, "taken"),
        ({"a.b": 1}, "without '.'"),
        ({"acc": np.ones(3)}, r"array of shape \(3,\)"),
        ({"acc": object()}, "'acc'"),
    ],
)
def test_bad_fields_are_refused(db, fields, says):
    with pytest.raises(SchemaError, match=says):
        db.params.save({"w": torch.ones(2)}, **fields)

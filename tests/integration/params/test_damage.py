"""A bit flipped in a stored tensor: refused, named, and the newest intact set offered, in every kind of store."""

from __future__ import annotations

import pytest
import torch

from tensordb_data import TensorDB
from tensordb_data.errors import CorruptBlobError
from tensordb_data.torch import StepCheckpointer


def flip(db, id, tensor):
    """One bit of a tensor, in the middle of its bytes."""
    store, key = db.warehouse.blobs.store(), f"params/{id}.safetensors"
    data = bytearray(store.get(key))
    needle = tensor.numpy().tobytes()
    data[data.index(needle) + len(needle) // 2] ^= 4
    store.delete(key)
    store.put(key, [data])


def refuses_a_flipped_bit(db):
    model, kept = torch.nn.Linear(50, 20), {}
    with StepCheckpointer(db, run="r", model=model, every=1) as ckpt:
        for step in (1, 2, 3):
            with torch.no_grad():
                model.weight.add_(1)
            kept[step] = model.weight.detach().clone()
            ckpt.step()
    sets = {found.step: found for found in db.params.find({"run": "r"})}
    for step in (2, 3):
        flip(db, sets[step].id, kept[step])
    says = r"'model/weight' of parameter set .* at step 3 is damaged.*newest intact one is .* at step 1"
    other = torch.nn.Linear(50, 20)
    before = other.weight.detach().clone()
    for load in (sets[3].load, lambda: sets[3].load_into(other)):
        with pytest.raises(CorruptBlobError, match=says):
            load()
    assert torch.equal(other.weight, before)
    with StepCheckpointer(db, run="r", model=other, every=1) as ckpt:
        with pytest.raises(CorruptBlobError, match=says + r".*restore\(step=1\)"):
            ckpt.restore()
        assert ckpt.restore(step=1) == 1
    assert torch.equal(other.weight, kept[1])


@pytest.mark.parametrize("blobs", ["./blobs", "gridfs://", "memory://"])
def test_a_flipped_bit(mongo_uri, warehouse_dir, blobs):
    with TensorDB(mongo_uri, blobs=blobs.replace("./", f"file://{warehouse_dir}/"), cache=warehouse_dir / "c") as db:
        refuses_a_flipped_bit(db)


def test_a_flipped_bit_in_s3(mongo_uri, warehouse_dir, s3):
    with TensorDB(mongo_uri, blobs=s3, cache=warehouse_dir / "c") as db:
        refuses_a_flipped_bit(db)


def test_a_set_of_parameters_alone(db):
    for step in (1, 2):
        id = db.params.save({"w": torch.full((500,), float(step))}, run="r", step=step)
    flip(db, id, torch.full((500,), 2.0))
    with pytest.raises(CorruptBlobError, match=r"'model/w' .* at step 2 is damaged.*intact one is .* at step 1"):
        db.params.find({"step": 2}).first().load()

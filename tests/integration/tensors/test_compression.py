"""Tensors that are stored compressed: less in the store, the same in every other way; beside those of old saves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
import torch

from tensordb_data import CorruptBlobError, TensorDB
from tensordb_data.checkpoint import background
from tensordb_data.params import save as save_module
from tensordb_data.tensors.compression import TensorCompressor
from tensordb_data.torch import StepCheckpointer

NOISE = np.random.default_rng(0).standard_normal(50_000).astype("f4")
STATE = {
    "zeros": np.zeros((500, 100), "f4"),
    "noise": NOISE,
    "mask": NOISE > 0,
    "int8": torch.from_numpy(np.clip(NOISE * 20, -127, 127).astype("i1")),
    "bf16": torch.zeros(20_000, dtype=torch.bfloat16),
    "small": np.zeros(100),
    "later": NOISE * 2,
}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert type(found[name]) is type(value) and found[name].dtype == value.dtype
        assert np.array_equal(np.asarray(found[name].float() if name == "bf16" else found[name]),
                              np.asarray(value.float() if name == "bf16" else value)), name  # fmt: skip


@pytest.mark.parametrize("blobs", ["./blobs", "gridfs://", "memory://"])
def test_any_store(mongo_uri, warehouse_dir, blobs):
    with TensorDB(mongo_uri, blobs=blobs.replace("./", f"file://{warehouse_dir}/")) as db:
        id = db.params.save(STATE, run="r", step=1)
        same(db.params.find().first().load(), STATE)
        stored = {bytes(doc["_id"]["h"]): doc for doc in db.database["tensors"].find()}
        squeezed = [doc for doc in stored.values() if "z" in doc]
        assert sorted(doc["z"] for doc in squeezed if doc["n"] < doc["z"]) == [40_000, 50_000, 50_000, 200_000]
        assert save_module.digest(memoryview(NOISE.tobytes())) in stored
        assert "z" not in stored[save_module.digest(memoryview(NOISE.tobytes()))]  # noise as it is
        assert db.params.find({"_id": id}).first().nbytes > 2 * sum(doc["n"] for doc in squeezed)
        report = db.fsck()
        assert report.findings == [] and report.tensors == len(stored)
        # the same again is known by its content, whether it would be compressed or not
        db.params.save({**STATE, "more": 1}, run="r", step=2)
        assert db.database["tensors"].count_documents({}) == len(stored) + 1
        same({k: v for k, v in db.params.find({"step": 2}).first().load().items() if k != "more"}, STATE)


def test_the_object_is_in_safetensors_layout(db):
    id = db.params.save(STATE)
    data = bytes(db.warehouse.blobs.store().get(f"params/{id}.safetensors"))
    tensors = safetensors.numpy.load(data)
    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert np.array_equal(tensors["model/noise"], NOISE) and tensors["model/zeros"].dtype == np.uint8
    zeros = json.loads(about["zstd"])["model/zeros"]
    assert zeros == ["<f4", [500, 100]]


def test_beside_saves_of_old(db, monkeypatch):
    """What was stored as it is stays so, and serves new sets."""
    with monkeypatch.context() as patch:
        patch.setattr(TensorCompressor, "compress", lambda *_: None)
        db.params.save(STATE, run="old")
    assert db.database["tensors"].count_documents({"z": {"$exists": True}}) == 0
    db.params.save({**STATE, "new": np.zeros(10_000)}, run="new")
    assert db.database["tensors"].count_documents({"z": {"$exists": True}}) == 1
    for run in ("old", "new"):
        found = db.params.find({"run": run}).first().load()
        found.pop("new", None)
        same(found, STATE)


@pytest.mark.parametrize("blobs", ["./blobs", "memory://"])
def test_a_flipped_bit(mongo_uri, warehouse_dir, blobs):
    """In every byte of a frame: refused and named, or harmless."""
    with TensorDB(mongo_uri, blobs=blobs.replace("./", f"file://{warehouse_dir}/")) as db:
        expected = np.arange(2000) % 7
        db.params.save({"w": expected})
        doc = db.database["tensors"].find_one({"z": 16_000})
        store = db.warehouse.blobs.store()
        whole = bytes(store.get(doc["key"]))
        refused = 0
        for at in range(doc["o"], doc["o"] + doc["n"], max(1, doc["n"] // 40)):
            damaged = bytearray(whole)
            damaged[at] ^= 16
            store.delete(doc["key"])
            store.put(doc["key"], [damaged])
            try:
                assert np.array_equal(db.params.find().first().load()["w"], expected)
            except CorruptBlobError as error:
                assert "'model/w'" in str(error)
                refused += 1
                assert [each.kind for each in db.fsck().findings] == ["damaged blob"]
        assert refused > 10


@pytest.mark.parametrize(("share", "squeezed"), [(0.0, 0), (1e9, 1)])
def test_a_loop_gives_it_a_share_of_its_time(db, monkeypatch, share, squeezed):
    monkeypatch.setattr(background, "_SHARE", share)
    model = torch.nn.Linear(100, 200)
    torch.nn.init.zeros_(model.weight)
    with StepCheckpointer(db, run="r", model=model, every=1) as ckpt:
        ckpt.step()
    assert db.database["tensors"].count_documents({"z": 80_000}) == squeezed
    assert db.database["tensors"].count_documents({"n": 80_000}) == 1 - squeezed


def test_what_never_changes_is_hashed_once(db, monkeypatch):
    """A plan is the same array over the same bytes at each save."""
    counted = []
    real = save_module.digest
    monkeypatch.setattr(save_module, "digest", lambda data: counted.append(len(data)) or real(data))
    plan = np.frombuffer(bytes(range(256)) * 100, np.uint8)
    changes = np.zeros(3000)
    for step in range(3):
        changes += 1
        db.params.save({"plan": plan, "changes": changes}, step=step)
    assert counted.count(25_600) == 1 and counted.count(24_000) == 3
    again = np.frombuffer(bytes(range(256)) * 100, np.uint8)
    db.params.save({"plan": again})
    assert counted.count(25_600) == 2
    assert all(np.array_equal(each.load()["plan"], plan) for each in db.params.find())
    known = len(save_module._fixed)
    del plan, again
    assert len(save_module._fixed) == known - 2

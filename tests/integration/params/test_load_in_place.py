"""In place: a set read into a model's own memory: equal to a load and a copy, or nothing at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tensordb_data import CorruptBlobError, StateError, TensorDB
from tensordb_data.params.load_in_place import load_in_place


class Odd(torch.nn.Module):
    """What a module may hold: statistics, tied weights, views of one buffer, small and empty tensors, many dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        self.rnn = torch.nn.LSTM(5, 6, batch_first=True)
        self.head = torch.nn.Linear(300, 300)
        self.tied = self.head.weight
        flat = torch.randn(2, 5000)
        for i, dtype in enumerate((torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool, torch.complex64)):
            self.register_buffer(f"buffer{i}", torch.randn(33, 7).to(dtype))
        for i in range(2):
            self.register_buffer(f"view{i}", flat[i])
        self.register_buffer("zeros", torch.zeros(100_000))
        self.register_buffer("none", torch.empty(0, 3))
        self.register_buffer("number", torch.tensor(7))


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)) for a, b in pairs)


@pytest.fixture
def saved(db):
    model = Odd()
    model.conv(torch.randn(8, 3, 9, 9))  # statistics of its own
    model.zeros.zero_()
    return model, db.params.find({"_id": db.params.save(model.state_dict(), run="a")}).first()


def test_the_model_is_as_it_was_saved_and_its_tensors_are_the_same_objects(db, saved):
    model, found = saved
    other = Odd()
    before = {name: (id(value), value.data_ptr()) for name, value in other.state_dict(keep_vars=True).items()}
    assert not same(model, other)
    assert load_in_place(db.warehouse, found._doc, other)
    assert same(model, other)
    assert before == {name: (id(value), value.data_ptr()) for name, value in other.state_dict(keep_vars=True).items()}
    assert other.tied is other.head.weight
    other.head.weight.data.zero_()
    assert not found.load_into(other) and same(model, other)


def test_hooks_of_the_model_are_called(db):
    class Doubled(torch.nn.Linear):
        """Saves twice its weight."""

        def _save_to_state_dict(self, destination, prefix, keep_vars):
            destination[f"{prefix}twice"] = 2 * self.weight.detach()

        def _load_from_state_dict(self, state_dict, prefix, *rest):
            self.weight.data.copy_(state_dict[f"{prefix}twice"] / 2)

    model, other = Doubled(20, 20), Doubled(20, 20)
    found = db.params.find({"_id": db.params.save(model.state_dict())}).first()
    assert load_in_place(db.warehouse, found._doc, other) and torch.equal(model.weight, other.weight)


@pytest.mark.parametrize("what", ["dtype", "shape", "order", "shared", "missing", "more", "plain", "numpy"])
def test_what_does_not_fit_changes_nothing_here(db, what):
    model = torch.nn.Sequential(torch.nn.Linear(20, 20), torch.nn.Linear(20, 20))
    state = model.state_dict()
    if what in ("plain", "numpy"):
        state["0.weight"] = 3 if what == "plain" else np.ones((20, 20), np.float32)
    found = db.params.find({"_id": db.params.save(state)}).first()
    other = torch.nn.Sequential(torch.nn.Linear(20, 20), torch.nn.Linear(20, 30 if what == "shape" else 20))
    if what == "dtype":
        other = other.double()
    elif what == "order":
        other[0].weight = torch.nn.Parameter(torch.randn(20, 20).t())
    elif what == "shared":
        other[0].weight = other[1].weight
    elif what == "missing":
        other[0].bias = None
    elif what == "more":
        other.append(torch.nn.Linear(2, 2))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert not load_in_place(db.warehouse, found._doc, other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    if what in ("shape", "missing", "more", "plain"):
        with pytest.raises(StateError):
            found.load_into(other)
    else:
        found.load_into(other)


def test_a_flipped_bit_changes_nothing(db, saved):
    _, found = saved
    store = db.warehouse.blobs.store()
    row = db.database["tensors"].find_one({"n": 300 * 300 * 4})
    path = store.local_path(row["key"])
    with open(path, "r+b") as file:
        file.seek(row["o"] + 1000)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 4]))
    other = Odd()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CorruptBlobError, match=r"model/(tied|head\.weight)"):
        found.load_into(other)
    assert all(
        torch.equal(value.reshape(-1).view(torch.uint8), before[name].reshape(-1).view(torch.uint8))
        for name, value in other.state_dict().items()
    )
    with open(path, "r+b") as file:
        file.truncate(row["o"] + 10)
    with pytest.raises(CorruptBlobError, match="too early"):
        found.load_into(other)


def test_a_store_elsewhere_is_read_as_ever(mongo_uri, s3):
    with TensorDB(mongo_uri, blobs=s3) as db:
        model, other = torch.nn.Linear(30, 40), torch.nn.Linear(30, 40)
        found = db.params.find({"_id": db.params.save(model.state_dict())}).first()
        assert not load_in_place(db.warehouse, found._doc, other)
        assert not found.load_into(other) and torch.equal(model.weight, other.weight)

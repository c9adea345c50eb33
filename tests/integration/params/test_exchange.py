"""Parameters come in from the files of others, and go out into them, as they were."""

from __future__ import annotations

import collections
import json
import os
import warnings

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tensordb_data.errors import CheckpointError, DuplicateError, SchemaError
from tensordb_data.tensors import safetensors as layout
from tests.helpers import same

DTYPES = [getattr(torch, name) for name in sorted(layout._OF_TORCH.values())]


def of_dtype(dtype, shape):
    count = int(np.prod(shape)) * dtype.itemsize
    noise = torch.arange(count, dtype=torch.int64).mul(37).remainder(2 if dtype == torch.bool else 251).to(torch.uint8)
    return noise.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def imported(db, path, **options):
    return db.params.find({"_id": db.params.import_file(path, **options).id}).first()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight


def test_every_dtype_goes_out_and_comes_in(db, tmp_path):
    state = {str(dtype): of_dtype(dtype, shape) for dtype, shape in zip(DTYPES, [(3, 5), (0, 2), ()] * 9, strict=False)}
    safetensors.torch.save_file(state, tmp_path / "in.safetensors")
    found = imported(db, tmp_path / "in.safetensors", run="r", step=3, tags=["a"], val_acc=0.5)
    assert (found.run, found.step, found.tags, found["val_acc"]) == ("r", 3, ["a"], 0.5)
    assert same({name: found.load()[name] for name in state}, state)
    report = found.export(tmp_path / "out.safetensors")
    assert report.tensors == len(state) and report.nbytes == (tmp_path / "out.safetensors").stat().st_size
    assert not report.tied and not report.renamed and not report.left_out
    out = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert same({name: out[name] for name in state}, state)
    found.export(tmp_path / "out.pt")
    assert same(dict(sorted(torch.load(tmp_path / "out.pt", weights_only=True).items())), dict(sorted(state.items())))


keys = st.text(st.characters(codec="utf-8"), max_size=3)
tensors = st.builds(of_dtype, st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3).map(tuple))
trees = st.recursive(
    tensors | st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys | st.integers(), inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3).map(collections.OrderedDict)
    ),
    max_leaves=8,
)


def leaves(value, path=()):
    if isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, str(key)))
    elif isinstance(value, torch.Tensor):
        yield ".".join(path) or "value", value


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(trees)
def test_any_tree_goes_out(db, tmp_path, state):
    found = db.params.find({"_id": db.params.save(state)}).first()
    expected = list(leaves(state))
    path = tmp_path / "x.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is left out
        if not expected or len(dict(expected)) < len(expected) or "__metadata__" in dict(expected):
            with pytest.raises(CheckpointError):
                found.export(path, overwrite=True)
        else:
            report = found.export(path, overwrite=True)
            with safetensors.safe_open(path, "pt") as file:
                there = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            assert there.keys() | report.tied.keys() == dict(expected).keys()
            there |= {name: there[other] for name, other in report.tied.items()}
            assert same({name: there[name] for name, _ in expected}, dict(expected))
            again = imported(db, path).load()
            assert same({name: again[name] for name, _ in expected}, dict(expected))
        if expected:
            found.export(tmp_path / "x.pt", overwrite=True)
            assert same(torch.load(tmp_path / "x.pt", weights_only=True), state)
            assert same(imported(db, tmp_path / "x.pt").load(), state)


def test_tied_tensors_stay_tied(db, tmp_path):
    model = Tied()
    torch.save(model.state_dict(), tmp_path / "in.pt")
    safetensors.torch.save_model(model, str(tmp_path / "in.safetensors"))
    for name in ("in.pt", "in.safetensors"):
        report = db.params.import_file(tmp_path / name)
        assert report.tensors == 3
        found = db.params.find({"_id": report.id}).first()
        state = found.load()
        assert state["head.weight"].data_ptr() == state["embed.weight"].data_ptr()
        out = tmp_path / f"{name}.out.safetensors"
        assert len(found.export(out).tied) == 1
        other = Tied()
        assert safetensors.torch.load_model(other, out) == (set(), [])
        assert same({**other.state_dict()}, {**model.state_dict()})
        assert found.export(tmp_path / f"{name}.out.pt").tied
        again = torch.load(tmp_path / f"{name}.out.pt", weights_only=True)
        assert again["head.weight"].data_ptr() == again["embed.weight"].data_ptr()


def test_what_is_no_tensor_is_named(db, tmp_path):
    state = {"w": torch.ones(2), "layers": [{"b": np.arange(3, dtype=">i4")}], "lr": 0.1, "note": b"x", "none": None}
    found = db.params.find({"_id": db.params.save(state)}).first()
    with pytest.warns(UserWarning, match="without what is no tensor: .*lr"):
        report = found.export(tmp_path / "x.safetensors")
    assert report.left_out == {"['lr']": "a float", "note": "bytes", "['none']": "None"}
    assert report.renamed == {"['layers'][0]['b']": "layers.0.b"}
    assert safetensors.torch.load_file(tmp_path / "x.safetensors")["layers.0.b"].tolist() == [0, 1, 2]
    with pytest.raises(DuplicateError):
        found.export(tmp_path / "x.safetensors")
    odd = db.params.find(
        {"_id": db.params.save({"t": np.array(["a"]), "w": torch.ones(2), "b": np.zeros(2, ml_dtypes.bfloat16)})}
    )
    with pytest.raises(CheckpointError, match="'t' is of <U1"):
        odd.first().export(tmp_path / "y.safetensors")
    with pytest.warns(UserWarning, match="an array of <U1"):
        odd.first().export(tmp_path / "y.pt")
    assert torch.load(tmp_path / "y.pt", weights_only=True)["b"].dtype == torch.bfloat16
    same_name = db.params.find({"_id": db.params.save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}})}).first()
    with pytest.raises(CheckpointError, match=r"two tensors would be called 'a\.b'"):
        same_name.export(tmp_path / "z.safetensors")
    for bad in ("z", "z.onnx"):
        with pytest.raises(CheckpointError, match="expected a name that ends with"):
            found.export(tmp_path / bad)
    with pytest.raises(CheckpointError, match="has no part 'optimizer'"):
        found.export(tmp_path / "z.pt", part="optimizer")
    assert sorted(path.name for path in tmp_path.glob("*")) == ["x.safetensors", "y.pt"] or os.name == "nt"


def test_a_folder_of_hugging_face(db, tmp_path):
    config = {"model_type": "x", "layers": [1, {"a.b": None}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    state = {"a": torch.rand(3, 2), "b": torch.rand(2).to(torch.bfloat16), "c": torch.rand(500, 9)}
    torch.save({"a": state["a"], "b": state["b"]}, tmp_path / "pytorch_model-1.bin")
    torch.save({"c": state["c"], "more": state["c"]}, tmp_path / "pytorch_model-2.bin")
    places = {"a": "pytorch_model-1.bin", "b": "pytorch_model-1.bin", "c": "pytorch_model-2.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    report = db.params.import_file(tmp_path, run="hf")
    assert (report.format, report.parts, report.tensors) == ("huggingface", ("model", "config"), 3)
    assert report.left_out == {"pytorch_model-2.bin: more": "not in the index", "tokenizer.json": "not read"}
    found = db.params.find({"run": "hf"}).first()
    assert same(found.load(), state) and found.load("config") == config and found.step is None
    assert found.lineage["imported"]["format"] == "huggingface"
    # safetensors come first
    safetensors.torch.save_file({"a": state["a"], "b": state["b"]}, tmp_path / "1.safetensors")
    safetensors.torch.save_file({"c": state["c"]}, tmp_path / "2.safetensors")
    places = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    again = db.params.import_file(tmp_path)
    assert same(dict(sorted(db.params.find({"_id": again.id}).first().load().items())), state)
    assert again.stored < again.nbytes  # the tensors were there already
    with pytest.warns(UserWarning, match="no tensor"), pytest.raises(CheckpointError, match="found none"):
        warnings.warn("no tensor", stacklevel=1)
        found.export(tmp_path / "x.safetensors", part="config")


def test_a_checkpoint_of_lightning(db, tmp_path):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3])
    whole = {
        "epoch": 2, "global_step": 40, "pytorch-lightning_version": "2.6.0", "state_dict": model.state_dict(),
        "loops": {"fit_loop": {}}, "callbacks": {}, "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()], "hyper_parameters": {"lr": 0.1},
    }  # fmt: skip
    torch.save(whole, tmp_path / "x.ckpt")
    report = db.params.import_file(tmp_path / "x.ckpt", run="l")
    assert report.parts == ("model", "optimizer", "scheduler", "hyper_parameters")
    assert report.left_out == dict.fromkeys(("['loops']", "['callbacks']"), "a state of the trainer")
    found = db.params.find({"run": "l"}).first()
    assert found.step == 40 and found.lineage["imported"]["epoch"] == 2
    for part, key in (("model", "state_dict"), ("hyper_parameters", "hyper_parameters")):
        assert same(found.load(part), whole[key])
    assert same(found.load("optimizer"), optimizer.state_dict())
    other = nn.Linear(4, 3)
    assert not found.load_into(other) and torch.equal(other.weight, model.weight)
    assert imported(db, tmp_path / "x.ckpt", step=7).step == 7
    with pytest.raises(SchemaError, match="run"):
        db.params.import_file(tmp_path / "none", run=3)

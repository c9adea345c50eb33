"""Parameters go into a model by their names: through wrappers, in parts, renamed, tied, and of earlier versions."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from tensordb_data.errors import CheckpointError, StateError


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def saved(db, state):
    return db.params.find({"_id": db.params.save(state)}).first()


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def compiled(model):
    return torch.compile(model, backend="eager")


def inner_compiled(model):
    model[0] = compiled(model[0])
    return model


WRAPPERS = [
    lambda model: model, compiled, inner_compiled, nn.DataParallel, lambda model: nn.DataParallel(compiled(model)),
]  # fmt: skip


@pytest.mark.parametrize("inside", range(len(WRAPPERS)))
def test_wrappers_are_looked_through_on_both_sides(db, inside):
    model = net()
    found = saved(db, WRAPPERS[inside](model).state_dict())
    for wrap in WRAPPERS:
        target = wrap(net())
        difference = found.load_into(target)
        assert not difference and len(difference.matched) == 9
        assert same(model, target)


def test_a_module_that_is_called_module_is_no_wrapper(db):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.weight = nn.Linear(2, 2, bias=False), nn.Parameter(torch.randn(2, 2))

    model, other = Odd(), Odd()
    assert not saved(db, model.state_dict()).load_into(other) and same(model, other)


def test_a_part_below_a_prefix_with_other_names(db):
    whole = nn.ModuleDict({"backbone": nn.ModuleDict({"body": nn.Linear(3, 3), "fc": nn.Linear(3, 2)}), "rest": net()})
    found = saved(db, nn.DataParallel(whole).state_dict())
    part = nn.ModuleDict({"body": nn.Linear(3, 3), "head": nn.Linear(3, 2)})
    for rename in ({"fc.": "head."}, [("fc.", "head.")], [("fc", "head"), ("b", "b")]):
        assert found.load_into(part, prefix="backbone.", rename=rename).matched == tuple(part.state_dict())
    assert torch.equal(part["head"].weight, whole["backbone"]["fc"].weight)
    before = part["body"].weight.clone()
    with pytest.raises(StateError, match=r"begins with 'spine\.'.*it has module\.backbone\.body"):
        found.load_into(part, prefix="spine.")
    with pytest.raises(StateError, match=r"2 missing: head\.weight.*2 unexpected: fc\.weight"):
        found.load_into(part, prefix="backbone.")
    with pytest.raises(StateError, match=r"would both become body\.weight"):
        found.load_into(part, prefix="backbone.", rename={"fc": "body"})
    with pytest.raises(StateError, match="rename=: no name begins with 'f';"):
        found.load_into(part, prefix="backbone.", rename={"f": "h", "fc": "head"})
    with pytest.raises(StateError, match="pairs of texts"):
        found.load_into(part, rename=[("fc.",)])
    assert torch.equal(before, part["body"].weight)
    report = found.load_into(part, prefix="backbone.", strict=False)
    assert report.matched == ("body.weight", "body.bias") and str(report).startswith("2 fit. 2 missing: head.weight")


def test_nothing_that_fits_is_an_error_even_if_not_strict(db):
    found = saved(db, net().state_dict())
    with pytest.raises(StateError, match="does not fit this Linear: nothing in it does"):
        found.load_into(nn.Linear(9, 9), strict=False)


def test_a_tied_tensor_may_be_missing(db):
    class Tied(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
            if tied:
                self.head.weight = self.embed.weight

    model, other = Tied(True), Tied(True)
    state = model.state_dict()
    del state["head.weight"]
    found = saved(db, state)
    assert not found.load_into(other) and same(model, other) and other.head.weight is other.embed.weight
    with pytest.raises(StateError, match=r"1 missing: head\.weight"):
        found.load_into(Tied(False))


class Versioned(nn.Module):
    """Its second version stores half of what the first one did."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(70_000))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if (local_metadata.get("version") or 1) < 2:
            state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"] / 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_a_module_hears_which_version_of_it_has_saved(db, wrap, monkeypatch):
    model, other = nn.Sequential(Versioned(), nn.BatchNorm1d(2)), nn.Sequential(Versioned(), nn.BatchNorm1d(2))
    now = saved(db, wrap(model).state_dict())
    unknown = saved(db, dict(model.state_dict()))
    monkeypatch.setattr(Versioned, "_version", 1)
    earlier = saved(db, wrap(model).state_dict())
    monkeypatch.setattr(Versioned, "_version", 2)
    for found, value in ((now, 1.0), (earlier, 0.5), (unknown, 1.0)):  # without a version, it is taken for today's
        nn.init.zeros_(other[0].weight)
        found.load_into(other)
        assert set(other[0].weight.tolist()) == {value}
    other.load_state_dict(saved(db, model.state_dict()).load())
    assert same(model, other)


def test_lazy_modules(db):
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(CheckpointError, match=r"0\.weight.*lazy module.*Call the model once"):
        db.params.save(lazy.state_dict())
    model = nn.Sequential(nn.Linear(5, 3))
    found = saved(db, model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not found.load_into(lazy)
    assert same(model, lazy)


class Quantised(torch.Tensor):
    """As quantisation libraries make them: a tensor that stands for others."""

    @staticmethod
    def __new__(cls, data, scale):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

    def __init__(self, data, scale):
        self.data_, self.scale = data, scale

    def __tensor_flatten__(self):
        return ["data_", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        one = args[0]
        return func(one.data_.float() * one.scale, *args[1:], **(kwargs or {}))


def test_a_tensor_made_of_others_is_refused_by_name(db):
    state = {"weight": Quantised(torch.ones(3, 3, dtype=torch.int8), torch.tensor(0.5))}
    with pytest.raises(CheckpointError, match=r"state\['model'\]\['weight'\] is a Quantised"):
        db.params.save(state)

"""Which tensors of a saved state are divided here: those that belong to a parameter that is."""

from __future__ import annotations

import pytest
import torch

from tensordb_data.params.table import LeafRow
from tensordb_data.torch import sharded_model
from tensordb_data.torch.sharded_model import pairs_of


def row(*shape):
    return LeafRow("x", "torch", "float32", shape, 0, b"", b"")


@pytest.mark.parametrize("names", [[["weight", "bias"]], [["_orig_mod.weight", None]], None])
def test_moments_are_found_by_name_and_without_one_by_order(monkeypatch, names):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    for module in (sharded_model, __import__("tensordb_data.params.apply", fromlist=["x"])):
        monkeypatch.setattr(module, "is_divided", lambda value: isinstance(value, torch.Tensor))
    weight, moment, step, other = row(2, 3), row(2, 3), row(), row(2)
    parts = {
        "model": {"weight": weight, "bias": row(5), "gone": row(2)},  # another shape is refused later, in one place
        "optimizer": {
            "state": {0: {"step": step, "exp_avg": moment}, 1: {"exp_avg": other}},
            "param_groups": [{"params": [0, 1]}],
        },
        "training": {"parameters": {} if names is None else {"optimizer": names}},
        "ema": {"shadow": [row(2, 3)]},
    }

    class Ema:
        def state_dict(self):
            return {"shadow": [model.weight]}

    found = list(pairs_of(model, {"optimizer": optimizer, "ema": Ema(), "scheduler": Ema()}, parts))
    assert [(one is weight, one is moment, one is other) for one, _ in found[:3]] == [
        (True, False, False), (False, True, False), (False, False, True),
    ]  # fmt: skip
    assert found[1][1] is model.weight and found[2][1] is model.bias
    assert found[3][0] is parts["ema"]["shadow"][0] and found[3][1] is model.weight and len(found) == 4

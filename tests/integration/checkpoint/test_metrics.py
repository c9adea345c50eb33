"""A metric of any name and value never ends a training: it is stored, or left out with one warning."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from tensordb_data.torch import StepCheckpointer


def checkpointer(db, **options):
    return StepCheckpointer(db, run="r", model=torch.nn.Linear(2, 2), **{"every": 1, **options})


def test_names_that_are_taken_and_values_that_cannot_be_stored(db):
    strange = {"step": 5, "val.loss": 1.0, "val_loss": 2.0, "self": 3, "kind": "x", "$": 1, "": 2, "lineage": 7}
    values = {"array": np.ones(3), "tensor": torch.ones(2, 2), "object": object(), "nested": {"a": 1}, "good": [1, 2]}
    with pytest.warns(UserWarning) as told:
        with checkpointer(db) as ckpt:
            for _ in range(3):
                ckpt.step(**strange, **values)
    said = [str(one.message) for one in told]
    assert sorted(text.split("'")[1] for text in said) == sorted(
        ["step", "val.loss", "kind", "lineage", "$", "", "array", "tensor", "object", "nested"]
    )
    assert "the metric 'step' is stored as 'step_': its own name is taken" in said
    assert "the metric 'array' is left out: an array of shape (3,); log a number, its mean say" in said
    stored = {"step_": 5, "val_loss": 2.0, "val_loss_": 1.0, "self": 3, "kind_": "x", "lineage_": 7, "good": [1, 2]}
    rows = list(db.logs.find({"run": "r", "kind": "train"}))
    assert len(rows) == 3
    for found in (*rows, *db.params.find({"run": "r"})):
        assert {name: found[name] for name in stored} == stored
        assert not {"array", "tensor", "object", "nested", "$"} & set(found.keys())


def test_the_best_by_a_name_with_a_dot(db):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with checkpointer(db, every=None, on_best=("val.loss", "min")) as ckpt:
            for loss in (3.0, 4.0, 2.0):
                ckpt.step(**{"val.loss": torch.tensor(loss)})
    assert [one["val_loss"] for one in db.params.find({"run": "r"}, sort="step")] == [3.0, 2.0]


def test_a_best_that_is_never_reported_is_said(db):
    ckpt = checkpointer(db, every=None, on_best="acc")
    ckpt.step(accuracy=0.5)
    with pytest.warns(UserWarning, match="on_best='acc': no metric of this name was reported"):
        ckpt.close()

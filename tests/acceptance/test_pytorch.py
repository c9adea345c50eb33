"""What a PyTorch user does: a DataLoader over a query, a save every N steps, and an exact resume."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from tensordb_data import Selection, TensorDB
from tensordb_data.torch import QueryDataset, StepCheckpointer


@pytest.fixture
def sel(db: TensorDB) -> Selection[Any]:
    digits = load_digits()
    with db.data.writer("digits") as w:
        w.add_many(image=digits.images.astype(np.uint8), label=digits.target.astype(np.int64))
    return db.data.find({"dataset": "digits"})


def network() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(32, 10)
    )
    return model, torch.optim.Adam(model.parameters(), lr=1e-2)


def learn(model: torch.nn.Module, opt: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> float:
    opt.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(batch["image"].float() / 16), batch["label"])
    loss.backward()
    opt.step()
    return loss.item()


def test_batches_made_in_the_engine(sel: Selection[Any]) -> None:
    loader = DataLoader(QueryDataset(sel, batch_size=256, shuffle=True, seed=0), batch_size=None)
    model, opt = network()
    losses = [learn(model, opt, batch) for batch in islice(loader, 40)]
    assert losses[-1] < losses[0] / 2


def test_sample_by_sample(sel: Selection[Any]) -> None:
    loader = DataLoader(QueryDataset(sel, shuffle=True, seed=0), batch_size=256, num_workers=2)
    batches = list(islice(loader, 3))
    assert all(batch["image"].shape == (256, 8, 8) and batch["label"].shape == (256,) for batch in batches)


def test_over_a_stream(sel: Selection[Any]) -> None:
    stream = sel.stream(batch_size=64, passes=1)
    batches = list(DataLoader(QueryDataset(stream), batch_size=None))
    assert sum(len(batch["label"]) for batch in batches) == 1797


@pytest.mark.parametrize("mode", ["engine", "sample"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    db: TensorDB, sel: Selection[Any], mode: str, workers: int
) -> None:
    def train(run: str, until: int) -> tuple[int, list[float]]:
        model, opt = network()
        if mode == "engine":
            loader = DataLoader(QueryDataset(sel, batch_size=64, shuffle=True, seed=0), None, num_workers=workers)
        else:
            loader = DataLoader(QueryDataset(sel, shuffle=True, seed=0), 64, num_workers=workers)
        ckpt = StepCheckpointer(db, run=run, model=model, optimizer=opt, every=20, stream=loader)
        start = ckpt.restore()
        losses = []
        for step, batch in enumerate(loader, start + 1):
            losses.append(learn(model, opt, batch))
            ckpt.step(loss=losses[-1])
            if step == until:
                break
        ckpt.close()
        return start, losses

    start, whole = train("whole", 60)
    assert start == 0
    assert train("cut", 45)[1] == whole[:45]
    start, rest = train("cut", 60)
    assert start == 40
    assert rest == whole[40:]
    assert [params.step for params in db.params.find({"run": "cut"}, sort=[("step", 1)])] == [20, 40, 60]

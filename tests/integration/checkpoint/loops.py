"""Small training loops whose losses depend on everything that a checkpoint must hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from tensordb_data import TensorDB
from tensordb_data.torch import QueryDataset, StepCheckpointer


def fill(db: TensorDB, n: int = 200) -> None:
    rng = np.random.default_rng(0)
    with db.data.writer("x") as w:
        w.add_many(image=rng.normal(size=(n, 8)).astype("f4"), label=rng.integers(0, 3, n))


def net(width: int = 16) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, width), torch.nn.BatchNorm1d(width), torch.nn.Dropout(0.5), torch.nn.Linear(width, 3)]
    return torch.nn.Sequential(*layers)


def sgd(model: torch.nn.Module) -> tuple[Any, Any]:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), None


def adamw(model: torch.nn.Module) -> tuple[Any, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [7, 21])


def augment(sample: Any, rng: np.random.Generator) -> Any:
    return {**sample, "image": sample["image"] + rng.normal(size=8).astype("f4")}


def batchwise(db: TensorDB, workers: int = 0, **options: Any) -> DataLoader[Any]:
    options = {"shuffle": True, "seed": 0, "transform": augment, **options}
    dataset = QueryDataset(db.data.find({"dataset": "x"}), batch_size=16, **options)
    return DataLoader(dataset, batch_size=None, num_workers=workers)


def samplewise(db: TensorDB, workers: int = 0, **options: Any) -> DataLoader[Any]:
    dataset = QueryDataset(db.data.find({"dataset": "x"}), shuffle=True, seed=0, transform=augment, **options)
    return DataLoader(dataset, batch_size=16, num_workers=workers)


def one_step(model: Any, optimizer: Any, scheduler: Any, batch: Any) -> float:
    image, label = (torch.as_tensor(batch[name]) for name in ("image", "label"))
    loss = torch.nn.functional.cross_entropy(model(image), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    return loss.item()


def train(
    db: TensorDB, run: str, steps: int, loader: Any, *, build: Any = sgd, restore: bool = False, **options: Any
) -> tuple[int, dict[int, float]]:
    """Trains up to a number of steps; returns where it began and the loss of each step."""
    model = net()
    optimizer, scheduler = build(model)
    options = {"every": 5, "stream": loader, **options}
    losses: dict[int, float] = {}
    with StepCheckpointer(db, run=run, model=model, optimizer=optimizer, scheduler=scheduler, **options) as ckpt:
        start = ckpt.restore() if restore else 0
        for step, batch in enumerate(loader, start + 1):
            losses[step] = one_step(model, optimizer, scheduler, batch)
            ckpt.step(loss=losses[step])
            if step == steps:
                break
    return start, losses

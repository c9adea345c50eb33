"""A loop of Ray Train: two ranks, of which one dies in one of two runs. cases.py compares the two."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer, prepare_model
from torch.utils.data import DataLoader

from tensordb_data import Query, TensorDB
from tensordb_data.torch import QueryDataset, StepCheckpointer

STEPS, RANKS = 8, 2
Rows = list[dict[str, Any]]


def loop(config: dict[str, Any]) -> None:
    """What each rank runs, and what it writes: the loss of each step and the samples that it has seen."""
    rank = get_context().get_world_rank()
    with TensorDB(config["address"]) as db:
        dataset = QueryDataset(db.select(Query.from_json(config["query"])), batch_size=4, shuffle=True, seed=0)
        loader = DataLoader(dataset, batch_size=None)
        torch.manual_seed(0)
        model = prepare_model(torch.nn.Linear(2, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        with StepCheckpointer(db, config["run"], model, optimizer, every=2, stream=loader) as checkpointer:
            start = checkpointer.restore()
            for step, batch in zip(range(start + 1, STEPS + 1), loader, strict=False):
                loss = model(batch["x"]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                checkpointer.step(loss=loss.item())
                with open(f"{config['out']}-{rank}", "a") as file:
                    row = {"step": step, "loss": loss.item(), "labels": batch["label"].tolist()}
                    file.write(json.dumps(row) + "\n")
                if config["dies"] and step == 5 and rank == 1 and start == 0:
                    checkpointer.wait()
                    os.kill(os.getpid(), signal.SIGKILL)


def fit(db: TensorDB, query: Query, run: str, folder: str, *, dies: bool) -> list[Rows]:
    """Train; returns the rows of each rank."""
    out = f"{folder}/{run}"
    config = {"address": db.address, "query": query.to_json(), "run": run, "out": out, "dies": dies}
    TorchTrainer(
        loop, train_loop_config=config, scaling_config=ScalingConfig(num_workers=RANKS),
        run_config=RunConfig(storage_path=f"{folder}/results", failure_config=FailureConfig(max_failures=1)),
    ).fit()  # fmt: skip
    found: list[Rows] = []
    for rank in range(RANKS):
        with open(f"{out}-{rank}") as file:
            found.append([json.loads(line) for line in file])
    return found

"""One rank of small distributed trainings: `rank.py URI BLOBS RANK STORE KIND (RUN STEPS STEP_OF_A_SIGNAL)...`.

Prints a line of JSON: for each of them where it began, and the loss of each step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from tensordb_data import TensorDB
from tensordb_data.torch import QueryDataset, StepCheckpointer
from tests.integration.checkpoint.loops import net, one_step

WORLD = 2


def build(kind: str) -> tuple[Any, Any]:
    model: Any = net()
    if kind == "ddp":
        model = DistributedDataParallel(model)
    elif kind == "fsdp":
        mesh = init_device_mesh("cpu", (WORLD,))
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 3))
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train(db: TensorDB, kind: str, run: str, steps: int, stop: int) -> tuple[int, dict[int, float]]:
    rank = dist.get_rank()
    torch.manual_seed(0)
    loader: Any = DataLoader(
        QueryDataset(db.data.find({"dataset": "x"}), batch_size=16, shuffle=True, seed=0), batch_size=None
    )
    model, optimizer = build(kind)
    losses: dict[int, float] = {}
    with StepCheckpointer(db, run=run, model=model, optimizer=optimizer, every=4, stream=loader) as ckpt:
        start = ckpt.restore()
        if start == 0:
            torch.manual_seed(rank)  # dropout differs by rank
        try:
            for step, batch in enumerate(loader, start + 1):
                losses[step] = one_step(model, optimizer, None, batch)
                if step == stop and rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                ckpt.step(loss=losses[step])
                if step == steps:
                    break
        except SystemExit:
            print(json.dumps([(start, losses)]), flush=True)
            raise
    return start, losses


def main(uri: str, blobs: str, rank: str, store: str, kind: str, *runs: str) -> None:
    dist.init_process_group("gloo", init_method="file://" + store, rank=int(rank), world_size=WORLD)
    db = TensorDB(uri, blobs=blobs)
    found = [train(db, kind, *each) for each in zip(runs[::3], map(int, runs[1::3]), map(int, runs[2::3]), strict=True)]
    print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

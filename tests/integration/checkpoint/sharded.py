"""One rank of trainings of a sharded model: `sharded.py URI BLOBS RANK STORE`.

Prints a line of JSON: the losses by run, and what a save and a restore have moved.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tensordb_data import SaveOptions, TensorDB
from tensordb_data.checkpoint.staging import StagingBuffer
from tensordb_data.params import read_boxes
from tensordb_data.torch import StepCheckpointer

WIDTH = 301  # neither half nor quarter of it is whole
BATCHES = [torch.from_numpy(np.random.default_rng(n).normal(size=(4, 8)).astype("f4")) for n in range(20)]


def net() -> torch.nn.Module:
    """Without random numbers in its steps. The last layer has one row, which no two processes can share."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, WIDTH), torch.nn.BatchNorm1d(WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, WIDTH)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 1))


def adam(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def train(
    db: TensorDB, run: str, model: Any, steps: int, seen: Any = contextlib.nullcontext
) -> tuple[int, list[float]]:
    """Trains up to a step, each rank on the same batches: so the losses do not depend on the number of ranks."""
    optimizer = adam(model)
    losses = []
    with StepCheckpointer(db, run=run, model=model, optimizer=optimizer, every=2) as ckpt:
        with seen("restore"):
            start = ckpt.restore()
        for step in range(start + 1, steps + 1):
            loss = model(BATCHES[step]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            with seen("save" if step == steps else "step"):
                ckpt.step(loss=losses[-1])
        assert ckpt.last_step == steps
    return start, losses


class Moved:
    """Counts the bytes that this process sends, copies and reads."""

    def __init__(self) -> None:
        self.bytes: dict[str, dict[str, int]] = {}
        self.threads: set[str] = set()
        self._now: dict[str, int] = {}
        for name in ("all_gather", "all_reduce", "broadcast", "all_gather_into_tensor", "reduce_scatter_tensor",
                     "scatter", "gather", "all_to_all", "send"):  # fmt: skip
            self._count_collective(name)
        read, take = read_boxes.read_leaves, StagingBuffer.take

        def counted(*args: Any) -> Any:
            self._add("read", sum(args[3].values()))
            return read(*args)

        def copied(buffer: StagingBuffer, flat: Any) -> Any:
            self._add("copied", sum(leaf.nbytes for leaf in flat.leaves))
            return take(buffer, flat)

        read_boxes.read_leaves = counted  # type: ignore[assignment]
        StagingBuffer.take = copied  # type: ignore[method-assign]

    def _count_collective(self, name: str) -> None:
        real = getattr(dist, name)

        def counted(*args: Any, **options: Any) -> Any:
            self.threads.add(threading.current_thread().name)
            tensors = [one for each in args for one in (each if isinstance(each, list) else [each])]
            self._add("sent", sum(one.nbytes for one in tensors if torch.is_tensor(one)))
            return real(*args, **options)

        setattr(dist, name, counted)

    def _add(self, what: str, nbytes: int) -> None:
        self._now[what] = self._now.get(what, 0) + nbytes

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self._now = {}
        yield
        self.bytes[what], self._now = self._now, {}


def sharded(*shape: int) -> torch.nn.Module:
    names = ("dp_replicate", "dp_shard")[-len(shape) :]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    model = net()
    for layer in (model[0], model[3], model[4]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def busy(db: TensorDB, rank: int) -> dict[str, int]:
    """One copy of the state fits into memory: what cannot be saved at once is left out, by both ranks."""
    model = sharded(2)
    optimizer = adam(model)
    options = SaveOptions(when_busy="skip", memory=800_000)
    with StepCheckpointer(db, run="busy", model=model, optimizer=optimizer, every=1, options=options) as ckpt:
        for step in range(1, 9):
            model(BATCHES[step]).square().mean().backward()
            optimizer.step()
            ckpt.step()
            if step == 4 and rank:
                ckpt.wait()  # this one has room then
        ckpt.wait()
        stats = ckpt.stats()
    assert stats["saves"] == stats["durable"] and not stats["waited"]
    return {name: stats[name] for name in ("saves", "skipped")}


def main(uri: str, blobs: str, rank: str, store: str) -> None:
    dist.init_process_group("gloo", init_method="file://" + store, rank=int(rank), world_size=2)
    found: dict[str, Any] = {}
    with TensorDB(uri, blobs=blobs) as db:
        found["two"] = train(db, "two", sharded(2), 5)  # goes on in one process
        found["one"] = train(db, "one", sharded(2), 6)  # was begun by one process
        found["replica"] = train(db, "two as replicas", sharded(2, 1), 3)
        found["shards"] = train(db, "two as replicas", sharded(1, 2), 6)
        moved = Moved()
        found["again"] = train(db, "two", sharded(2), 6, moved)
        found["moved"], found["threads"] = moved.bytes, sorted(moved.threads)
        found["busy"] = busy(db, int(rank))
        model = sharded(2)
        db.params.find({"run": "plain"}).first().load_into(model)
        found["loaded"] = [value.full_tensor().sum().item() for value in model.parameters()]
    print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

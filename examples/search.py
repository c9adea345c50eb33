"""A search for hyper-parameters: variants of a small network on the digits, trained by two workers, then ranked.

    python examples/search.py search                # a grid of 12, in a warehouse in ./search/warehouse
    python examples/search.py search --random 12    # as many points drawn at random
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
from pathlib import Path

from tensordb_data import Selection, TensorDB

STEPS = 300


def grid(db: TensorDB, data: Selection) -> None:
    """A job for each point of a grid."""
    for lr, width, momentum in itertools.product([0.003, 0.03, 0.3], [8, 32], [0.0, 0.9]):
        args = {"lr": lr, "width": width, "momentum": momentum}
        db.jobs.push("train", entry="search:train", args=args, data=data, tags=["search", "grid"])


def at_random(db: TensorDB, data: Selection, points: int) -> None:
    """A job for each of some points, drawn where a grid has its corners; more can be drawn at any time."""
    for _ in range(points):
        args = {
            "lr": 10 ** random.uniform(-2.5, -0.5),  # as many between 0.01 and 0.1 as between 0.1 and 1
            "width": random.randint(8, 32),
            "momentum": random.uniform(0.0, 0.9),
        }
        db.jobs.push("train", entry="search:train", args=args, data=data, tags=["search", "random"])


def train(lr: float, width: int, momentum: float, data: Selection, job) -> dict[str, float]:
    """The entry point of the jobs: what it returns is the result."""
    import torch
    from torch import nn

    from tensordb_data.torch import QueryDataset

    torch.set_num_threads(1)  # each worker has a processor, and no network of this size makes use of more
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    for step, batch in enumerate(QueryDataset(data, batch_size=64, shuffle=True, seed=0), 1):
        loss = nn.functional.cross_entropy(model(batch["image"] / 16), batch["label"])
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
            job.heartbeat(progress=step / STEPS)
        if step == STEPS:
            break
    valid = data.db.data.find({"dataset": "digits", "split": "valid"})
    correct = count = 0
    for batch in QueryDataset(valid, batch_size=256, passes=1):
        correct += int((model(batch["image"] / 16).argmax(1) == batch["label"]).sum())
        count += len(batch["label"])
    return {"acc": correct / count, "loss": loss.item()}


def main(folder: Path, points: int | None) -> None:
    from sklearn.datasets import load_digits

    warehouse, digits = folder / "warehouse", load_digits()
    with TensorDB(warehouse) as db:
        with db.data.writer("digits") as writer:
            split = ["train", "train", "valid"] * 599
            writer.add_many(image=digits.images.astype("float32"), label=digits.target, split=split)
        data = db.data.find({"dataset": "digits", "split": "train"})
        if points is None:
            grid(db, data)
        else:
            at_random(db, data, points)
        command = [sys.executable, "-m", "tensordb_data.cli.main", "worker", "--db", str(warehouse.resolve())]
        options = ["--kinds", "train", "--allow", "search", "--until-empty"]
        workers = [subprocess.Popen([*command, *options], cwd=Path(__file__).parent) for _ in range(2)]
        for worker in workers:
            worker.wait()
        ranking = db.jobs.find({"tags": "search", "status": "done"}, sort=[("result.acc", -1), ("result.loss", 1)])
        for place, job in enumerate(ranking, 1):
            print(f"{place:2}. acc {job['result']['acc']:.3f}  loss {job['result']['loss']:.3f}  {job['args']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("search"))
    parser.add_argument("--random", type=int, metavar="POINTS", help="draw so many points, in place of the grid")
    given = parser.parse_args()
    main(given.folder, given.random)

"""A search for hyper-parameters: 12 variants of a small network on the digits, trained by two workers, then ranked.

    python examples/search.py search      # a warehouse in ./search/warehouse
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

from tensordb_data import Selection, TensorDB

GRID = {"lr": [0.003, 0.03, 0.3], "width": [8, 32], "momentum": [0.0, 0.9]}
STEPS = 300


def train(lr: float, width: int, momentum: float, data: Selection, job) -> dict[str, float]:
    """The entry point of the jobs: what it returns is the result."""
    import torch
    from torch import nn

    from tensordb_data.torch import QueryDataset

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


def search(db: TensorDB, entry: str) -> None:
    """Pushes a job for each point of the grid. For a random search, draw the points instead."""
    data = db.data.find({"dataset": "digits", "split": "train"})
    for values in itertools.product(*GRID.values()):
        args = dict(zip(GRID, values, strict=True))
        db.jobs.push("train", entry=entry, args=args, data=data, tags=["search"])


def main(folder: Path) -> None:
    from sklearn.datasets import load_digits

    warehouse, digits = folder / "warehouse", load_digits()
    with TensorDB(warehouse) as db:
        with db.data.writer("digits") as writer:
            split = ["train", "train", "valid"] * 599
            writer.add_many(image=digits.images.astype("float32"), label=digits.target, split=split)
        search(db, "search:train")
        command = [sys.executable, "-m", "tensordb_data.cli.main", "worker", "--db", str(warehouse.resolve())]
        options = ["--kinds", "train", "--allow", "search", "--until-empty"]
        workers = [subprocess.Popen([*command, *options], cwd=Path(__file__).parent) for _ in range(2)]
        for worker in workers:
            worker.wait()
        ranking = db.jobs.find({"tags": "search", "status": "done"}, sort=[("result.acc", -1), ("result.loss", 1)])
        for place, job in enumerate(ranking, 1):
            print(f"{place:2}. acc {job['result']['acc']:.3f}  loss {job['result']['loss']:.3f}  {job['args']}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "search"))

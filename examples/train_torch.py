"""A PyTorch loop that pulls from a query and can be killed at any moment: run it again, and it goes on.

python examples/train_torch.py WAREHOUSE STEPS
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

from tensordb_data import TensorDB
from tensordb_data.torch import QueryDataset, StepCheckpointer


def tensors(batch):
    return batch["image"][:, None].float() / 255, batch["label"].long()


def accuracy(model, loader):
    model.eval()
    with torch.no_grad():
        hits = [model(x).argmax(1) == y for x, y in map(tensors, loader)]
    model.train()
    return torch.cat(hits).float().mean().item()


def main(warehouse, steps):
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # so small a model is slower with more
    db = TensorDB(warehouse)
    digits = db.data.find({"dataset": "digits"})
    loader = DataLoader(QueryDataset(digits & {"split": "train"}, batch_size=64, shuffle=True, seed=0), batch_size=None)
    held_out = DataLoader(QueryDataset(digits & {"split": "valid"}, batch_size=256, passes=1), batch_size=None)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 16, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    with StepCheckpointer(db, run="torch", model=model, optimizer=optimizer, every=50, stream=loader) as checkpointer:
        start = checkpointer.restore()
        print("start", start, flush=True)
        for step, batch in enumerate(loader, start + 1):
            x, y = tensors(batch)
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            metrics = {"val_acc": accuracy(model, held_out)} if step % 50 == 0 else {}
            checkpointer.step(loss=loss.item(), **metrics)
            print("step", step, "loss", loss.item(), flush=True)
            if step == steps:
                break


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

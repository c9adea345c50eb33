"""GPU: how fast do batches reach the memory of a GPU, and how long does a training step wait for them?

Crops of photographs, 224 × 224 × 3 bytes each (150 kB), shuffled, batches of 64, warm. First the transfer alone, beside
copies of ready batches from pinned and from pageable memory. Then a small convolutional network that trains on them,
beside the same network on one batch that stays on the device, for which loading is free.

    python benchmarks/gpu_input.py                # needs a CUDA device; two tables, two results
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from shared import harness
from shared.fixtures import Array, crops
from shared.harness import Batches, Contender, Target

BATCH = 64
SIDE = 224
AHEAD = 2  # batches whose copies or steps are queued: the host runs ahead of a GPU, as training loops do
PACKAGES = ["tensordb-data", "numpy", "pymongo", "torch"]
PINNED, PAGEABLE = "ready batches, pinned", "ready batches, pageable"
OURS, UNPINNED, WORKERS = "TensorDB, pin_memory=True", "TensorDB, pageable", "TensorDB, pin_memory=True, 2 workers"
FREE, MEMORY = "one batch on the device", "TensorDataset, pin_memory=True"

Load = Callable[[], contextlib.AbstractContextManager[Iterator[Any]]]


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    options = harness.arguments(__doc__ or "", [], argv, own)
    harness.quiet(options.device)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("This measures a GPU, and torch finds no CUDA device here.")
    count, on_gpu = (256 if options.quick else 4_000), options.device == "cuda"
    images = crops(count, 32 if options.quick else SIDE)
    context = {"samples": count, "batch": BATCH, "bytes_a_sample": images[0].nbytes, "threads": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="tdbb") as folder, harness.warehouse(Path(folder)) as db:
        with db.data.writer("photos") as writer:
            for start in range(0, count, 500):
                part = images[start : start + 500]
                writer.add_many(image=part, label=np.arange(start, start + len(part)) % 10)
        loads: dict[str, Load] = {
            PINNED: ready(images, options.device, pin=on_gpu),
            PAGEABLE: ready(images, options.device, pin=False),
            OURS: loader(db, options.device, pin=on_gpu),
            UNPINNED: loader(db, options.device, pin=False),
            WORKERS: loader(db, options.device, pin=on_gpu, workers=2),
        }
        contenders = [Contender(name, on_device(load)) for name, load in loads.items()]
        harness.race(contenders, rounds=options.rounds, seconds=options.seconds)
        title = f"GPU transfer: {count:,} of {images[0].nbytes:,} B, shuffled, batches of {BATCH}, to {options.device}"
        targets = [Target(OURS, PAGEABLE, 1.0)]
        results = [harness.report(title, contenders, targets, options, context, PACKAGES, "gpu_transfer")]
        trained: dict[str, Load] = {
            FREE: resident(images, options.device),
            OURS: loads[OURS],
            UNPINNED: loads[UNPINNED],
            WORKERS: loads[WORKERS],
            MEMORY: tensor_dataset(images, options.device, on_gpu),
        }
        contenders = [Contender(name, training(load, options.device)) for name, load in trained.items()]
        harness.race(contenders, rounds=options.rounds, seconds=options.seconds)
        title = f"GPU input stall: a small network on {options.device}, batches of {BATCH} of {images[0].nbytes:,} B"
        targets = [Target(OURS, FREE, 0.95), Target(OURS, MEMORY, 1.0)]
        results.append(harness.report(title, contenders, targets, options, context, PACKAGES, "gpu_input"))
    return results


def own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu only shows that it runs")


def ready(images: Array, device: str, pin: bool) -> Load:
    """Batches that lie in memory already, enough of them to exceed the CPU caches."""

    @contextlib.contextmanager
    def opened() -> Iterator[Iterator[Any]]:
        import torch

        whole = [torch.from_numpy(images[at : at + BATCH]) for at in range(0, len(images) - BATCH + 1, BATCH)]
        held = [batch.pin_memory() if pin else batch for batch in whole]
        yield (held[number % len(held)].to(device, non_blocking=True) for number in range(sys.maxsize))

    return opened


def loader(db: Any, device: str, pin: bool, workers: int = 0) -> Load:
    @contextlib.contextmanager
    def opened() -> Iterator[Iterator[Any]]:
        from torch.utils.data import DataLoader

        from tensordb_data.torch import QueryDataset

        stream = db.data.find({"dataset": "photos"}).stream(batch_size=BATCH, shuffle=True, seed=0)
        with stream:
            batches = DataLoader(QueryDataset(stream), batch_size=None, pin_memory=pin, num_workers=workers)
            yield (batch["image"].to(device, non_blocking=True) for batch in batches)

    return opened


def tensor_dataset(images: Array, device: str, pin: bool) -> Load:
    """The same samples in memory, with as many workers as PyTorch advises for this machine."""

    @contextlib.contextmanager
    def opened() -> Iterator[Iterator[Any]]:
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        dataset = TensorDataset(torch.from_numpy(images))
        workers = os.cpu_count() or 1
        batches = DataLoader(
            dataset, BATCH, shuffle=True, drop_last=True, pin_memory=pin, num_workers=workers, persistent_workers=True
        )

        def endless() -> Iterator[Any]:
            while True:
                for (batch,) in batches:
                    yield batch.to(device, non_blocking=True)

        yield endless()

    return opened


def resident(images: Array, device: str) -> Load:
    @contextlib.contextmanager
    def opened() -> Iterator[Iterator[Any]]:
        import torch

        batch = torch.from_numpy(images[:BATCH]).to(device)
        yield (batch for _ in range(sys.maxsize))

    return opened


def on_device(load: Load) -> Callable[[], Any]:
    """Counts a batch when all of it is on the device."""

    @contextlib.contextmanager
    def opened() -> Iterator[Batches]:
        with load() as batches:
            yield behind(batches)

    return opened


def training(load: Load, device: str) -> Callable[[], Any]:
    """Counts a batch when the step that trains on it has ended."""

    @contextlib.contextmanager
    def opened() -> Iterator[Batches]:
        import torch
        from torch import nn

        torch.manual_seed(0)
        widths = [3, 64, 128, 256, 256]
        blocks = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        ]
        model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def steps(batches: Iterator[Any]) -> Iterator[Any]:
            for batch in batches:
                image = batch.permute(0, 3, 1, 2).float() / 255
                with torch.autocast(device, dtype=torch.bfloat16):
                    loss = model(image).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                yield batch

        with load() as batches:
            yield behind(steps(batches))

    return opened


def behind(batches: Iterator[Any]) -> Batches:
    """The size of each batch once the device is done with it, while the next ones are queued."""
    import torch

    waiting: deque[tuple[int, Any]] = deque()
    for batch in batches:
        waiting.append((len(batch), torch.cuda.current_stream().record_event() if batch.is_cuda else None))
        if len(waiting) > AHEAD:
            size, event = waiting.popleft()
            if event is not None:
                event.synchronize()
            yield size


if __name__ == "__main__":
    main()

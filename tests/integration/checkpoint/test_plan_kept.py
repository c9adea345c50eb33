"""A save holds the plan of its pass: another host, whose cache is empty, ends the pass as it began."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tensordb_data import TensorDB
from tensordb_data.torch import QueryDataset, StepCheckpointer

N, STOP = 120, 7


@pytest.fixture
def uri(mongo_uri: str, warehouse_dir: Path) -> Iterator[str]:
    with opened(mongo_uri, warehouse_dir, "writer") as db, db.data.writer("d") as writer:
        writer.add_many(x=np.arange(N, dtype=np.float32).reshape(-1, 1), number=np.arange(N), label=np.arange(N) % 5)
    yield mongo_uri


def opened(uri: str, folder: Path, host: str) -> TensorDB:
    return TensorDB(uri, blobs=f"file://{folder}/blobs", cache=folder / host)


def loop(db: TensorDB, by_sample: bool, workers: int, stop: int) -> list[tuple[list[int], list[int]]]:
    """(numbers, labels) of each batch that a run receives from where it was, saving every other step."""
    model = torch.nn.Linear(1, 1)
    size = {"batch_size": None} if by_sample else {"batch_size": 8}
    dataset = QueryDataset(db.data.find({"dataset": "d"}), shuffle=True, **size)  # type: ignore[arg-type]
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=8 if by_sample else None, num_workers=workers)
    got = []
    with StepCheckpointer(db, run="r", model=model, every=1, stream=loader) as ckpt:
        for step, batch in enumerate(loader, ckpt.restore() + 1):
            got.append((batch["number"].tolist(), batch["label"].tolist()))
            ckpt.step()
            if step == stop:
                break
    return got


@pytest.mark.parametrize(("by_sample", "workers"), [(False, 0), (False, 2), (True, 2)])
def test_a_run_goes_on_elsewhere_in_its_order(uri: str, warehouse_dir: Path, by_sample: bool, workers: int) -> None:
    with opened(uri, warehouse_dir, "calm") as db:
        whole = loop(db, by_sample, workers, 15)
        db.params.find().delete(all=True)
        loop(db, by_sample, workers, STOP)
        sets = db.params.find({"run": "r"}).all()
        assert len(sets) == STOP and all("plans" in one.parts for one in sets)
        (digest,) = sets[0].load("plans")
        again = db.database["tensors"].count_documents({"n": len(sets[0].load("plans")[digest])})
        assert again <= 1  # stored once for all saves, or small enough to lie beside them
        found = db.data.find({"dataset": "d"})
        db.data.find({"number": {"$in": whole[STOP][0][:3]}}).delete()
        found.update({"$set": {"label": 77}})
        with db.data.writer("d") as writer:
            writer.add_many(x=np.zeros((9, 1), np.float32), number=np.arange(N, N + 9), label=np.zeros(9, np.int64))
    with opened(uri, warehouse_dir, "there") as db:
        rest = loop(db, by_sample, workers, 15)
    expected = [list(zip(*batch, strict=True)) for batch in whole[STOP:]]
    expected[0] = expected[0][3:]
    if by_sample:  # the loader fills up its batches
        flat = [pair for batch in rest for pair in zip(*batch, strict=True)]
        assert set(flat) >= {pair for batch in expected[:-2] for pair in batch}
        assert not any(number in whole[STOP][0][:3] for number, _ in flat)
    else:
        assert [list(zip(*batch, strict=True)) for batch in rest] == expected

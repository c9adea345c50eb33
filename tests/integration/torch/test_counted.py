"""What workers of a loader deliver counts in the process of the loop."""

from __future__ import annotations

import gc

import numpy as np
from torch.utils.data import DataLoader

from tensordb_data import TensorDB
from tensordb_data.common.telemetry.measures import collect
from tensordb_data.torch import QueryDataset


def delivered() -> float:
    return sum(value.number for value in collect() if value.name == "tensordb.stream.samples")


def test_workers_of_a_loader_are_counted(db: TensorDB) -> None:
    with db.data.writer("digits") as writer:
        writer.add_many(image=np.zeros((40, 100), np.uint8), label=np.arange(40))
    before = delivered()
    dataset = QueryDataset(db.data.find({"dataset": "digits"}), batch_size=8, passes=1, fields=["label"])
    loader = DataLoader(dataset, batch_size=None, num_workers=1)
    assert sum(len(batch["label"]) for batch in loader) == 40
    assert delivered() - before == dataset.stats()["samples"] >= 40
    del loader, dataset
    gc.collect()
    assert delivered() - before >= 40

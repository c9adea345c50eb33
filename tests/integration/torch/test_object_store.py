"""Workers on an object store, in a script that has used it itself before."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tensordb_data import TensorDB
from tensordb_data.torch import QueryDataset
from tests.leaks import raised_from_workers


@pytest.fixture
def sel(mongo_uri: str, s3: str) -> Any:
    with TensorDB(mongo_uri, blobs=f"{s3}/blobs") as db:
        with db.data.writer("numbers") as writer:
            writer.add_many(image=np.arange(600, dtype=np.uint8).reshape(100, 6), label=np.arange(100))
        yield db.data.find({"dataset": "numbers"})


def test_ingest_and_then_train_in_one_script(sel: Any) -> None:
    for context in ("forkserver", "spawn") if os.environ.get("MATRICES") == "all" else ("forkserver",):
        dataset = QueryDataset(sel, batch_size=8, shuffle=True, passes=1)
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=context)
        batches = list(loader)
        assert sorted(label for batch in batches for label in batch["label"].tolist()) == list(range(100))
        assert all(batch["image"][:, 0].tolist() == [6 * i % 256 for i in batch["label"].tolist()] for batch in batches)


def test_a_forked_worker_says_how_to_start_workers(sel: Any) -> None:
    dataset = QueryDataset(sel, batch_size=8, passes=1)
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    with raised_from_workers(Exception, 'multiprocessing_context="forkserver"'):
        list(loader)

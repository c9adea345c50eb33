"""Batches of sequences through a DataLoader: the same with and without workers, and as many as its length says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tensordb_data import Array, QueryError, TensorDB
from tensordb_data.torch import QueryDataset


@pytest.mark.parametrize("options", [{"batch_tokens": 64, "ragged": "pad"}, {"batch_size": 2, "pack": 32}])
def test_a_loader_delivers_what_a_stream_does(db: TensorDB, options: dict[str, Any]) -> None:
    with db.data.writer("texts", schema={"tokens": Array("int32", (None,)), "number": int}) as writer:
        for number in range(80):
            writer.add(tokens=np.full(1 + number * 7 % 30, number, np.int32), number=number)
    texts = db.data.find({"dataset": "texts"})
    whole = [batch["tokens"] for batch in texts.stream(**options, shuffle=True, passes=2)]
    for workers in (0, 2):
        dataset = QueryDataset(texts, **options, shuffle=True, passes=1)
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, num_workers=workers)
        epochs = []
        for _ in range(2):
            expected = len(loader)
            epochs.append([batch["tokens"] for batch in loader])
            assert len(epochs[-1]) == expected
        got = epochs[0] + epochs[1]
        assert all(torch.is_tensor(batch) for batch in got) and len(got) == len(whole)
        assert all(np.array_equal(one.numpy(), other) for one, other in zip(got, whole, strict=True))
    accelerate = pytest.importorskip("accelerate", reason="it is not installed: pip install accelerate")
    by_itself = accelerate.Accelerator(cpu=True).prepare(
        DataLoader(QueryDataset(texts, **options, passes=1), batch_size=None)
    )
    with pytest.raises(QueryError, match=r"`(batch_tokens|pack)` differ in length: make the loader with"):
        next(iter(by_itself))
    with pytest.raises(QueryError, match=r"batched twice: the dataset makes batches of (64 tokens|2 rows) already"):
        next(iter(DataLoader(QueryDataset(texts, **options), batch_size=4)))

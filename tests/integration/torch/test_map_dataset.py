"""Map style: samples by their number, under samplers, splits and workers, and what is deleted meanwhile."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, random_split

from tensordb_data import TensorDB
from tensordb_data.api.selection import Selection
from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.torch import MapDataset

N = 301


def test_a_number_is_a_sample_and_several_are_columns(sel: Selection[Any]) -> None:
    dataset = sel.dataset(["image", "label", "name"])
    assert len(dataset) == N
    sample = dataset[7]
    assert type(sample["label"]) is int and sample["label"] == 7 and sample["name"] == "n7"
    assert isinstance(sample["image"], np.ndarray) and sample["image"].shape == (2, 3)
    assert dataset[-1]["label"] == N - 1 and dataset[np.int64(3)]["label"] == 3
    assert dataset[[5, 1, 1]]["label"].tolist() == [5, 1, 1] and dataset[2:8:2]["label"].tolist() == [2, 4, 6]
    assert dataset[[]] == {} and [sample["name"] for sample in dataset.__getitems__([9, 0])] == ["n9", "n0"]
    for wrong in (N, -N - 1, [0, N]):
        with pytest.raises(IndexError, match=f"of a dataset of {N} samples"):
            dataset[wrong]
    with pytest.raises(QueryError, match="expected the number of a sample"):
        dataset[["a"]]  # type: ignore[list-item]


def test_it_is_small_when_pickled_and_its_copy_has_the_same_samples(db: TensorDB, sel: Selection[Any]) -> None:
    dataset = sel.dataset(["label"])
    packed = pickle.dumps(dataset)
    assert len(packed) < 4000
    db.data.find({"label": {"$lt": 3}}).update({"$set": {"split": "x"}})
    with db.data.writer("numbers") as writer:
        writer.add(image=np.zeros((2, 3), np.uint16), label=999, name="new", split="train")
    assert len(pickle.loads(packed)) == N  # noqa: S301
    assert len(sel.dataset()) == sel.count()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffling_loader_delivers_each_sample_once(sel: Selection[Any], workers: int) -> None:
    loader = DataLoader(MapDataset(sel, ["image", "label"]), batch_size=16, shuffle=True, num_workers=workers)
    assert len(loader) == -(-N // 16)
    batches = list(loader)
    assert batches[0]["image"].dtype == torch.uint16 and batches[0]["label"].dtype == torch.int64
    found = torch.cat([batch["label"] for batch in batches]).tolist()
    assert sorted(found) == list(range(N)) != found


def test_samplers_and_splits(sel: Selection[Any]) -> None:
    dataset = MapDataset(sel, ["image", "label"])
    columns = DataLoader(dataset, sampler=BatchSampler(RandomSampler(dataset), 64, False), batch_size=None)
    assert sorted(int(label) for batch in columns for label in batch["label"]) == list(range(N))
    one, other = random_split(dataset, [0.8, 0.2])
    labels = [int(label) for part in (one, other) for batch in DataLoader(part, 50) for label in batch["label"]]
    assert sorted(labels) == list(range(N))
    ranks = [DistributedSampler(dataset, num_replicas=2, rank=rank, drop_last=False) for rank in range(2)]
    shared = [int(label) for s in ranks for batch in DataLoader(dataset, 50, sampler=s) for label in batch["label"]]
    assert set(shared) == set(range(N)) and len(shared) == N + 1


def test_what_was_deleted_is_named_until_the_dataset_is_refreshed(db: TensorDB, sel: Selection[Any]) -> None:
    dataset = sel.dataset(["label"])
    gone = (sel & {"label": 5}).first().id
    (sel & {"label": 5}).delete()
    with pytest.raises(NotFoundError, match=rf"sample {gone}, number 5 of this dataset, was deleted"):
        dataset[[4, 5, 6]]
    assert dataset[6]["label"] == 6
    dataset.refresh()
    assert len(dataset) == N - 1 and dataset[5]["label"] == 6
    with pytest.raises(QueryError, match="only samples are a dataset"):
        db.params.find().dataset()


def test_random_numbers_of_a_transform_differ_each_time(sel: Selection[Any]) -> None:
    dataset = sel.dataset(["label"], transform=lambda sample, rng: {**sample, "x": rng.random()})
    random.seed(0)
    first, second = dataset[3]["x"], dataset[3]["x"]
    random.seed(0)
    assert first != second and dataset[3]["x"] == first

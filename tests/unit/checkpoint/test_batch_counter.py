"""Batches are counted where the loop receives them, and the loop does not notice."""

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tensordb_data.checkpoint.batch_counter import BatchCounter
from tensordb_data.errors import CheckpointError


def loader(**options):
    return DataLoader(TensorDataset(torch.arange(10)), **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_what_the_loop_received_not_what_workers_fetched(workers):
    data = loader(num_workers=workers, batch_size=2)
    batch_counter = BatchCounter(data)
    assert isinstance(data, DataLoader) and type(data).__name__ == "DataLoader"
    batches = iter(data)
    assert len(batches) == 5
    next(batches), next(batches)
    assert batch_counter.count == 2
    del batches
    assert len(list(data)) == 5
    assert (batch_counter.count, batch_counter.in_iteration, batch_counter.iterations) == (7, 5, 2)
    batch_counter.close()
    assert type(data) is DataLoader
    list(data)
    assert batch_counter.count == 7


def test_listeners_in_order():
    data, said = loader(), []
    batch_counter = BatchCounter(data)
    batch_counter.before_iterate = lambda: said.append("before")
    batch_counter.on_iterate = lambda: said.append("made")
    batch_counter.on_ask = lambda: said.append(("ask", batch_counter.waiting))
    next(iter(data))
    assert said == ["before", "made", ("ask", False)] and not batch_counter.waiting


def test_two_counters_are_refused():
    data = loader()
    first = BatchCounter(data)
    with pytest.raises(CheckpointError, match="another checkpointer"):
        BatchCounter(data)
    first.close()
    BatchCounter(data).close()


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(CheckpointError, match="Cannot count"):
        BatchCounter([1, 2])


class Numbers:
    def __iter__(self):
        return iter([1, 2, 3])


def test_a_copy_is_an_ordinary_one():
    numbers = Numbers()
    batch_counter = BatchCounter(numbers)
    for other in (pickle.loads(pickle.dumps(numbers)), copy.copy(numbers)):  # noqa: S301
        assert type(other) is Numbers and list(other) == [1, 2, 3]
    assert batch_counter.count == 0 and list(numbers) == [1, 2, 3] and batch_counter.count == 3

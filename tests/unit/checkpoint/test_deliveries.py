"""Batches are counted where the loop receives them, and the loop does not notice."""

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tensordb_data.checkpoint.batch_counter import Deliveries
from tensordb_data.errors import CheckpointError


def loader(**options):
    return DataLoader(TensorDataset(torch.arange(10)), **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_what_the_loop_received_not_what_workers_fetched(workers):
    data = loader(num_workers=workers, batch_size=2)
    deliveries = Deliveries(data)
    assert isinstance(data, DataLoader) and type(data).__name__ == "DataLoader"
    batches = iter(data)
    assert len(batches) == 5
    next(batches), next(batches)
    assert deliveries.count == 2
    del batches
    assert len(list(data)) == 5
    assert (deliveries.count, deliveries.in_iteration, deliveries.iterations) == (7, 5, 2)
    deliveries.close()
    assert type(data) is DataLoader
    list(data)
    assert deliveries.count == 7


def test_listeners_in_order():
    data, said = loader(), []
    deliveries = Deliveries(data)
    deliveries.before_iterate = lambda: said.append("before")
    deliveries.on_iterate = lambda: said.append("made")
    deliveries.on_ask = lambda: said.append(("ask", deliveries.waiting))
    next(iter(data))
    assert said == ["before", "made", ("ask", False)] and not deliveries.waiting


def test_two_counters_are_refused():
    data = loader()
    first = Deliveries(data)
    with pytest.raises(CheckpointError, match="another checkpointer"):
        Deliveries(data)
    first.close()
    Deliveries(data).close()


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(CheckpointError, match="Cannot count"):
        Deliveries([1, 2])


class Numbers:
    def __iter__(self):
        return iter([1, 2, 3])


def test_a_copy_is_an_ordinary_one():
    numbers = Numbers()
    deliveries = Deliveries(numbers)
    for other in (pickle.loads(pickle.dumps(numbers)), copy.copy(numbers)):  # noqa: S301
        assert type(other) is Numbers and list(other) == [1, 2, 3]
    assert deliveries.count == 0 and list(numbers) == [1, 2, 3] and deliveries.count == 3

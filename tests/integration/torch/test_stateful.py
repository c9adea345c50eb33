"""torchdata's StatefulDataLoader over a QueryDataset."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from tensordb_data.api.selection import Selection
from tensordb_data.torch import QueryDataset


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", ["batch", "sample"])
def test_it_resumes_by_its_own_state(sel: Selection[Any], mode: str, workers: int) -> None:
    def make() -> Any:
        if mode == "batch":
            dataset = QueryDataset(sel, batch_size=16, shuffle=True, passes=2)
            return StatefulDataLoader(dataset, batch_size=None, num_workers=workers)
        return StatefulDataLoader(QueryDataset(sel, shuffle=True, passes=2), batch_size=16, num_workers=workers)

    def labels(batches: Any) -> list[list[int]]:
        return [batch["label"].tolist() for batch in batches]

    whole = make()
    epochs = [labels(whole) for _ in range(3)]
    first = make()
    assert labels(first) == epochs[0] != epochs[1]
    ended = first.state_dict()
    iterator = iter(first)
    assert labels(itertools.islice(iterator, 7)) == epochs[1][:7]
    state = first.state_dict()
    del iterator
    second = make()
    second.load_state_dict(state)
    assert labels(second) == epochs[1][7:] and labels(second) == epochs[2]
    second.load_state_dict(ended)
    assert labels(second) == epochs[1]


def test_our_state_counts_what_it_delivers(sel: Selection[Any]) -> None:
    loader = StatefulDataLoader(QueryDataset(sel, batch_size=16, shuffle=True), batch_size=None, num_workers=2)
    whole = [batch["label"].tolist() for batch in itertools.islice(loader, 12)]
    state = loader.dataset.advance(loader.dataset.state_dict(), 5, loader)
    again = StatefulDataLoader(QueryDataset(sel, batch_size=16, shuffle=True), batch_size=None, num_workers=2)
    again.dataset.load_state_dict(state)
    assert [batch["label"].tolist() for batch in itertools.islice(again, 7)] == whole[5:]

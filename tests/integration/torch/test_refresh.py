"""Data that changes under a DataLoader: the passes that begin later see it, whole, in all workers."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tensordb_data import mix
from tensordb_data.selection import Selection
from tensordb_data.torch import QueryDataset

N, MORE = 301, 40


def change(sel: Selection[Any]) -> None:
    """Every label is 1000 more, and there are samples more."""
    sel.update({"$inc": {"label": 1000}})
    with sel.db.data.writer("numbers") as writer:
        images = np.zeros((MORE, 2, 3), np.uint16)
        writer.add_many(image=images, label=1000 + np.arange(N, N + MORE), name=[f"n{i}" for i in range(MORE)])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_passes_after_a_change_see_it_and_resume_in_it(sel: Selection[Any], workers: int) -> None:
    def make(workers: int) -> Any:
        dataset = QueryDataset(sel, batch_size=32, fields=["label"], shuffle=True)
        return DataLoader(dataset, batch_size=None, num_workers=workers)

    loader = make(workers)
    batches, start = [], loader.dataset.state_dict()
    states: list[Any] = []
    passes: dict[int, list[int]] = defaultdict(list)
    for round_, batch in enumerate(itertools.islice(loader, 45)):
        if round_ == 4:
            change(sel)
        states.append(loader.dataset.advance(start, round_, loader))
        batches.append(batch["label"].tolist())
        passes[states[-1]["pass"]] += batches[-1]
    del passes[max(passes)]
    old, new = list(range(N)), list(range(1000, 1000 + N + MORE))
    assert sorted(passes[0]) == old and sorted(passes[2]) == sorted(passes[3]) == new
    assert sorted(passes[1]) in ([new] if workers == 0 else [old, new])  # read ahead by then
    at = next(round_ for round_, state in enumerate(states) if state["pass"] == 2) + 3
    again = make(2 - workers)
    again.dataset.load_state_dict(states[at], plans=loader.dataset.plans(states[at]))
    assert [batch["label"].tolist() for batch in itertools.islice(again, 5)] == batches[at : at + 5]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_stream_of_a_mix_sees_a_change_in_its_next_pass_and_resumes_in_it(
    sel: Selection[Any], workers: int
) -> None:
    with sel.db.data.writer("others") as writer:
        writer.add_many(label=np.arange(5000, 5050))
    others = sel.db.data.find({"dataset": "others"})

    def make(workers: int) -> Any:
        parts = [part.stream(batch_size=32, fields=["label"], shuffle=True) for part in (sel, others)]
        return DataLoader(QueryDataset(mix([(parts[0], 0.8), (parts[1], 0.2)])), batch_size=None, num_workers=workers)

    loader = make(workers)
    batches, states, start = [], [], loader.dataset.state_dict()
    for round_, batch in enumerate(itertools.islice(loader, 60)):
        if round_ == 2:
            change(sel)
        states.append(loader.dataset.advance(start, round_, loader))
        batches.append(batch["label"].tolist())
    got = [label for batch in batches for label in batch]
    mine, rest = [label for label in got if label < 5000], [label for label in got if label >= 5000]
    assert sorted(mine[:N]) == list(range(N))
    new = list(range(1000, 1000 + N + MORE))
    after = mine[N:] if workers == 0 or mine[N] >= 1000 else mine[2 * N :]  # read ahead by then
    assert sorted(after[: len(new)]) == sorted(after[len(new) : 2 * len(new)]) == new
    assert all(sorted(rest[low : low + 50]) == list(range(5000, 5050)) for low in range(0, len(rest) - 50, 50))
    again = make(2 - workers)
    at = next(round_ for round_, state in enumerate(states) if state["streams"][0]["pass"] == 2) + 1
    again.dataset.load_state_dict(states[at], plans=loader.dataset.plans(states[at]))
    assert [batch["label"].tolist() for batch in itertools.islice(again, 5)] == batches[at : at + 5]


@pytest.mark.parametrize("size", [None, 16])
def test_the_next_iteration_sees_a_change(sel: Selection[Any], size: int | None) -> None:
    dataset = QueryDataset(sel, batch_size=size, fields=["label"], shuffle=True, passes=1)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=16 if size is None else None, num_workers=2, persistent_workers=True
    )
    before = sorted(label for batch in loader for label in batch["label"].tolist())
    change(sel)
    after = sorted(label for batch in loader for label in batch["label"].tolist())
    assert before == list(range(N)) and after == list(range(1000, 1000 + N + MORE))

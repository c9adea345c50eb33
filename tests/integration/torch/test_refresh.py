"""Data that changes under a DataLoader: the passes that begin later see it, whole, in all workers."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tensordb_data import TensorDB, mix
from tensordb_data.api.selection import Selection
from tensordb_data.errors import NotFoundError, QueryError, StateError
from tensordb_data.torch import QueryDataset
from tensordb_data.torch.sample_mode import BLOCK
from tensordb_data.torch.sample_sharding import SampleSharding

N, MORE = 301, 40
OLD, NEW = list(range(N)), list(range(1000, 1000 + N + MORE))
CHANGED = NEW[:N]
"""Between the two commits of a change."""


def change(sel: Selection[Any]) -> None:
    """Every label is 1000 more, and then there are samples more."""
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
    assert sorted(passes[0]) == OLD and sorted(passes[2]) == sorted(passes[3]) == NEW
    assert sorted(passes[1]) in ([NEW] if workers == 0 else [OLD, CHANGED, NEW])  # read ahead by then
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
    ahead = workers > 0 and sorted(mine[N : 2 * N]) in (OLD, CHANGED)  # read ahead by then
    after = mine[2 * N :] if ahead else mine[N:]
    assert sorted(after[: len(NEW)]) == sorted(after[len(NEW) : 2 * len(NEW)]) == NEW
    assert all(sorted(rest[low : low + 50]) == list(range(5000, 5050)) for low in range(0, len(rest) - 50, 50))
    again = make(2 - workers)
    at = next(round_ for round_, state in enumerate(states) if state["streams"][0]["pass"] == 2) + 1
    again.dataset.load_state_dict(states[at], plans=loader.dataset.plans(states[at]))
    assert [batch["label"].tolist() for batch in itertools.islice(again, 5)] == batches[at : at + 5]


@pytest.mark.parametrize("workers", [0, 2])
def test_sample_by_sample_the_passes_after_a_change_see_it_and_resume_in_it(
    sel: Selection[Any], workers: int, mongo_uri: str, warehouse_dir: Path
) -> None:
    def make(sel: Selection[Any]) -> Any:
        dataset = QueryDataset(sel, fields=["label"], shuffle=True)
        return DataLoader(dataset, batch_size=32, num_workers=workers)

    loader = make(sel)
    start = loader.dataset.state_dict()
    states, batches = [], []
    for round_, batch in enumerate(itertools.islice(loader, 45)):
        if round_ == 4:
            change(sel)
        states.append(loader.dataset.advance(start, round_, loader))
        batches.append(batch["label"].tolist())
    # A batch has samples of one worker, of one pass or of two: told apart by where the worker's share of a pass ends.
    parts = max(1, workers)
    got = [[label for batch in batches[part::parts] for label in batch] for part in range(parts)]
    passes: list[list[int]] = []
    while len(passes) < 4:
        for state in (OLD, CHANGED, NEW):
            sizes = SampleSharding(BLOCK, parts, "short").given(len(state)).tolist()
            found = sorted(label for labels, size in zip(got, sizes, strict=True) for label in labels[:size])
            if found == state:
                break
        passes.append(found)
        got = [labels[size:] for labels, size in zip(got, sizes, strict=True)]
    assert passes[0] == OLD and passes[2:] == [NEW, NEW]
    assert passes[1] in ([NEW] if workers == 0 else [OLD, CHANGED, NEW])  # read ahead by then
    # The pass in which the workers part: in one of them it has begun.
    at = next(round_ for round_, state in enumerate(states) if state["stream"]["pass"] == 2) + 3
    between = next((round_ for round_, state in enumerate(states) if len(state["begun"]) > 1), at)
    for chosen in {at, between}:
        kept = loader.dataset.plans(states[chosen])
        state = json.loads(json.dumps(states[chosen]))
        with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs", cache=warehouse_dir / "elsewhere") as db:
            again = make(db.data.find({"dataset": "numbers"}))
            again.dataset.load_state_dict(state, plans=kept)
            found = [batch["label"].tolist() for batch in itertools.islice(again, 5)]
        assert found == batches[chosen : chosen + 5]


def test_a_dataset_without_end_that_is_resumed_stays_there_in_its_epoch(sel: Selection[Any]) -> None:
    for size in (None, 16):
        dataset = QueryDataset(sel, batch_size=size, fields=["label"], shuffle=True)
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=16 if size is None else None)
        whole = [batch["label"].tolist() for batch in itertools.islice(loader, 50)]
        state = dataset.advance(dataset.state_dict(), 45, loader)
        dataset.load_state_dict(state)
        dataset.set_epoch(0)  # as trainers do that resume
        assert [batch["label"].tolist() for batch in itertools.islice(loader, 5)] == whole[45:]
        dataset.set_epoch(9)
        assert [batch["label"].tolist() for batch in itertools.islice(loader, 5)] != whole[45:]
        dataset.set_epoch(0)
        assert [batch["label"].tolist() for batch in itertools.islice(loader, 5)] == whole[:5]


@pytest.mark.parametrize("end", ["drop", "pad"])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_shares_stay_even_when_a_pass_grows(sel: Selection[Any], end: Any) -> None:
    loader: DataLoader[Any] = DataLoader(
        QueryDataset(sel, fields=["label"], shuffle=True, end=end), batch_size=1, num_workers=3
    )
    labels = []
    for number, batch in enumerate(itertools.islice(loader, 690)):
        if number == 3:
            change(sel)
        labels += batch["label"].tolist()
    first, second = [n // 3 if end == "drop" else -(-n // 3) for n in (N, N + MORE)]
    each = [labels[worker::3] for worker in range(3)]
    assert all(max(share[:first]) < 1000 <= min(share[first:]) for share in each)
    for n, low, high in ((N, 0, first), (N + MORE, first, first + second)):
        seen = [label for share in each for label in share[low:high]]
        assert len(set(seen)) == (n - n % 3 if end == "drop" else n)


def test_what_sample_by_sample_cannot_be_read(sel: Selection[Any]) -> None:
    with pytest.raises(QueryError, match="a stream that follows is read batch by batch"):
        QueryDataset(sel, follow=True)
    for none, error, match in [
        (sel & {"label": -1}, NotFoundError, "needs samples, and none matches"),
        (sel & {"label": {"$lt": 2}}, QueryError, 'end="drop" drops everything: a pass has 2 samples'),
    ]:
        with pytest.raises(error, match=match):
            next(iter(DataLoader(QueryDataset(none, rank=0, world_size=3, end="drop"), batch_size=2)))
    dataset = QueryDataset(sel)
    with pytest.raises(StateError, match="taken by an earlier version"):
        dataset.load_state_dict({name: value for name, value in dataset.state_dict().items() if name != "begun"})


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

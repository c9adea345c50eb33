"""QueryDataset under a DataLoader: the right samples, in every way that a DataLoader can run."""

from __future__ import annotations

import datetime as dt
import itertools
import queue
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, random_split

from tensordb_data import Array, Scalar, TensorDB
from tensordb_data.api.selection import Selection
from tensordb_data.errors import LengthError, QueryError, SampleError, StateError, UnsupportedError
from tensordb_data.torch import QueryDataset
from tensordb_data.torch.convert import to_tensors
from tests.leaks import raised_from_workers

N = 301
CONTEXTS = ["fork", "spawn", "forkserver"]
MODES = ["batch", "sample"]

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def make(sel: Selection[Any], mode: str, workers: int = 0, size: int = 16, **options: Any) -> DataLoader[Any]:
    """A loader of batches of `size` in either mode; options of the DataLoader by their names, others of the dataset."""
    names = ("multiprocessing_context", "persistent_workers", "pin_memory", "prefetch_factor", "in_order", "drop_last")
    given = {name: options.pop(name) for name in names if name in options}
    if mode == "batch":
        return DataLoader(QueryDataset(sel, batch_size=size, **options), batch_size=None, num_workers=workers, **given)
    return DataLoader(QueryDataset(sel, **options), batch_size=size, num_workers=workers, **given)


def labels(batches: Iterable[dict[str, Any]]) -> list[list[int]]:
    return [batch["label"].tolist() for batch in batches]


def flat(batches: Iterable[dict[str, Any]]) -> list[int]:
    return [label for batch in labels(batches) for label in batch]


def test_batches_are_tensors_of_the_stored_dtypes(sel: Selection[Any]) -> None:
    batch = next(iter(make(sel, "batch")))
    assert batch["image"].dtype == torch.uint16 and batch["image"].shape == (16, 2, 3)
    assert batch["label"].dtype == torch.int64 and batch["name"] == [f"n{i}" for i in range(16)]
    assert torch.equal(batch["image"].long(), torch.arange(16 * 6).reshape(16, 2, 3))
    sample = next(iter(QueryDataset(sel)))
    assert sample["label"] == 0 and sample["name"] == "n0" and sample["image"].shape == (2, 3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shuffle", [False, True])
def test_one_process_delivers_what_the_stream_delivers(sel: Selection[Any], mode: str, shuffle: bool) -> None:
    stream = sel.stream(batch_size=16, shuffle=shuffle, seed=3, passes=2)
    if mode == "batch":
        assert labels(make(sel, mode, shuffle=shuffle, seed=3, passes=2)) == labels(stream)
    else:
        assert flat(make(sel, mode, shuffle=shuffle, seed=3, passes=2)) == flat(stream)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_deliver_the_batches_of_one_process_in_order(sel: Selection[Any], workers: int) -> None:
    options: dict[str, Any] = {"shuffle": True, "seed": 1, "passes": 3}
    assert labels(make(sel, "batch", workers, **options)) == labels(make(sel, "batch", **options))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("context", CONTEXTS)
def test_each_sample_once_however_workers_start(sel: Selection[Any], mode: str, context: str) -> None:
    loader = make(sel, mode, 2, shuffle=True, passes=1, multiprocessing_context=context)
    assert sorted(flat(loader)) == list(range(N))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workers", [0, 2])
def test_each_sample_once_over_workers_and_ranks(sel: Selection[Any], mode: str, workers: int) -> None:
    each = [labels(make(sel, mode, workers, shuffle=True, passes=1, rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(itertools.chain.from_iterable(itertools.chain(*each))) == list(range(N))
    assert len({len(batches) for batches in each}) == 1


@pytest.mark.parametrize(("end", "each"), [("drop", 100), ("pad", 101)])
def test_shares_of_the_ranks_made_even(sel: Selection[Any], end: str, each: int) -> None:
    ranks = [flat(make(sel, "sample", shuffle=True, passes=1, rank=rank, world_size=3, end=end)) for rank in range(3)]
    assert [len(labels) for labels in ranks] == [each] * 3
    assert len(set(itertools.chain(*ranks))) == min(3 * each, N)


def test_more_workers_than_samples(sel: Selection[Any]) -> None:
    few = sel & {"label": {"$lt": 2}}
    assert sorted(flat(make(few, "sample", 3, passes=1))) == [0, 1]
    assert sorted(flat(make(few, "batch", 3, passes=1))) == [0, 1]


def test_an_empty_selection_ends_at_once(sel: Selection[Any]) -> None:
    none = sel & {"label": -1}
    assert [labels(make(none, mode, workers, passes=1)) for mode in MODES for workers in (0, 2)] == [[]] * 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_that_was_broken_off_is_followed_by_the_next_one(sel: Selection[Any], mode: str, workers: int) -> None:
    loader = make(sel, mode, workers, shuffle=True, passes=1)
    first = labels(itertools.islice(loader, 3))
    again = labels(loader)
    assert again[:3] != first
    assert sorted(itertools.chain(*again)) == list(range(N))
    loader.dataset.set_epoch(0)  # type: ignore[attr-defined]
    assert labels(itertools.islice(loader, 3)) == first


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("persistent", [False, True])
def test_epochs_are_passes(sel: Selection[Any], mode: str, persistent: bool) -> None:
    loader = make(sel, mode, 2, shuffle=True, passes=1, persistent_workers=persistent)
    epochs = []
    for epoch in (0, 1, 1, 0):
        loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        epochs.append(flat(loader))
    assert all(sorted(each) == list(range(N)) for each in epochs)
    assert epochs[0] == epochs[3] != epochs[1] == epochs[2]
    alone = make(sel, mode, 2, shuffle=True, passes=2)
    if mode == "batch":
        assert flat(alone) == epochs[0] + epochs[1]
    del loader


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (3, 2), (2, 2)])
def test_batches_resume_exactly_with_other_workers(
    sel: Selection[Any], before: int, after: int, persistent: bool
) -> None:
    whole = labels(make(sel, "batch", shuffle=True, passes=3))
    for received in (1, 18, 19, 30):
        first = make(sel, "batch", before, shuffle=True)
        assert labels(itertools.islice(first, received)) == whole[:received]
        state = first.dataset.advance(first.dataset.state_dict(), received, first)  # type: ignore[attr-defined]
        second = make(sel, "batch", after, shuffle=True, persistent_workers=persistent and after > 0)
        if persistent:
            next(iter(second))  # the workers run before the state is loaded
        second.dataset.load_state_dict(state)  # type: ignore[attr-defined]
        rest = whole[received:40]
        assert labels(itertools.islice(second, len(rest))) == rest
        del first, second


def test_a_resumed_run_of_three_passes_ends_after_the_third(sel: Selection[Any]) -> None:
    whole = labels(make(sel, "batch", shuffle=True, passes=3))
    for received in (1, 25, 50):
        loader = make(sel, "batch", 2, shuffle=True, passes=3)
        state = loader.dataset.advance(loader.dataset.state_dict(), received, loader)  # type: ignore[attr-defined]
        loader.dataset.load_state_dict(state)  # type: ignore[attr-defined]
        assert labels(loader) == whole[received:]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_samples_resume_exactly_with_the_same_workers(sel: Selection[Any], workers: int) -> None:
    whole = labels(make(sel, "sample", workers, shuffle=True, passes=2))
    for received in (1, 10, 20, len(whole) - 1, len(whole)):
        first = make(sel, "sample", workers, shuffle=True, passes=2)
        state: Any = first.dataset.state_dict()  # type: ignore[attr-defined]
        state = first.dataset.advance(state, received - 1, first)  # type: ignore[attr-defined]
        state = first.dataset.advance(state, 1, first)  # type: ignore[attr-defined]
        second = make(sel, "sample", workers, shuffle=True, passes=2)
        second.dataset.load_state_dict(state)  # type: ignore[attr-defined]
        assert labels(second) == whole[received:]


def test_samples_say_when_a_resume_would_not_be_exact(sel: Selection[Any]) -> None:
    first = make(sel, "sample", 2, shuffle=True)
    state = first.dataset.advance(first.dataset.state_dict(), 3, first)  # type: ignore[attr-defined]
    other = make(sel, "sample", 0, shuffle=True)
    other.dataset.load_state_dict(state)  # type: ignore[attr-defined]
    with pytest.raises(StateError, match="the same `num_workers`: it was 2, and is 1"):
        next(iter(other))
    for changed, message in [
        (make(sel, "sample", 3, shuffle=True), "the same `num_workers`: it was 2, and is 3"),
        (make(sel, "sample", 2, size=8, shuffle=True), "the same `batch_size`: it was 16, and is 8"),
    ]:
        with pytest.raises(StateError, match=message):
            changed.dataset.advance(state, 1, changed)  # type: ignore[attr-defined]
    with pytest.raises(StateError, match="the same `world_size`: it was 1, and is 2"):
        QueryDataset(sel, shuffle=True, rank=0, world_size=2).load_state_dict(state)
    with pytest.raises(StateError, match="taken sample-wise, and this dataset is batch-wise"):
        QueryDataset(sel, batch_size=16, shuffle=True).load_state_dict(state)


def test_a_resumed_epoch_is_finished_first(sel: Selection[Any]) -> None:
    for mode in MODES:
        loader = make(sel, mode, shuffle=True, passes=1)
        loader.dataset.set_epoch(1)  # type: ignore[attr-defined]
        whole = labels(loader)
        state = loader.dataset.advance(loader.dataset.state_dict(), 4, loader)  # type: ignore[attr-defined]
        resumed = make(sel, mode, shuffle=True, passes=1)
        resumed.dataset.load_state_dict(state)  # type: ignore[attr-defined]
        resumed.dataset.set_epoch(1)  # type: ignore[attr-defined]
        assert labels(resumed) == whole[4:]
        resumed.dataset.set_epoch(0)  # type: ignore[attr-defined]
        assert labels(resumed) != whole and sorted(flat(resumed)) == list(range(N))


@pytest.mark.parametrize("workers", [0, 2])
def test_batching_twice_is_refused(sel: Selection[Any], workers: int) -> None:
    loader = DataLoader(QueryDataset(sel, batch_size=16), num_workers=workers)
    with raised_from_workers(QueryError, "batched twice: the dataset makes batches of 16 already"):
        next(iter(loader))
    with pytest.raises(StateError, match="batched twice"):
        loader.dataset.advance(loader.dataset.state_dict(), 1, loader)  # type: ignore[attr-defined]


def test_delivery_out_of_order_cannot_be_counted(sel: Selection[Any]) -> None:
    loader = make(sel, "batch", 2, in_order=False)
    with pytest.raises(StateError, match="in_order=True"):
        loader.dataset.advance(loader.dataset.state_dict(), 1, loader)  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_pinned_memory_and_prefetch(sel: Selection[Any], mode: str) -> None:
    loader = make(sel, mode, 2, passes=1, pin_memory=True, prefetch_factor=4)
    assert Counter(flat(loader)) == Counter(range(N))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_pins_finds_its_batches_pinned(
    sel: Selection[Any], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without workers it would copy in the thread of the loop: the threads that make batches do it before."""
    pinned: list[str] = []

    def pin(batch: dict[str, Any]) -> dict[str, Any]:
        pinned.append(threading.current_thread().name)
        return to_tensors(batch)

    monkeypatch.setattr("tensordb_data.torch.dataset.to_pinned", pin)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *args: True)  # it asks when it begins
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *device: self)
    monkeypatch.setattr(torch.utils.data._utils.pin_memory, "_pin_memory_loop", _not_pinning)
    for pin_memory in (True, False):
        pinned.clear()
        assert Counter(flat(make(sel, "batch", workers, passes=1, pin_memory=pin_memory))) == Counter(range(N))
        expected = pin_memory and not workers
        assert len(pinned) == (19 if expected else 0) and not [name for name in pinned if name == "MainThread"]


def _not_pinning(taken: Any, given: Any, device: Any, done: Any, *rest: Any) -> None:
    """What the loader's own thread does, without a GPU."""
    while not done.is_set():
        try:
            given.put(taken.get(timeout=0.1))
        except queue.Empty:
            continue


@pytest.mark.parametrize("mode", MODES)
def test_a_dataset_over_a_stream_starts_where_the_stream_stands(sel: Selection[Any], mode: str) -> None:
    stream = sel.stream(batch_size=16, shuffle=True)
    whole = labels(itertools.islice(iter(stream), 2)) + labels(itertools.islice(stream, 3))
    stream = sel.stream(batch_size=16, shuffle=True)
    loader: DataLoader[Any] = DataLoader(QueryDataset(stream), batch_size=None, num_workers=2)
    assert labels(itertools.islice(loader, 5)) == whole
    list(itertools.islice(stream, 2))
    assert labels(itertools.islice(loader, 3)) == whole[2:]
    with pytest.raises(QueryError, match="a stream has its own options: give batch_size, seed to"):
        QueryDataset(stream, batch_size=3, seed=4)


def test_what_is_no_selection_and_no_stream_is_refused(db: TensorDB, sel: Selection[Any]) -> None:
    with pytest.raises(QueryError, match=r"found a Query; db.select\(query\) makes a Selection of it"):
        QueryDataset(sel.query, batch_size=2)  # type: ignore[arg-type]
    for wrong in (db, sel.all(), None):
        with pytest.raises(QueryError, match="a stream is needed here; found a"):
            QueryDataset(wrong, batch_size=2)  # type: ignore[arg-type]


def test_an_error_in_a_worker_keeps_its_type_and_message(db: TensorDB, sel: Selection[Any]) -> None:
    def fail(sample: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("no such colour")

    for mode in MODES:
        with raised_from_workers(SampleError, "no such colour"):
            next(iter(make(sel, mode, 2, transform=fail)))


def test_ragged_values_and_transforms_in_workers(db: TensorDB) -> None:
    with db.data.writer("ragged", schema={"x": _array(), "label": int}) as writer:
        for i in range(20):
            writer.add(x=np.full((i % 3 + 1, 2), i, np.float32), label=i)
    sel = db.data.find({"dataset": "ragged"})
    loader = make(sel, "batch", 2, size=4, passes=1)
    for batch in loader:
        assert isinstance(batch["x"], list)
        assert [int(x[0, 0]) for x in batch["x"]] == batch["label"].tolist()
    padded = make(sel, "sample", 2, size=4, passes=1, transform=lambda sample: {"x": np.resize(sample["x"], (3, 2))})
    assert {tuple(batch["x"].shape[1:]) for batch in padded} == {(3, 2)}


def _array() -> Any:
    from tensordb_data import Array

    return Array("float32", (None, 2))


@pytest.mark.parametrize("mode", MODES)
def test_ids_and_times_are_lists_in_either_mode(db: TensorDB, mode: str) -> None:
    times = [dt.datetime(2024, 1, 1 + day) for day in range(5)]
    with db.data.writer("events") as writer:
        ids = [writer.add(when=time) for time in times]
    (batch,) = make(db.data.find({"dataset": "events"}), mode, fields=["_id", "when"], passes=1)
    assert batch == {"_id": ids, "when": times}


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_a_transform_that_cannot_be_sent_is_refused_before_a_worker_starts(sel: Selection[Any], context: str) -> None:
    loader = make(sel, "batch", 1, transform=lambda sample: sample, multiprocessing_context=context)
    with pytest.raises(QueryError, match=r"`transform` cannot be sent to a worker process .* top level of a module"):
        iter(loader)
    assert next(iter(make(sel, "batch", 1, transform=lambda sample: sample, multiprocessing_context="fork")))


@pytest.mark.parametrize("workers", [0, 1])
def test_each_batch_that_is_delivered_is_padded(db: TensorDB, workers: int) -> None:
    sizes = [1 + row % 7 for row in range(100)]
    with db.data.writer("waves", schema={"wave": Array("float32", (None,)), "image": Array("uint8", (None, 2))}) as w:
        for size in sizes:
            w.add(wave=np.full(size, size, np.float32), image=np.full((size, 2), size, np.uint8))
    loader = make(db.data.find({"dataset": "waves"}), "sample", workers, size=3, ragged="pad", passes=1)
    for number, batch in enumerate(loader):
        expected = sizes[3 * number : 3 * number + 3]
        assert type(batch["wave"]) is torch.Tensor and batch["wave"].shape == (len(expected), max(expected))
        assert batch["wave_lengths"].tolist() == expected == batch["wave"].max(1).values.tolist()
        assert batch["image"].shape == (len(expected), max(expected), 2)
        assert batch["image_lengths"].tolist() == [[size, 2] for size in expected]
    assert number == 33


class Within(IterableDataset[Any]):
    """A dataset within another one."""

    def __init__(self, dataset: QueryDataset) -> None:
        self.parts = {"train": [dataset]}

    def __iter__(self) -> Any:
        return iter(self.parts["train"][0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("workers", "options"),
    [(0, {}), (2, {}), (2, {"multiprocessing_context": "forkserver"}), (2, {"persistent_workers": True})],
)
def test_iterating_again_goes_on_with_the_next_pass(
    sel: Selection[Any], mode: str, workers: int, options: dict[str, Any]
) -> None:
    loader = make(sel, mode, workers, shuffle=True, passes=1, **options)
    dataset: Any = loader.dataset
    epochs = [labels(loader) for _ in range(3)]
    assert all(sorted(itertools.chain(*epoch)) == list(range(N)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    if mode == "batch":
        assert list(itertools.chain(*epochs)) == labels(sel.stream(16, shuffle=True, passes=3))
    dataset.set_epoch(1)
    assert labels(loader) == epochs[1] and labels(loader) == epochs[2]
    state = dataset.advance(dataset.state_dict(), 4, loader)
    again = make(sel, mode, workers, shuffle=True, passes=1, **options)
    dataset = again.dataset
    dataset.load_state_dict(state)
    dataset.set_epoch(2)
    assert labels(again) == epochs[2][4:] and labels(again) not in epochs
    dataset.set_epoch(0)
    assert labels(again) == epochs[0] and labels(again) == epochs[1]
    del loader, again


def test_two_iterations_at_once_are_two_passes(sel: Selection[Any]) -> None:
    loader = make(sel, "batch", 2, shuffle=True, passes=1)
    both = iter(loader), iter(loader)
    whole = labels(sel.stream(16, shuffle=True, passes=2))
    assert labels(both[0]) + labels(both[1]) == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_within_another_goes_on_too(sel: Selection[Any], workers: int) -> None:
    within = Within(QueryDataset(sel, 16, shuffle=True, passes=1))
    loader: DataLoader[Any] = DataLoader(within, batch_size=None, num_workers=workers)
    other = make(sel, "batch", workers, shuffle=True, passes=1)
    got = labels(loader) + labels(other)[:0] + labels(loader)
    assert got == labels(sel.stream(16, shuffle=True, passes=2))


@pytest.mark.parametrize("mode", MODES)
def test_the_length_is_the_number_of_batches(sel: Selection[Any], mode: str) -> None:
    for options in ({}, {"rank": 1, "world_size": 3}, {"rank": 0, "world_size": 2, "end": "drop"}, {"drop_last": True}):
        if mode == "batch" and "drop_last" in options:
            continue
        for workers, passes in ((0, 1), (3, 2)):
            loader = make(sel, mode, workers, passes=passes, shuffle=True, fields=["label"], **options)
            assert len(loader) == len(labels(loader)), (options, workers)
    dataset = make(sel, mode, passes=1).dataset
    assert len(dataset) == len(list(dataset)) and dataset


def test_without_end_there_is_no_length(sel: Selection[Any]) -> None:
    for mode in MODES:
        loader = make(sel, mode)
        assert loader.dataset and not hasattr(loader.dataset, "__len__")
        with pytest.raises(TypeError, match=r"no end, and no length\. With passes=1"):
            len(loader)


def test_parts_of_a_dataset_are_for_those_with_numbers(sel: Selection[Any]) -> None:
    part, _ = random_split(QueryDataset(sel, passes=1), [0.8, 0.2])
    with pytest.raises(UnsupportedError, match=r"use tensordb_data\.torch\.MapDataset"):
        part[0]
    with pytest.raises(LengthError, match=r"there is tensordb_data\.torch\.MapDataset"):
        random_split(QueryDataset(sel), [0.8, 0.2])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_field_that_samples_lack_is_named_at_the_start(db: TensorDB, workers: int) -> None:
    schema = {"label": int, "weight": Scalar("float", optional=True), "note": Scalar("str", optional=True)}
    with db.data.writer("parts", schema=schema) as writer:
        for row in range(100):
            some: dict[str, Any] = {"weight": 1.0 if row < 99 else None, "note": "x" if row < 98 else None}
            writer.add(label=row, **some)
    sel = db.data.find({"dataset": "parts"})
    assert sorted(flat(make(sel, "sample", workers, passes=1))) == list(range(100))
    for name, count in (("weight", 1), ("note", 2)):
        options: dict[str, Any] = {"fields": ["label", name], "passes": 1}
        with raised_from_workers(QueryError, f"field '{name}' is None in {count} samples"):
            next(iter(make(sel, "sample", workers, **options)))
        assert len(flat(make(sel & {name: {"$exists": True}}, "sample", workers, **options))) == 100 - count
    with raised_from_workers(QueryError, "field 'note' is None in 2 samples"):
        flat(make(sel, "sample", workers, transform=lambda sample: sample, **options))
    ours = DataLoader(QueryDataset(sel, **options), batch_size=50, num_workers=workers, collate_fn=list)
    assert sum(map(len, ours)) == 100

"""Small samples that were read before: batches are made on the thread that iterates, and they are the same ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensordb_data import Array, Scalar, TensorDB, mix
from tensordb_data.errors import SampleError
from tensordb_data.stream.deliver import iteration, lane
from tensordb_data.stream.fetch import relocate

N = 700


@pytest.fixture
def warm(db: TensorDB) -> TensorDB:
    """Two datasets whose blobs were all compared with their checksums, in several segments."""
    schema = {"x": Array("uint8", (5,)), "y": Array("float32", (2, 2)), "n": Scalar("int"), "name": Scalar("str")}
    for dataset, first in (("a", 0), ("b", N)):
        with db.data.writer(dataset, schema=schema) as writer:
            for low in range(first, first + N, 200):
                n = np.arange(low, min(low + 200, first + N))
                writer.add_many(
                    x=np.repeat(n[:, None] % 251, 5, 1).astype(np.uint8),
                    y=np.repeat(n, 4).reshape(-1, 2, 2).astype(np.float32),
                    n=n,
                    name=[f"é{i}" for i in n.tolist()],
                )
                writer.flush()
    return db


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each lane, whether it has made all batches of its pass."""
    made: list[bool] = []

    class Counted(lane.Lane):
        def __iter__(self) -> Any:
            made.append(False)
            number = len(made) - 1
            yield from super().__iter__()
            made[number] = self.is_over

    monkeypatch.setattr(iteration, "Lane", Counted)
    return made


def stream(db: TensorDB, *datasets: str, **options: Any) -> Any:
    options = {"batch_size": 16, "shuffle": True, "seed": 3, "passes": 2, **options}
    return db.data.find({"dataset": {"$in": list(datasets or "ab")}}).stream(**options)


def plain(batches: Any) -> list[dict[str, Any]]:
    return [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in batch.items()} for batch in batches]


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "tensordb" in thread.name}


OPTIONS: list[dict[str, Any]] = [
    {},
    {"shuffle": False, "end": "pad"},
    {"shuffle": False, "rank": 1, "world_size": 3, "end": "drop"},
    {"rank": 1, "world_size": 2, "end": "pad", "batch_size": 48},
    {"replacement": True, "weights": "n"},
    {"fields": ["name", "n"]},
    {"fields": ["x", "_id", "tags"], "ragged": "pad"},
    {"batch_size": 1000, "shuffle": "full"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_the_batches_are_the_same(
    warm: TensorDB, lanes: list[bool], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    with monkeypatch.context() as without:
        without.setattr(iteration, "blobs_of", lambda *_: None)
        expected = [plain(stream(warm, **{**options, "passes": passes})) for passes in (1, 2, 4)][1:]
    list(stream(warm, fields=options.get("fields")))
    assert [plain(stream(warm, **{**options, "passes": passes})) for passes in (2, 4)] == expected
    assert lanes and all(lanes)


def test_no_thread_is_started_and_each_state_is_exact(warm: TensorDB, lanes: list[bool]) -> None:
    expected = plain(stream(warm))
    lanes.clear()
    one = stream(warm)
    before, got, states = threads(), [], []
    for batch in one:
        got.append(batch)
        states.append(one.state_dict())
    assert plain(got) == expected and threads() <= before and len(lanes) == 2
    for at in (0, 5, 43, 44, 86):  # within a gather, at its end, at the end of a pass
        again = stream(warm)
        again.load_state_dict(states[at])
        assert plain(again) == expected[at + 1 :]
    assert one.stats()["samples"] == 4 * N and one.stats()["bytes"] == 4 * N * (5 + 16)


def test_what_is_new_is_in_the_next_pass(warm: TensorDB, lanes: list[bool]) -> None:
    list(stream(warm, "a"))
    batches = iter(stream(warm, "a", passes=6))
    for _ in range(-(-N // 16)):
        next(batches)
    warm.data.find({"dataset": "a", "n": 0}).update({"$set": {"n": -1}})
    assert min(batch["n"].min() for batch in batches) == -1
    assert len(lanes) > 1  # of the first pass, and of those whose blobs the new plan knows to be good


def test_deleted_samples_are_left_out(warm: TensorDB, lanes: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relocate, "_LOOK", 0.0)
    monkeypatch.setattr(lane, "_WINDOW", 64)
    list(stream(warm, "a"))
    one = stream(warm, "a", passes=1)
    batches = iter(one)
    got = next(batches)["n"].tolist()
    gone = sorted(set(range(N)) - set(got))[::2]
    warm.data.find({"dataset": "a", "n": {"$in": gone}}).delete()
    for batch in batches:
        got += batch["n"].tolist()
    assert len(got) == len(set(got)) and set(range(N)) - set(gone) <= set(got)
    assert len(set(got) & set(gone)) <= 128  # of those that had been looked up
    assert one.stats()["deleted"] > 100 and lanes == [False]


def test_a_file_that_is_cut_short(warm: TensorDB, warehouse_dir: Path, lanes: list[bool]) -> None:
    list(stream(warm))
    batches = iter(stream(warm, passes=None))
    next(batches)
    files = sorted((warehouse_dir / "blobs" / "segments").iterdir(), key=lambda path: path.stat().st_size)
    with files[-1].open("rb+") as file:
        file.truncate(16)
    with pytest.raises(SampleError, match="cut off"):
        for _ in range(200):
            next(batches)
    assert lanes == [False]


def test_blobs_that_moved(warm: TensorDB, lanes: list[bool]) -> None:
    expected = plain(stream(warm))
    batches: Iterator[Any] = iter(stream(warm))
    got = [next(batches)]
    for dataset in "ab":
        warm.data.compact(dataset)
    assert plain([*got, *batches]) == expected


def test_a_warehouse_that_is_closed(db: TensorDB, warm: TensorDB, lanes: list[bool]) -> None:
    list(stream(warm))
    one = stream(warm, passes=None)
    next(iter(one))
    batches = iter(one)
    next(batches)
    one.close()
    assert list(batches) == []


def test_a_mix_does_without(warm: TensorDB) -> None:
    list(stream(warm))
    mixed = mix([(stream(warm, "a", passes=None), 0.5), (stream(warm, "b", passes=None), 0.5)], seed=1)
    batches = iter(mixed)
    assert {int(n) // N for _ in range(20) for n in next(batches)["n"]} == {0, 1}
    mixed.close()

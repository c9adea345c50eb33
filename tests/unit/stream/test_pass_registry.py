"""Readers that share a stream agree on what each pass goes over, however far apart they are when the data changes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import mongomock
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data import TensorDB, mix
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.mixture.mixture import Mix

SIZE = 5

steps = st.lists(st.one_of(st.integers(0, 2), st.just("change")), max_size=25)
"""Which reader pulls a batch, or that the data changes."""


class Data:
    """Samples that all carry the number of the last change as their label; each change adds some."""

    def __init__(self, db: TensorDB, n: int, name: str = "d") -> None:
        self.db, self.n, self.label, self.name = db, 0, 0, name
        self.add(n)

    def add(self, count: int) -> None:
        with self.db.data.writer(self.name) as writer:
            writer.add_many(number=np.arange(self.n, self.n + count), label=np.full(count, self.label))
        self.n += count

    def change(self) -> None:
        self.label += 1
        self.db.data.find({"dataset": self.name}).update({"$set": {"label": self.label}})
        self.add(1 + self.label % 3)

    def stream(self, **options: Any) -> Stream:
        found = self.db.data.find({"dataset": self.name})
        return found.stream(batch_size=SIZE, fields=["number", "label"], shuffle=True, **options)


@given(n=st.sampled_from([1, 4, 9, 23]), workers=st.integers(1, 3), steps=steps, at=st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_each_pass_is_one_state_of_the_data(n: int, workers: int, steps: list[Any], at: int) -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        data = Data(db, n)
        stream = data.stream()
        assert stream._share_passes() is not None
        start = stream.state_dict()
        readers = [iter(stream.shard(index, workers)) for index in range(workers)]
        got: list[list[Any]] = [[] for _ in readers]
        for step in [*steps, "change", *range(workers)]:
            if step == "change":
                data.change()
            else:
                got[step % workers].append(next(readers[step % workers]))
        rounds = max(map(len, got)) * workers + 12
        for index, reader in enumerate(readers):
            while len(got[index]) * workers + index < rounds:
                got[index].append(next(reader))
        batches = [got[round_ % workers][round_ // workers] for round_ in range(rounds)]
        passes: dict[int, list[Any]] = defaultdict(list)
        for round_, batch in enumerate(batches):
            passes[stream.advance(start, round_)["pass"]].append(batch)
        labels = []
        for number in range(max(passes)):
            found = sorted(sample for batch in passes[number] for sample in batch["number"].tolist())
            assert found == list(range(len(found)))
            (label,) = {label for batch in passes[number] for label in batch["label"].tolist()}
            labels.append(label)
        assert labels == sorted(labels) and labels[-1:] <= [data.label]
        at %= rounds
        again = data.stream()
        state = stream.advance(start, at)
        again.load_state_dict(state, plans=stream.plans(state))
        for batch, other in zip(again, batches[at:], strict=False) if state["position"] else ():
            if again.state_dict()["position"] == 0:
                break
            assert batch["number"].tolist() == other["number"].tolist()
            assert batch["label"].tolist() == other["label"].tolist()
        for reader in readers:
            reader.close()  # type: ignore[attr-defined]


@given(
    sizes=st.tuples(st.sampled_from([2, 7, 20]), st.sampled_from([3, 9])),
    workers=st.integers(1, 3),
    steps=st.lists(st.one_of(st.integers(0, 2), st.sampled_from(["change 0", "change 1"])), max_size=15),
    at=st.integers(0, 40),
    size=st.sampled_from([1, 4, SIZE]),
)
@settings(max_examples=25, deadline=None)
def test_each_pass_of_each_stream_of_a_mix_is_one_state_of_its_data(
    sizes: tuple[int, int], workers: int, steps: list[Any], at: int, size: int
) -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        data = [Data(db, n, name) for n, name in zip(sizes, ("a", "b"), strict=True)]

        def made(batch_size: int = size) -> Mix:
            fields = ["number", "label", "dataset"]
            found = [db.data.find({"dataset": each.name}) for each in data]
            streams = [one.stream(batch_size=batch_size, fields=fields, shuffle=True) for one in found]
            return mix(list(zip(streams, (0.6, 0.4), strict=True)), seed=3)

        stream = made()
        stream._share_passes()
        start = stream.state_dict()
        readers = [iter(stream.shard(index, workers)) for index in range(workers)]
        got: list[list[Any]] = [[] for _ in readers]
        for step in [*steps, "change 0", *range(workers)]:
            if isinstance(step, str):
                data[int(step[-1])].change()
            else:
                got[step % workers].append(next(readers[step % workers]))
        rounds = max(map(len, got)) * workers + 40 // size
        for index, reader in enumerate(readers):
            while len(got[index]) * workers + index < rounds:
                got[index].append(next(reader))
        batches = [got[round_ % workers][round_ // workers] for round_ in range(rounds)]
        end = stream.advance(start, rounds)
        for index, each in enumerate(data):
            taken = [
                (int(number), int(label)) for batch in batches
                for number, label, name in zip(batch["number"], batch["label"], batch["dataset"], strict=True)
                if name == each.name
            ]  # fmt: skip
            labels = []
            for number in range(end["streams"][index]["pass"]):
                registered = stream.streams[index]._resolver().lookup(number)
                assert registered is not None and registered.n is not None
                passed, taken = taken[: registered.n], taken[registered.n :]
                assert sorted(number for number, _ in passed) == list(range(registered.n))
                (label,) = {label for _, label in passed}
                labels.append(label)
            assert len(taken) == end["streams"][index]["position"]
            assert labels == sorted(labels)
        at %= rounds
        state = stream.advance(start, at)
        again = made(batch_size=1)
        again.load_state_dict(state, plans=stream.plans(state))
        expected = [sample for batch in batches[at:] for sample in samples_of(batch)]
        passes = [part["pass"] for part in state["streams"]]
        found = (sample for batch in again for sample in samples_of(batch))
        for one, other in zip(expected, found, strict=False):
            if [part["pass"] for part in again.state_dict()["streams"]] != passes or 0 in [
                part["position"] for part in state["streams"]
            ]:
                break  # the passes that begin now are of today
            assert one == other
        for reader in readers:
            reader.close()  # type: ignore[attr-defined]


def samples_of(batch: Any) -> list[Any]:
    return list(zip(batch["dataset"], batch["number"].tolist(), batch["label"].tolist(), strict=True))


def test_a_pass_is_what_the_first_reader_said_though_it_is_dead() -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        data = Data(db, 10)
        stream = data.stream()
        stream._share_passes()
        first, second = iter(stream.shard(0, 2)), iter(stream.shard(1, 2))
        assert next(first)["label"][0] == 0
        assert next(first)["label"][0] == 0  # of pass 1
        first.close()  # type: ignore[attr-defined]
        data.change()
        assert [next(second)["label"][0] for _ in range(3)] == [0, 0, 1]
        second.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_pinned_stream_stays(shuffle: bool) -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        data = Data(db, 10)
        stream = data.stream().pin()
        assert stream._share_passes() is None
        data.change()
        with_stream = iter(stream.shard(0, 1))
        assert {next(with_stream)["label"][0] for _ in range(6)} == {0}
        with_stream.close()  # type: ignore[attr-defined]


def test_what_was_registered_stays() -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        data = Data(db, 10)
        stream = data.stream()
        registry = stream._share_passes()
        assert registry is not None
        one, two = registry.of_iteration("a"), registry.of_iteration("a")
        before = stream._planner.state_now()
        assert two.get(3) is None and one.setdefault(3, before) == before
        data.change()
        now = stream._planner.state_now()
        assert now != before and two.setdefault(3, now) == before == two.get(3)
        assert registry.of_iteration("b").setdefault(3, now) == now

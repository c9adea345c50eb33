"""A state taken with any ranks, workers and batch size continues with any other: each sample once, in one order."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import mongomock
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensordb_data import TensorDB, mix
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.mixture.mixture import Mix

SIZES = (1, 2, 7, 30, 61)

stages = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 11), st.integers(0, 9)), min_size=1, max_size=4
)
"""(ranks, workers, batch size, rounds until the state is taken)"""


@pytest.fixture(scope="module")
def samples() -> Iterator[TensorDB]:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        for n in SIZES:
            with db.data.writer(f"d{n}") as writer:
                writer.add_many(label=np.arange(n), weight=1.0 + np.arange(n) % 3)
        yield db


def run(make: Any, plan: list[tuple[int, int, int, int]]) -> Iterator[tuple[Any, list[int]]]:
    """The batches of all ranks, round by round, in a run that is resumed with other ranks and workers at each stage."""
    state: dict[str, Any] | None = None
    for world, workers, size, rounds in plan:
        ranks: list[Stream | Mix] = [make(batch_size=size, rank=rank, world_size=world) for rank in range(world)]
        readers = []
        for stream in ranks:
            stream.pin()
            if state is not None:
                stream.load_state_dict(json.loads(json.dumps(state)))
            readers.append([iter(stream.shard(index, workers)) for index in range(workers)])
        start = ranks[0].state_dict()
        for round_ in range(rounds):
            before = ranks[0].advance(start, round_)
            for each in readers:
                yield before, next(each[round_ % workers])["label"].tolist()
        states = [stream.advance(start, rounds) for stream in ranks]
        assert all(found == states[0] for found in states)
        state = states[0]
        for reader in itertools.chain(*readers):
            reader.close()  # type: ignore[attr-defined]


@given(n=st.sampled_from(SIZES), plan=stages, options=st.sampled_from(
    [{}, {"shuffle": True}, {"replacement": True}, {"replacement": True, "weights": "weight"}]))  # fmt: skip
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_resumed_again_and_again_delivers_one_sequence(
    samples: TensorDB, n: int, plan: list[tuple[int, int, int, int]], options: dict[str, Any]
) -> None:
    selection = samples.data.find({"dataset": f"d{n}"})
    whole: dict[int, list[int]] = defaultdict(list)
    got: dict[int, list[int]] = defaultdict(list)
    for before, labels in run(lambda **ranks: selection.stream(fields=["label"], **ranks, **options), plan):
        got[before["pass"]] += labels
    for number, batch in zip(range(n * (max(got, default=0) + 1)), selection.stream(
        batch_size=1, fields=["label"], **options), strict=False):  # fmt: skip
        whole[number // n] += batch["label"].tolist()
    for number, labels in got.items():
        # Fewer samples than ranks at the end of a pass are delivered twice, so that no rank waits for another.
        extra = len(labels) - n if number < max(got) else max(0, len(labels) - n)
        assert 0 <= extra < max(world for world, *_ in plan)
        assert labels[: len(labels) - extra] == whole[number][: len(labels) - extra]


@given(plan=stages)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mix_resumed_again_and_again_delivers_one_sequence(
    samples: TensorDB, plan: list[tuple[int, int, int, int]]
) -> None:
    def make(**ranks: Any) -> Mix:
        pairs = [({"dataset": "d7"}, 0.3), ({"dataset": "d61"}, 0.7)]
        return mix([(samples.data.find(f).stream(fields=["label"], shuffle=True, **ranks), w) for f, w in pairs])

    got = [label for _, labels in run(make, plan) for label in labels]
    whole = [label for batch in itertools.islice(make(batch_size=1), len(got)) for label in batch["label"].tolist()]
    assert got == whole


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_dropped_tail_is_in_no_batch(shuffle: bool) -> None:
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        with db.data.writer("d") as writer:
            writer.add_many(number=np.arange(18))
        stream = db.data.find({"dataset": "d"}).stream(batch_size=8, shuffle=shuffle, passes=1, end="drop")
        assert [len(batch["number"]) for batch in stream] == [8, 8]

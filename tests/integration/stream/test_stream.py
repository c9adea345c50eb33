"""The stream against a real server: right samples, right order, right errors, nothing left behind."""

from __future__ import annotations

import gc
import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tensordb_data import TensorDB
from tensordb_data.errors import NotFoundError, QueryError, SampleError, StateError
from tensordb_data.stream.deliver.stream import Stream

N = 100


@pytest.fixture
def digits(db: TensorDB) -> Iterator[TensorDB]:
    images = np.arange(N * 12, dtype=np.uint16).reshape(N, 3, 4)
    with db.data.writer("digits") as writer:
        writer.add_many(image=images, label=np.arange(N) % 10, name=[f"n{i}" for i in range(N)])
    yield db


def stream(db: TensorDB, **options: Any) -> Stream:
    options.setdefault("batch_size", 8)
    return db.data.find({"dataset": "digits"}).stream(**options)


def numbers(batches: Any) -> list[int]:
    """Which samples, by the first pixel."""
    return [int(image[0, 0]) // 12 for batch in batches for image in batch["image"]]


def test_a_pass_in_query_order_has_every_sample_once_with_dtypes(digits: TensorDB) -> None:
    batches = list(stream(digits, passes=1))
    assert [len(batch["label"]) for batch in batches] == [8] * 12 + [4]
    first = batches[0]
    assert list(first) == ["image", "label", "name"]
    assert first["image"].dtype == np.uint16 and first["image"].shape == (8, 3, 4) and first["image"].flags.writeable
    assert first["label"].dtype == np.int64 and first["name"] == [f"n{i}" for i in range(8)]
    assert numbers(batches) == list(range(N))


def test_shuffled_passes_differ_and_hold_every_sample_once(digits: TensorDB) -> None:
    one, two = (numbers(itertools.islice(iter_, 13)) for iter_ in [iter(stream(digits, shuffle=True))] for _ in "12")
    assert sorted(one) == sorted(two) == list(range(N)) and one != two
    again = numbers(itertools.islice(stream(digits, shuffle=True), 13))
    other = numbers(itertools.islice(stream(digits, shuffle=True, seed=1), 13))
    assert again == one and other != one


def test_cursor_and_plan_deliver_the_same(digits: TensorDB) -> None:
    by_cursor = list(stream(digits, passes=2))
    by_plan = list(stream(digits, passes=2).pin())
    assert numbers(by_cursor) == numbers(by_plan) == 2 * list(range(N))
    assert [len(batch["name"]) for batch in by_cursor] == [len(batch["name"]) for batch in by_plan]


def test_sorted_and_limited_selection(digits: TensorDB) -> None:
    selection = digits.data.find({"dataset": "digits"}, sort=[("label", -1), ("name", 1)], limit=15)
    labels = np.concatenate([batch["label"] for batch in selection.stream(batch_size=4, passes=1)])
    assert labels.tolist() == [9] * 10 + [8] * 5
    first = digits.data.find({"dataset": "digits"}, limit=11)
    assert numbers(first.stream(batch_size=4, passes=1)) == list(range(11))
    shuffled = numbers(first.stream(batch_size=4, passes=1, shuffle=True))
    assert sorted(shuffled) == list(range(11))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("delivered", [0, 1, 5, 12, 13, 20])
def test_resume_is_exact(digits: TensorDB, shuffle: bool, delivered: int) -> None:
    whole = numbers(itertools.islice(stream(digits, shuffle=shuffle), 30))
    first = stream(digits, shuffle=shuffle)
    head = numbers(itertools.islice(first, delivered))
    state = json.loads(json.dumps(first.state_dict()))
    second = stream(digits, shuffle=shuffle)
    second.load_state_dict(state)
    assert head + numbers(itertools.islice(second, 30 - delivered)) == whole


def test_break_and_go_on_in_the_same_stream(digits: TensorDB) -> None:
    one = stream(digits, shuffle=True)
    got = []
    for _ in range(6):
        got += numbers(itertools.islice(one, 5))
    assert got == numbers(itertools.islice(stream(digits, shuffle=True), 30))


def test_a_finite_stream_iterated_again_gives_the_next_pass(digits: TensorDB) -> None:
    one = stream(digits, shuffle=True, passes=1)
    assert numbers(one) + numbers(one) == numbers(stream(digits, shuffle=True, passes=2))


def test_elastic_resume_over_ranks_and_batch_sizes(digits: TensorDB) -> None:
    ranks = [stream(digits, shuffle=True, rank=rank, world_size=3, batch_size=5) for rank in range(3)]
    parts = [numbers(itertools.islice(part, 4)) for part in ranks]
    state = ranks[0].state_dict()
    assert state == ranks[2].state_dict() and state["position"] == 60
    rest = stream(digits, shuffle=True, passes=1, batch_size=7)
    rest.load_state_dict(state)
    remaining = numbers(rest)
    assert sorted([*itertools.chain(*parts), *remaining]) == list(range(N))
    order = numbers(stream(digits, shuffle=True, passes=1))
    assert remaining == order[60:]


@pytest.mark.parametrize("end", ["short", "drop", "pad"])
def test_every_rank_gets_equally_many_batches(digits: TensorDB, end: Any) -> None:
    parts = [list(stream(digits, passes=1, rank=rank, world_size=3, batch_size=7, end=end)) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    seen = sorted(itertools.chain(*map(numbers, parts)))
    if end == "short":
        assert seen == list(range(N))
    elif end == "drop":
        assert len(seen) == len(set(seen)) == 84
    else:
        assert set(seen) == set(range(N)) and len(seen) == 105


def test_workers_in_turn_and_advance(digits: TensorDB) -> None:
    parent = stream(digits, shuffle=True).pin()
    whole = numbers(itertools.islice(stream(digits, shuffle=True), 40))
    workers = [iter(parent.shard(index, 3)) for index in range(3)]
    turns = [next(workers[turn % 3]) for turn in range(40)]
    assert numbers(turns) == whole
    counted = stream(digits, shuffle=True)
    counted.load_state_dict(parent.advance(parent.state_dict(), 17))
    assert numbers(itertools.islice(counted, 23)) == numbers(turns[17:])


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_pass_sees_the_data_of_its_beginning_and_the_next_what_came_since(digits: TensorDB, shuffle: bool) -> None:
    batches = iter(stream(digits, shuffle=shuffle, batch_size=10))
    head = numbers(itertools.islice(batches, 3))
    with digits.data.writer("digits") as writer:
        writer.add(image=np.full((3, 4), N * 12, np.uint16), label=1, name="late")
    digits.data.find({"dataset": "digits", "name": "n0"}).update({"$set": {"label": 77}})
    rest = list(itertools.islice(batches, 7))
    assert sorted(head + numbers(rest)) == list(range(N))
    second = list(itertools.islice(batches, 11))
    assert sorted(numbers(second)) == list(range(N + 1))
    assert 77 in np.concatenate([batch["label"] for batch in second])


def test_resume_in_mid_pass_ignores_samples_added_since(digits: TensorDB) -> None:
    one = stream(digits, shuffle=True)
    head = numbers(itertools.islice(one, 5))
    state = one.state_dict()
    with digits.data.writer("digits") as writer:
        writer.add(image=np.zeros((3, 4), np.uint16), label=1, name="late")
    two = stream(digits, shuffle=True)
    two.load_state_dict(state)
    assert sorted(head + numbers(itertools.islice(two, 8))) == list(range(N))


def test_states_of_other_streams_are_refused(digits: TensorDB) -> None:
    state = stream(digits, shuffle=True).state_dict()
    for other in (stream(digits), stream(digits, shuffle=True, seed=1)):
        with pytest.raises(StateError, match="another `"):
            other.load_state_dict(state)
    with pytest.raises(StateError, match="another `query`"):
        digits.data.find({"dataset": "digits", "label": 1}).stream(batch_size=8, shuffle=True).load_state_dict(state)
    for damaged in ({}, {"format": 9}, {**state, "versions": 3}, {**state, "pass": "x"}, [1]):
        with pytest.raises(StateError):
            stream(digits, shuffle=True).load_state_dict(damaged)  # type: ignore[arg-type]


def test_transform_with_and_without_rng(digits: TensorDB) -> None:
    doubled = next(iter(stream(digits, transform=lambda sample: {"x": sample["image"] * 2})))
    assert list(doubled) == ["x"] and doubled["x"].dtype == np.uint16

    def noisy(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"image": sample["image"], "noise": rng.random(2)}

    whole = list(itertools.islice(stream(digits, transform=noisy, shuffle=True), 26))
    by_sample = dict(zip(numbers(whole[:13]), np.concatenate([batch["noise"] for batch in whole]), strict=False))
    again = stream(digits, transform=noisy, shuffle=True, batch_size=9)
    batches = list(itertools.islice(again, 11))
    for number, noise in zip(numbers(batches), np.concatenate([batch["noise"] for batch in batches]), strict=True):
        assert np.array_equal(noise, by_sample[number])
    assert not np.array_equal(whole[0]["noise"], whole[13]["noise"])


def test_errors_name_sample_and_cause(digits: TensorDB) -> None:
    def bad(sample: dict[str, Any]) -> dict[str, Any]:
        if sample["label"] == 5:
            raise ValueError("too dark")
        return sample

    fifth = digits.data.find({"dataset": "digits", "label": 5}).head(1)[0].id
    batches = iter(stream(digits, transform=bad, batch_size=5))
    next(batches)
    with pytest.raises(SampleError, match=f"'digits', sample {fifth}.*ValueError: too dark"):
        next(batches)
    with pytest.raises(SampleError, match="must return a dict"):
        next(iter(stream(digits, transform=lambda sample: None)))
    with pytest.raises(SampleError, match="the same fields"):
        next(iter(stream(digits, transform=lambda s: s if s["label"] else {"image": s["image"]})))


def test_bad_options(digits: TensorDB) -> None:
    for options in (
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"seed": -1},
        {"passes": 0},
        {"end": "wrap"},
        {"ragged": "no"},
        {"rank": 1},
        {"rank": 4, "world_size": 4},
        {"fields": "image"},
        {"fields": []},
        {"fields": ["label", "label"]},
        {"transform": 3},
    ):
        with pytest.raises(QueryError):
            stream(digits, **options)
    with pytest.raises(QueryError, match="known fields: image, label, name"):
        next(iter(stream(digits, fields=["imge"])))
    with pytest.raises(NotFoundError, match="datasets here: digits"):
        next(iter(digits.data.find({"dataset": "digit"}).stream(batch_size=2)))
    nothing = digits.data.find({"dataset": "digits", "label": 77})
    with pytest.raises(NotFoundError, match="needs samples"):
        next(iter(nothing.stream(batch_size=2)))
    with pytest.raises(NotFoundError, match="needs samples"):
        next(iter(nothing.stream(batch_size=2, shuffle=True)))
    for shuffle in (False, True):
        assert list(nothing.stream(batch_size=2, passes=1, shuffle=shuffle)) == []
    with pytest.raises(QueryError, match="drops everything"):
        next(iter(stream(digits, batch_size=101, end="drop", shuffle=True)))


def test_fields_and_internal_ones(digits: TensorDB) -> None:
    batch = next(iter(stream(digits, fields=["label", "_id", "dataset", "tags"], batch_size=3)))
    assert list(batch) == ["label", "_id", "dataset", "tags"]
    assert batch["dataset"] == ["digits"] * 3 and batch["tags"] == [[], [], []]
    assert digits.data.find({"_id": batch["_id"][2]}).first()["label"] == batch["label"][2]


def test_ragged_batches(db: TensorDB) -> None:
    from tensordb_data import Array

    with db.data.writer("ragged", schema={"x": Array("float32", (None,))}) as writer:
        for size in (3, 3, 2, 0):
            writer.add(x=np.arange(size, dtype=np.float32))
    found = db.data.find({"dataset": "ragged"})
    one, two = found.stream(batch_size=2, passes=1)
    assert one["x"].shape == (2, 3) and [len(x) for x in two["x"]] == [2, 0]
    with pytest.raises(SampleError, match=r"expected float32\[2\].*found float32\[0\]"):
        list(found.stream(batch_size=2, passes=1, ragged="error"))


def test_missing_optional_fields(db: TensorDB) -> None:
    from tensordb_data import Array, Scalar

    schema = {"x": Array("uint8", (2,)), "y": Scalar("int", optional=True), "z": Array("uint8", (1,), optional=True)}
    with db.data.writer("opt", schema=schema) as writer:
        writer.add(x=np.zeros(2, np.uint8), y=1, z=np.ones(1, np.uint8))
        writer.add(x=np.ones(2, np.uint8))
    found = db.data.find({"dataset": "opt"})
    assert [list(batch) for batch in found.stream(batch_size=2, passes=1)] == [["x"]]
    for name in "yz":
        with pytest.raises(SampleError, match=f"has no '{name}'"):
            list(found.stream(batch_size=2, passes=1, fields=["x", name]))


def test_several_datasets_with_different_codecs(db: TensorDB) -> None:
    with db.data.writer("a") as writer:
        writer.add_many(x=np.zeros((3, 2), np.uint8), y=[1, 2, 3])
    with db.data.writer("b") as writer:
        writer.add_many(x=np.ones((2, 2), np.float32), y=[4, 5])
    batches = list(db.data.find({"dataset": {"$in": ["a", "b"]}}).stream(batch_size=5, passes=1))
    assert batches[0]["y"].tolist() == [1, 2, 3, 4, 5]
    assert [x.dtype for x in batches[0]["x"]] == [np.uint8] * 3 + [np.float32] * 2


def left(before: set[threading.Thread]) -> set[threading.Thread]:
    """The threads that are still there when all had time to end what they were doing."""
    new = set(threading.enumerate()) - before
    for thread in new:
        thread.join(60)
    return {thread for thread in new if thread.is_alive()}


def test_an_abandoned_iteration_leaves_no_thread(digits: TensorDB) -> None:
    before = set(threading.enumerate())
    for shuffle in (False, True):
        batches = iter(stream(digits, shuffle=shuffle))
        next(batches)
        del batches
        gc.collect()
        assert not left(before)
        running = stream(digits, shuffle=shuffle)
        for _ in running:
            running.close()
        assert not left(before)


def test_the_older_of_two_iterations_says_that_it_is_over(digits: TensorDB) -> None:
    one = stream(digits)
    old = iter(one)
    next(old)
    next(iter(one))
    with pytest.raises(StateError, match="iterated anew"):
        list(old)


def test_stats_count_what_was_delivered(digits: TensorDB) -> None:
    one = stream(digits, passes=1)
    list(one)
    stats = one.stats()
    assert stats["samples"] == N and stats["batches"] == 13 and stats["bytes"] == N * 24
    assert stats["bottleneck"] in ("index", "fetch", "decode", "transform", "batch", "loop")
    assert stats["advice"].startswith(stats["bottleneck"] + "-bound: ")


def test_element_spec(digits: TensorDB) -> None:
    assert stream(digits).element_spec() == {"image": ("uint16", (3, 4)), "label": ("int64", ()), "name": (None, ())}
    cropped = stream(digits, transform=lambda sample: {"image": sample["image"][:2].astype("f4")})
    assert cropped.element_spec() == {"image": ("float32", (2, 4))}


def test_drawing_with_replacement_and_weights(digits: TensorDB) -> None:
    drawn = numbers(itertools.islice(stream(digits, replacement=True), 26))
    assert len(set(drawn)) < 2 * N and sorted(drawn[:N]) != list(range(N))
    of_three = digits.data.find({"dataset": "digits"}).stream(
        batch_size=50, replacement=True, weights=lambda sample: sample["label"] == 3
    )
    assert set(next(iter(of_three))["label"].tolist()) == {3}
    by_field = stream(digits, batch_size=5000, replacement=True, weights="label", passes=1, fields=["label"])
    labels = np.concatenate([batch["label"] for batch in by_field])
    assert len(labels) == N and 0 not in labels
    first = stream(digits, replacement=True, weights="label", fields=["name"])
    head = [name for batch in itertools.islice(first, 9) for name in batch["name"]]
    rest = stream(digits, replacement=True, weights="label", fields=["name"], batch_size=4)
    rest.load_state_dict(first.state_dict())
    whole = stream(digits, replacement=True, weights="label", fields=["name"], passes=1)
    tail = [name for batch in itertools.islice(rest, 7) for name in batch["name"]]
    assert head + tail == [name for batch in whole for name in batch["name"]]


def test_bad_weights(digits: TensorDB) -> None:
    with pytest.raises(QueryError, match="replacement=True"):
        stream(digits, weights="label", replacement=False)
    for weights, message in (("image", "stored as a blob"), ("colour", "no field"), (lambda s: 0, "all 100 samples")):
        with pytest.raises(QueryError, match=message):
            next(iter(stream(digits, replacement=True, weights=weights)))
    for weights in ("name", lambda s: -1, lambda s: float("nan"), lambda s: s["nam"]):
        with pytest.raises(SampleError, match="weight"):
            next(iter(stream(digits, replacement=True, weights=weights)))
    with pytest.raises(StateError, match="another `replacement`"):
        stream(digits).load_state_dict(stream(digits, replacement=True).state_dict())


def test_padded_batches(db: TensorDB) -> None:
    from tensordb_data import Array

    with db.data.writer("ragged", schema={"x": Array("float32", (None,)), "y": Array("uint8", (None, 2))}) as writer:
        for size in (3, 1, 2, 2):
            writer.add(x=np.full(size, size, np.float32), y=np.full((size, 2), size, np.uint8))
    padded = db.data.find({"dataset": "ragged"}).stream(batch_size=2, passes=1, ragged="pad")
    spec = padded.element_spec()
    one, two = padded
    assert list(one) == list(two) == list(spec) == ["x", "x_lengths", "y", "y_lengths"]
    assert one["x"].tolist() == [[3, 3, 3], [1, 0, 0]] and one["x_lengths"].tolist() == [3, 1]
    assert two["x"].shape == (2, 2) and two["x_lengths"].tolist() == [2, 2]
    assert one["y"].shape == (2, 3, 2) and one["y_lengths"].tolist() == [[3, 2], [1, 2]]
    assert spec["x_lengths"] == ("int64", ()) and spec["y_lengths"] == ("int64", (2,))


def test_bad_samples_within_the_budget_are_skipped_and_logged(
    digits: TensorDB, caplog: pytest.LogCaptureFixture
) -> None:
    def picky(sample: dict[str, Any]) -> dict[str, Any]:
        if sample["label"] == 5:
            raise ValueError("too dark")
        return sample

    for shuffle in (False, True):
        caplog.clear()
        one = stream(digits, transform=picky, shuffle=shuffle, max_failures=10, passes=1)
        batches = list(one)
        assert len(batches) == 13 and sorted(numbers(batches)) == [i for i in range(N) if i % 10 != 5]
        assert one.stats()["skipped"] == 10
        fifth = str(digits.data.find({"dataset": "digits", "label": 5}).head(1)[0].id)
        assert len(caplog.messages) == 10 and any(fifth in text and "too dark" in text for text in caplog.messages)
    with pytest.raises(SampleError, match="bad sample number 10, and max_failures=9 is used up"):
        list(stream(digits, transform=picky, max_failures=9, passes=1))
    assert len(list(stream(digits, transform=picky, max_failures=0.01, passes=1))) == 13
    with pytest.raises(SampleError, match=r"max_failures=0.005 is used up"):
        list(stream(digits, transform=picky, max_failures=0.005, passes=1))
    twice = stream(digits, transform=picky, max_failures=10, passes=2)
    assert len(numbers(twice)) == 180 and twice.stats()["skipped"] == 20, "a sample counts once"
    for budget in (-1, 1.5, True, "3"):
        with pytest.raises(QueryError, match="max_failures"):
            stream(digits, max_failures=budget)


def test_a_batch_without_a_good_sample_costs_neither_the_stream_nor_the_step_of_ranks(digits: TensorDB) -> None:
    bad = {*range(8, 17), *range(96, 100)}  # the second batch, one of the third, and the last batch

    def picky(sample: dict[str, Any]) -> dict[str, Any]:
        if int(sample["image"][0, 0]) // 12 in bad:
            raise ValueError("too dark")
        return sample

    good = [i for i in range(N) if i not in bad]
    one = stream(digits, transform=picky, max_failures=13, passes=1)
    for _ in "12":  # in query order it is left out, and the position moves on behind it
        batches = list(one)
        assert len(batches) == 11 and numbers(batches) == good and one.state_dict()["position"] == 0
    singly = stream(digits, batch_size=1, transform=picky, max_failures=13, passes=1)
    assert numbers(singly) == good
    # A plan is shared by ranks and workers, which count batches: others come in its place.
    ranks = [
        list(stream(digits, batch_size=1, transform=picky, max_failures=13, passes=1, rank=rank, world_size=2))
        for rank in range(2)
    ]
    assert [len(batches) for batches in ranks] == [N // 2] * 2
    both = numbers(itertools.chain(*ranks))
    assert set(both) == set(good) and len(both) == N and set(numbers(ranks[0])) >= {i for i in good if i % 2 == 0}
    with pytest.raises(SampleError, match="bad sample number 13, and max_failures=12 is used up"):
        list(stream(digits, batch_size=1, transform=picky, max_failures=12, passes=1))
    bad.update(range(N))
    with pytest.raises(SampleError, match="max_failures=50 is used up"):
        list(stream(digits, transform=picky, max_failures=50))
    with pytest.raises(SampleError, match="none of the 100 samples"):
        list(stream(digits, transform=picky, max_failures=100, shuffle=True))
    assert list(stream(digits, transform=picky, max_failures=100, passes=1)) == []

"""Moments: whatever the order and the parts in which numbers come, they are those of all numbers together."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data import Feedback, QueryError
from tensordb_data.feedback.moments import Moments, merged, moments_of, no_moments
from tensordb_data.feedback.numbers import sample_ids, sample_numbers
from tensordb_data.feedback.reading import rows_of

IDS = [bytes([n, *([0] * 11)]) for n in range(4)] + [b"\xff" * 12, bytes(11) + b"\x01"]


@given(
    numbers=st.lists(st.tuples(st.integers(0, 5), st.floats(-1e6, 1e6)), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
def test_parts_are_the_whole(numbers: list[tuple[int, float]], cuts: list[int]) -> None:
    ids = np.array([IDS[n] for n, _ in numbers], "S12")
    values = np.array([value for _, value in numbers], np.float64)
    edges = [0, *sorted(min(cut, len(numbers)) for cut in cuts), len(numbers)]
    found = merged([moments_of(ids[a:b], values[a:b]) for a, b in pairwise(edges)])
    there = sorted({n for n, _ in numbers}, key=lambda n: IDS[n])
    assert found.ids.tobytes() == b"".join(IDS[n] for n in there)
    for row, n in enumerate(there):
        own = np.array([value for number, value in numbers if number == n])
        assert found.count[row] == len(own) and found.last[row] == own[-1]
        assert found.mean[row] == pytest.approx(own.mean(), abs=1e-6)
        assert found.value("variance")[row] == pytest.approx(own.var(), rel=1e-9, abs=1e-6)


def test_large_numbers_that_differ_little_keep_their_variance() -> None:
    values = 1e12 + np.array([0.0, 1.0, 2.0, 3.0])
    ids = np.array([IDS[1]] * 4, "S12")
    parts = [moments_of(ids[:1], values[:1]), moments_of(ids[1:], values[1:])]
    assert merged(parts).value("variance")[0] == pytest.approx(1.25)
    assert moments_of(ids, np.full(4, 0.1)).value("variance")[0] == 0
    assert moments_of(ids, np.full(4, 0.1)).mean[0] == 0.1


def test_rows_of_samples() -> None:
    raw = np.frombuffer(b"".join(IDS), np.uint8).reshape(-1, 12)
    found = moments_of(np.array([IDS[4], IDS[0]], "S12"), np.array([1.0, 2.0]))
    assert rows_of(found, raw).tolist() == [0, -1, -1, -1, 1, -1]
    assert rows_of(no_moments(), raw).tolist() == [-1] * 6
    assert isinstance(found, Moments)


def test_ids_and_numbers_that_are_taken() -> None:
    ids = [ObjectId() for _ in range(3)]
    assert sample_ids(ids) == ids and sample_ids(ids) is not ids
    assert sample_ids(tuple(ids)) == sample_ids([str(id) for id in ids]) == sample_ids(np.array(ids, object)) == ids
    assert sample_ids([]) == []
    for given_ in ([1, 2, 3], np.arange(3), [1.5, True, 3], (np.float32(1), 2, 3)):
        taken = sample_numbers("loss", given_, 3)
        assert isinstance(taken, np.ndarray) and taken.dtype == np.float64 and len(taken) == 3
    numbers = np.arange(3.0)
    taken = sample_numbers("loss", numbers, 3)
    numbers[:] = 9
    assert isinstance(taken, np.ndarray) and taken.tolist() == [0, 1, 2]


@pytest.mark.parametrize("ids", ["abc", 5, None, [1, 2, 3], ["a"] * 3, [None], np.zeros((3, 12), np.uint8)])
def test_ids_that_are_none(ids: object) -> None:
    with pytest.raises(QueryError, match=r"ids: expected .*`_id`s of the samples.*found"):
        sample_ids(ids)


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        (np.zeros((3, 1)), r"found shape \(3, 1\)"), (np.zeros(2), r"found shape \(2,\)"), (0.5, "found a float"),
        (np.float64(1), 'reduction="none"'), (["a", "b", "c"], "real numbers"), (np.zeros(3, complex), "complex"),
        (None, "found a NoneType"), ({}, "found a dict"), ([[1], [2, 3], 4], "loss="), ("abc", "found a str"),
        (np.array([None] * 3), "real numbers"),
    ],
)  # fmt: skip
def test_numbers_that_are_none(numbers: object, found: str) -> None:
    with pytest.raises(QueryError, match=found):
        sample_numbers("loss", numbers, 3)


def test_tensors_of_torch() -> None:
    torch = pytest.importorskip("torch")
    for kind in (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.bool):
        tensor = torch.ones(3).to(kind)
        taken = sample_numbers("loss", tensor, 3)
        tensor.zero_()
        assert isinstance(taken, np.ndarray) and taken.tolist() == [1, 1, 1]
    assert isinstance(sample_numbers("loss", torch.ones(3, requires_grad=True) * 2, 3), np.ndarray)
    for wrong in (torch.ones(()), torch.ones(3, 1), torch.ones(3, dtype=torch.complex64)):
        with pytest.raises(QueryError, match="loss="):
            sample_numbers("loss", wrong, 3)


@pytest.mark.parametrize(
    "arguments",
    [("", "loss"), (5, "loss"), ("r", ""), ("r", None), ("r", "x" * 201), ("r", "loss", "median"),
     ("r", "loss", "mean", "1"), ("r", "loss", "mean", float("nan")), ("r", "loss", "mean", True), ("\ud800", "x")],
)  # fmt: skip
def test_a_feedback_that_is_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(QueryError, match=r"found|Found"):
        Feedback(*arguments)  # type: ignore[arg-type]

"""Results: what can be stored is stored, and what cannot be is named."""

from __future__ import annotations

import math
from typing import Any

import bson
import numpy as np
import pytest
import torch

from tensordb_data.jobs.result import storable


class Odd:
    def __array__(self, *args: Any, **more: Any) -> Any:
        raise RuntimeError("it is on a device that is gone")

    shape = (3,)


ENDLESS: list[Any] = []
ENDLESS += [ENDLESS, ENDLESS, 1]
DEEP: Any = 1
for _ in range(200):
    DEEP = {"a": DEEP}
SHARED: Any = [1.0]
for _ in range(60):
    SHARED = [SHARED, SHARED]


@pytest.mark.parametrize(
    ("result", "stored"),
    [
        (None, None),
        (3, 3),
        (np.float32(0.5), 0.5),
        ({"acc": np.float64(0.9), "n": np.int64(3), "ok": np.bool_(True)}, {"acc": 0.9, "n": 3, "ok": True}),
        ({"acc": 0.9, "confusion": np.array([[1, 2], [3, 4]])}, {"acc": 0.9, "confusion": [[1, 2], [3, 4]]}),
        (np.arange(3, dtype=np.uint8), [0, 1, 2]),
        (torch.ones(2, requires_grad=True), [1.0, 1.0]),
        ({"b": torch.ones(2, dtype=torch.bfloat16), "s": torch.tensor(2)}, {"b": [1.0, 1.0], "s": 2}),
        ({0: 0.9, np.int64(1): 0.8, 2.5: 1, None: 2, (1, 2): 3},
         {"0": 0.9, "1": 0.8, "2.5": 1, "None": 2, "(1, 2)": 3}),
        ({"s": np.array(["a", "b"]), "t": (1, 2), "e": np.zeros((0, 3))}, {"s": ["a", "b"], "t": [1, 2], "e": []}),
        ({"big": np.zeros(100_000), "acc": 1}, {"big": [0.0] * 100_000, "acc": 1}),
    ],
)  # fmt: skip
def test_what_is_stored_whole(result: Any, stored: Any) -> None:
    assert storable(result) == (stored, [])


def test_large_arrays_are_kept_apart_and_named_where_they_were() -> None:
    scores, layer, kept = np.arange(50_000), torch.ones(200, 200, dtype=torch.bfloat16), {}
    result = {"acc": 0.9, "scores": scores, "layers": [layer, np.zeros(2)], "words": np.array(["a"] * 20_000)}

    def keep(arrays: dict[str, Any]) -> int:
        kept.update(arrays)
        return 7

    stored, left_out = storable(result, keep)
    assert left_out == [] and kept == {"scores": scores, "layers.0": layer}
    assert stored["scores"] == {"collection": "params", "id": 7, "name": "scores"}
    assert stored["layers"] == [{"collection": "params", "id": 7, "name": "layers.0"}, [0.0, 0.0]]
    assert stored["words"] == ["a"] * 20_000 and stored["acc"] == 0.9

    def fail(arrays: dict[str, Any]) -> int:
        raise OSError("the disk is full")

    stored, left_out = storable(result, fail)
    assert stored["scores"] == scores.tolist() and left_out == [
        "large arrays could not be stored as blobs: the disk is full"
    ]


@pytest.mark.parametrize(
    ("result", "stored", "says"),
    [
        (object(), None, "the result: a object cannot be stored"),
        (np.zeros(10**6), None, "the result: it has no room: a result has 4 MB"),
        ({"acc": 0.9, "x": object()}, {"acc": 0.9}, "x: a object cannot be stored"),
        ({"acc": [0.9, {1, 2}]}, {"acc": [0.9, None]}, "acc.1: a set has no order"),
        ({"a": {"b": Odd()}}, {"a": {}}, "a.b: it is on a device that is gone"),
        ({"$x": 1, "y": 2}, {"y": 2}, "$x: a key is valid text"),
        ({"\ud800": 1, "y": 2}, {"y": 2}, "\\ud800: a key is valid text"),
        ({"t": "\ud800", "y": 2}, {"y": 2}, "not valid Unicode"),
        ({0: "first", "0": "second"}, {"0": "first"}, "0: another key is '0' as a text too"),
        ({"n": 2**64, "u": np.array([2**63], np.uint64)}, {}, "64-bit"),
        ({"z": np.ones(2, complex), "d": np.array(["2024-01-01"], "M8[ns]")}, {}, "d: an array of datetime64"),
        ({"text": "x" * 5_000_000, "curve": [0.5] * 900_000, "acc": 0.9}, {"acc": 0.9}, "curve: it has no room"),
        ({"list": [{"w": np.zeros(10**6), "n": 1}]}, {"list": [{"n": 1}]}, "list.0.w: it has no room"),
        (ENDLESS, [None, None, 1], "0: it holds itself"),
        ({"shared": SHARED, "acc": 1}, {"acc": 1}, "shared: it has no room"),
    ],
)
def test_what_is_left_out_is_named_and_the_rest_is_stored(result: Any, stored: Any, says: str) -> None:
    found, left_out = storable(result)
    assert found == stored and any(says in line for line in left_out), left_out


def test_the_small_come_before_the_large_and_all_of_it_fits() -> None:
    arrays = {f"w{n}": np.random.default_rng(n).normal(size=60_000) for n in range(20)}
    found, left_out = storable({**arrays, "acc": 0.9, "smaller": np.zeros(5_000)})
    assert found["acc"] == 0.9 and len(found["smaller"]) == 5_000 and 2 <= len(found) < 10
    assert len(left_out) == 22 - len(found) and len(bson.encode({"": found})) < 4_100_000


def test_nested_too_deep_and_too_many_to_name() -> None:
    _, left_out = storable(DEEP)
    assert len(left_out) == 1 and "nested deeper than 90 levels" in left_out[0]
    found, left_out = storable({f"x{n}": object() for n in range(1000)} | {"loss": math.inf})
    assert found == {"loss": math.inf} and len(left_out) == 21 and left_out[-1] == "and 980 more"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tensordb_data.errors import QueryError, SampleError
from tensordb_data.tf.dataset import _stacks

SPEC = {"x": tf.TensorSpec([None, 2], tf.float32)}


def batches(*sizes: int) -> Iterator[dict[str, Any]]:
    start = 0
    for size in sizes:
        yield {"x": np.arange(start, start + 2 * size, dtype=np.float32).reshape(size, 2)}
        start += 2 * size


def test_batches_come_out_as_they_went_in() -> None:
    sizes = [4] * 20 + [3] + [4] * 5 + [1, 1, 4]
    out = [batch for stack in _stacks(batches(*sizes), SPEC) for batch in stack["x"]]
    assert len(out) == len(sizes)
    assert all(np.array_equal(a, b["x"]) for a, b in zip(out, batches(*sizes), strict=True))


def test_the_first_batch_waits_for_no_other() -> None:
    def one() -> Iterator[dict[str, Any]]:
        yield from batches(4)
        raise AssertionError("read ahead before the first batch was delivered")

    assert next(_stacks(one(), SPEC))["x"].shape == (1, 4, 2)


def test_large_batches_are_not_gathered() -> None:
    big = {"x": np.zeros((1, 3 << 20), np.uint8)}
    out = list(_stacks(iter([big] * 4), {"x": tf.TensorSpec([None, 3 << 20], tf.uint8)}))
    assert [stack["x"].shape[0] for stack in out] == [1, 1, 1, 1]


def test_text_and_bytes_keep_trailing_zeros() -> None:
    spec = {"t": tf.TensorSpec([None], tf.string)}
    (stack,) = _stacks(iter([{"t": ["é", b"a\0"]}]), spec)
    assert stack["t"].tolist() == [["é", b"a\0"]]


def test_arrays_that_differ_name_the_field_and_the_shapes() -> None:
    with pytest.raises(QueryError, match=r"'x': the arrays of one batch differ in shape \(\[2\] and \[3\]\)"):
        list(_stacks(iter([{"x": [np.zeros(2), np.zeros(3)]}]), SPEC))


def test_a_transform_that_changes_its_shape_names_the_field() -> None:
    with pytest.raises(SampleError, match=r"'x': expected batches of shape \(None, 2\).*found \(4, 5\)"):
        list(_stacks(iter([{"x": np.zeros((4, 5))}]), SPEC))


@pytest.mark.parametrize("values", [[{"a": 1}], [None, "a"]])
def test_values_without_a_tensor_form_name_the_field(values: list[Any]) -> None:
    with pytest.raises(QueryError, match=r"'x': .* values have no tensor form"):
        list(_stacks(iter([{"x": values}]), SPEC))

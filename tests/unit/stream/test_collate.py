"""Values put into a batch as they come make the same batch as values stacked afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.stream.transform.collate import Batch, Column, build_column, slice_batch

SHAPES = st.sampled_from([(), (3,), (2, 3), (0,), (2, 0)])
ARRAYS = st.builds(
    lambda shape, dtype, fill: np.full(shape, fill, dtype),
    SHAPES,
    st.sampled_from(["u1", "<i4", ">i4", "f8", "?", "U3"]),
    st.integers(0, 9),
)
VALUES = st.one_of(ARRAYS, st.integers(0, 9), st.text(max_size=2), st.none())


def batch(column: Column) -> Batch:
    return slice_batch({"x": column}, 0, len(column), "list", str)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        alike = isinstance(one, np.ndarray) and isinstance(other, np.ndarray)
        return alike and one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@given(st.one_of(st.lists(VALUES, min_size=1, max_size=6), ARRAYS.flatmap(lambda a: st.lists(st.just(a), min_size=1))))
def test_a_column_builder_makes_the_batch_that_stacking_makes(values: list[Any]) -> None:
    built, listed = build_column(iter(values), len(values), True), build_column(iter(values), len(values), False)
    assert isinstance(listed, list)
    assert same(batch(built)["x"], batch(listed)["x"])


def test_a_column_builder_keeps_nothing_of_a_buffer_that_is_used_again() -> None:
    buffer = np.zeros(3)

    def values() -> Any:
        for number in range(4):
            buffer[:] = number
            yield buffer

    assert np.asarray(build_column(values(), 4, True))[:, 0].tolist() == [0, 1, 2, 3]

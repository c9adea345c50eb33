"""Shared memory: any value that may travel arrives as it was, and what may not is refused."""

from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np
import pytest
from bson import ObjectId
from bson.int64 import Int64
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tensordb_data.stream.transform.shared_memory import SharedBuffer

ARRAYS = npst.arrays(
    npst.scalar_dtypes() | npst.unicode_string_dtypes() | npst.byte_string_dtypes(),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)
KEYS = st.text(max_size=5) | st.integers() | st.booleans() | st.none()
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary(max_size=4000),
    ARRAYS, ARRAYS.filter(lambda array: array.size > 0).map(lambda array: array.flat[0]),
    st.datetimes(), st.binary(min_size=12, max_size=12).map(ObjectId), st.integers(0, 2**40).map(Int64),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda part: st.one_of(
        st.lists(part, max_size=4), st.lists(part, max_size=4).map(tuple), st.dictionaries(KEYS, part, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def buffer() -> Any:
    made = SharedBuffer.new()
    yield made
    made.close()


@given(st.lists(VALUES, max_size=3))
def test_values_arrive_as_they_were(buffer: SharedBuffer, values: list[Any]) -> None:
    for value in values:  # one after the other, in the same box
        same(buffer.read(buffer.write(value)), value)


def same(found: Any, value: Any) -> None:
    assert type(found) is type(value)
    if isinstance(value, (np.ndarray, np.generic)):
        assert found.dtype == value.dtype and found.shape == value.shape and found.tobytes() == value.tobytes()
    elif isinstance(value, dict):
        assert list(found) == list(value)
        for key in value:
            same(found[key], value[key])
    elif isinstance(value, (list, tuple)):
        assert len(found) == len(value)
        for one, other in zip(found, value, strict=True):
            same(one, other)
    elif isinstance(value, float):
        assert found == value or (math.isnan(found) and math.isnan(value))
    elif isinstance(value, complex):
        same(found.real, value.real)
        same(found.imag, value.imag)
    else:
        assert found == value


def test_arrays_of_any_layout_arrive_in_memory_of_their_own(buffer: SharedBuffer) -> None:
    array = np.arange(24).reshape(2, 3, 4)
    for view in (array.T, array[:, ::2], array[::-1], np.asfortranarray(array), array[1, 1, 1:2].reshape(())):
        found = buffer.read(buffer.write(view))
        assert np.array_equal(found, view) and found.flags.writeable
    first = buffer.read(buffer.write(array))
    buffer.write(np.zeros(24, np.int64))
    assert np.array_equal(first, array)


def test_times_keep_their_zone(buffer: SharedBuffer) -> None:
    zoned = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    assert buffer.read(buffer.write(zoned)) == zoned


@pytest.mark.parametrize("value", [object(), {1, 2}, [np.array([object()])], {(1, 2): 3}, np.zeros(2, "i4,f4"), print])
def test_what_is_no_data_is_refused(buffer: SharedBuffer, value: Any) -> None:
    with pytest.raises(TypeError, match=r"object|set|key|f4|builtin"):
        buffer.write(value)

"""What a transform may return: one rule, with the field and the sample in each error."""

from __future__ import annotations

import enum
from typing import Any

import ml_dtypes
import numpy as np
import PIL.Image
import pytest
import torch

from tensordb_data.errors import SampleError
from tensordb_data.stream.transform.returned import FieldTypes, TableBuilder
from tensordb_data.stream.transform.shared_memory import SharedBuffer


def built(*values: Any) -> Any:
    builder = TableBuilder(len(values), True, "sample {}".format, FieldTypes())
    for value in values:
        builder.add({"x": value})
    return builder.columns()["x"]


class Color(str, enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (torch.ones(2, 3, dtype=torch.bfloat16), ml_dtypes.bfloat16, (2, 3)),
        (torch.ones(2, dtype=torch.float16, requires_grad=True), np.float16, (2,)),
        (torch.ones(2, dtype=torch.float8_e4m3fn), ml_dtypes.float8_e4m3fn, (2,)),
        (torch.ones(2, 3).T, np.float32, (3, 2)),
        (PIL.Image.new("L", (4, 3)), np.uint8, (3, 4)),
        (PIL.Image.new("RGB", (4, 3)), np.uint8, (3, 4, 3)),
        (np.ones((2, 2), ">i4"), np.int32, (2, 2)),
    ],
)
def test_arrays_tensors_and_pictures_become_columns(value: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    column = built(value, value)
    assert isinstance(column, np.ndarray) and column.dtype == dtype and column.shape == (2, *shape)
    assert column.tobytes() == 2 * np.asarray(column[0]).tobytes()


def test_numbers_are_alike_whoever_made_them() -> None:
    assert built(1.5, np.float64(2.5), torch.tensor(3.5, dtype=torch.float64), np.array(4.5)) == [1.5, 2.5, 3.5, 4.5]
    assert built(np.float16(1), np.float16(2)) == [1, 2]
    assert built(Color.RED, "blue", None) == ["red", "blue", None]
    assert built({"a": (torch.ones(1), [np.int64(3)])}) == [{"a": (np.ones(1, np.float32), [3])}]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((np.ma.masked_array([1, 2], [True, False]),), "masked"),
        ((1, 2.0), "expected int64 as for another sample, found float64"),
        ((np.ones(1, np.float32), np.ones(1)), "expected float32 .* found float64"),
        ((1, None), "expected int64 .* found neither a number nor an array"),
        ((2**64,), "fits into int64"),
        ((object(),), "found object"),
        ((np.array([None]),), "expected a dtype of numbers"),
        (({("a",): 1},), "keys of text or numbers"),
    ],
)
def test_what_may_not_be_returned_names_sample_and_field(values: tuple[Any, ...], says: str) -> None:
    with pytest.raises(SampleError, match=rf"sample {len(values) - 1}, field 'x', .*{says}"):
        built(*values)


def test_a_dtype_holds_for_the_batches_of_workers_too() -> None:
    types = FieldTypes()
    types.check_columns({"x": np.ones(2, np.float32), "y": [1, 2]}, "sample {}".format)
    with pytest.raises(SampleError, match=r"sample 1, field 'y', .*expected int64 .* found float64"):
        types.check_columns({"x": np.ones(2, np.float32), "y": [1, 2.0]}, "sample {}".format)


def test_samples_with_other_fields_than_the_first_are_named() -> None:
    builder = TableBuilder(2, True, "sample {}".format, FieldTypes())
    builder.add({"a": 1})
    with pytest.raises(SampleError, match=r"sample 1: the transform returned the fields a, b"):
        builder.add({"a": 1, "b": 2})


def test_bfloat16_goes_through_shared_memory() -> None:
    buffer = SharedBuffer.new()
    sent = np.arange(3).astype(ml_dtypes.bfloat16)
    found = buffer.read(buffer.write([sent, sent[1]]))
    buffer.close()
    assert found[0].dtype == ml_dtypes.bfloat16 and found[0].tolist() == [0, 1, 2] and found[1] == 1

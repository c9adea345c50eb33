from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tensordb_data.errors import CorruptBlobError, SchemaError
from tensordb_data.schema import Array, field_from_doc

NAMES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
    "longdouble", "complex64", "complex128", "clongdouble",
]  # fmt: skip
DTYPES = st.sampled_from([np.dtype(name) for name in NAMES]).flatmap(
    lambda dtype: st.sampled_from([dtype, dtype.newbyteorder(">"), dtype.newbyteorder("<")])
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def arrays(draw: st.DrawFn) -> npt.NDArray[np.generic]:
    """Arrays of any dtype, byte order, shape and bit pattern, contiguous or not."""
    dtype, shape = draw(DTYPES), draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    wide = (*shape[:-1], 2 * shape[-1]) if shape else ()
    raw = rng.integers(0, 256, (*wide, dtype.itemsize), np.uint8)
    if dtype.kind == "b":
        raw &= 1
    if dtype.newbyteorder("=") in (np.dtype("longdouble"), np.dtype("clongdouble")):
        array = rng.standard_normal(wide).astype(dtype)
    else:
        array = raw.reshape(-1).view(dtype).reshape(wide)
    kind = draw(st.sampled_from(["step", "copy", "transposed", "reversed"]))
    array = array[..., ::2] if shape else array
    if kind == "copy":
        return array.copy()
    return array.T if kind == "transposed" else array[::-1] if kind == "reversed" and shape else array


def bits(array: npt.NDArray[np.generic]) -> bytes:
    """The bytes as native C order; equal for NaNs only when their payloads are."""
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    if native.dtype.char not in "gG":
        return native.tobytes()
    # Of the 16 bytes of a long double 6 are padding, and hold anything.
    parts = native.reshape(-1).view(np.longdouble).reshape(-1, 1).view(np.uint8)
    return parts[:, :10].tobytes()


@settings(max_examples=300, deadline=None)
@given(arrays())
def test_round_trip_of_one_value_bit_for_bit(array: npt.NDArray[np.generic]) -> None:
    shapes = [array.shape, None, (None,) * array.ndim]
    for field in [Array(array.dtype.newbyteorder("=").name, shape) for shape in shapes]:
        field.check(array)
        data = bytes(field.encode(array))
        found = field.decode(memoryview(data))
        assert found.shape == array.shape
        assert found.dtype == array.dtype.newbyteorder("=")
        assert found.dtype.isnative
        assert bits(found) == bits(array)
        assert found.flags.writeable
        assert field.fixed_nbytes in (None, len(data))
        assert field_from_doc(field.to_doc()) == field


@settings(max_examples=200, deadline=None)
@given(arrays().filter(lambda array: array.ndim > 0))
def test_round_trip_of_a_column(array: npt.NDArray[np.generic]) -> None:
    field = Array(array.dtype.newbyteorder("=").name, array.shape[1:])
    rows = field.encode_rows(array)
    assert rows is not None
    assert rows.dtype == np.uint8
    assert rows.shape == (len(array), field.fixed_nbytes)
    for row, value in zip(rows, array, strict=True):
        assert bits(field.decode(row.data)) == bits(np.asarray(value))
    found = field.decode_rows(rows.copy())
    assert found.dtype.isnative
    assert found.shape == array.shape
    assert bits(found) == bits(array)


def test_stored_bytes_are_little_endian_c_order() -> None:
    array = np.array([[1, 2], [3, 4]], ">u2").T
    assert bytes(Array("uint16", (2, 2)).encode(array)) == np.array([1, 3, 2, 4], "<u2").tobytes()
    headed = bytes(Array("uint16").encode(array))
    assert headed[0] == 2
    assert np.frombuffer(headed, "<i8", 2, 1).tolist() == [2, 2]


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_small_floats_of_ml_dtypes(name: str) -> None:
    array = np.array([[1, -2, 0.5], [0, 3, -0.25]]).astype(getattr(ml_dtypes, name))
    for shape in ((2, 3), None):
        field = Array(name, shape)
        found = field.decode(field.encode(array))
        assert found.dtype == array.dtype
        assert found.tobytes() == array.tobytes()
    rows = Array(name, (3,)).encode_rows(array)
    assert rows is not None
    assert Array(name, (3,)).decode_rows(rows).tobytes() == array.tobytes()


def test_torch_tensors() -> None:
    for tensor in (
        torch.arange(6, dtype=torch.int16).reshape(2, 3),
        torch.ones(2, 3, requires_grad=True),
        torch.ones(3, 2).T,
        torch.complex(torch.ones(2), torch.ones(2)).conj(),
    ):
        field = Array(str(tensor.dtype).removeprefix("torch."))
        expected = tensor.detach().resolve_conj().numpy()
        assert (field.decode(field.encode(tensor)) == expected).all()
    half = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    assert Array("bfloat16", (2,)).decode(Array("bfloat16", (2,)).encode(half)).astype(float).tolist() == [1.5, -2.0]


def test_python_numbers_and_lists_where_nothing_is_lost() -> None:
    assert Array("float32", (3,)).decode(Array("float32", (3,)).encode([1, 2.5, 3])).tolist() == [1, 2.5, 3]
    assert Array("uint8", (2, 2)).decode(Array("uint8", (2, 2)).encode([[1, 2], [3, 255]])).tolist() == [
        [1, 2],
        [3, 255],
    ]
    assert Array("int64", ()).decode(Array("int64", ()).encode(7)) == 7
    assert Array("float32", (None,)).decode(Array("float32", (None,)).encode([])).shape == (0,)
    for field, value in (
        (Array("uint8", (1,)), [256]),
        (Array("uint8", (1,)), [-1]),
        (Array("int32", (1,)), [1.5]),
        (Array("int32", (2,)), [[1], [2, 3]]),
        (Array("bool", (1,)), [1]),
        (Array("float32", ()), 1j),
        (Array("float32", (1,)), ["x"]),
        (Array("float32", (1,)), [None]),
    ):
        with pytest.raises(SchemaError, match=f"expected {field.dtype}"):
            field.check(value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            Array("uint8", (28, 28)),
            np.zeros((28, 27), np.uint8),
            r"expected uint8 of shape \(28, 28\), found ndarray of uint8 \(28, 27\)",
        ),
        (Array("uint8", (28, 28)), np.zeros((28, 28)), r"expected uint8, found ndarray of float64 \(28, 28\)"),
        (Array("uint8", (None, 3)), np.zeros(3, np.uint8), r"expected uint8 of shape \(None, 3\)"),
        (Array("uint8"), "text", "expected an array, found str 'text'"),
        (Array("uint8"), None, "expected an array, found NoneType None"),
        (Array("float32"), np.array([object()]), "dtype of numbers"),
        (Array("float32"), np.array(["a"]), "dtype of numbers"),
        (Array("float32"), np.array([(1, 2.0)], "i4,f4"), "columns as fields"),
        (Array("float32"), np.array(["2020-01-01"], "datetime64[D]"), "dtype of numbers"),
        (Array("float32"), np.zeros(2, "V4"), "dtype of numbers"),
    ],
)
def test_values_that_do_not_fit(field: Array, value: object, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        field.check(value)
    with pytest.raises(SchemaError, match=message):
        field.encode(value)


def test_columns_that_do_not_fit() -> None:
    with pytest.raises(SchemaError, match=r"column of shape \(n, 2\), found ndarray of uint8 \(3, 4\)"):
        Array("uint8", (2,)).encode_rows(np.zeros((3, 4), np.uint8))
    with pytest.raises(SchemaError, match="expected uint8"):
        Array("uint8", (2,)).encode_rows(np.zeros((3, 2), np.int8))
    with pytest.raises(SchemaError, match="column"):
        Array("uint8", ()).encode_rows(np.uint8(3))
    assert Array("uint8", (None,)).encode_rows(np.zeros((3, 2), np.uint8)) is None
    assert Array("uint8").encode_rows(np.zeros((3, 2), np.uint8)) is None


@pytest.mark.parametrize(
    "dtype",
    ["object", "O", "str", "S5", "U3", "M8[s]", "timedelta64[s]", "i4,f4", "V8", "no such", "float3", "", "bfloat17"],
)
def test_dtypes_that_hold_no_numbers(dtype: str) -> None:
    with pytest.raises(SchemaError, match="dtype"):
        Array(dtype)


def test_dtypes_and_shapes_in_other_spellings() -> None:
    assert Array(">f4", [3, None]) == Array("float32", (3, None))  # type: ignore[arg-type]
    assert Array(np.uint8, 5) == Array("uint8", (5,))  # type: ignore[arg-type]
    assert Array(np.dtype("<i8")) == Array("int64")  # type: ignore[arg-type]
    assert hash(Array("f4", (1,))) == hash(Array("float32", (1,)))
    for shape in ((-1,), (1.5,), "ab", ("3",), (1,) * 65):
        with pytest.raises(SchemaError, match="expected a shape"):
            Array("uint8", shape)  # type: ignore[arg-type]


def test_optional() -> None:
    Array("uint8", optional=True).check(None)
    assert field_from_doc(Array("uint8", (2,), optional=True).to_doc()) == Array("uint8", (2,), optional=True)
    assert Array("uint8", optional=True) != Array("uint8")


def test_element() -> None:
    assert Array("float16", (3, None)).element == ("float16", (3, None))
    assert Array("bool").element == ("bool", None)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_array(data: bytes) -> None:
    for field in (Array("int32"), Array("int32", (None, 2)), Array("int32", (3,))):
        try:
            found = field.decode(data)
        except CorruptBlobError:
            continue
        assert bytes(field.encode(found)) == data


def test_rows_of_another_size() -> None:
    with pytest.raises(CorruptBlobError, match="rows of 12 bytes"):
        Array("int32", (3,)).decode_rows(np.zeros((2, 11), np.uint8))


def test_decode_shares_no_memory() -> None:
    data = bytearray(Array("uint8", (3,)).encode(np.array([1, 2, 3], np.uint8)))
    found = Array("uint8", (3,)).decode(data)
    data[:] = b"\0\0\0"
    assert found.tolist() == [1, 2, 3]


def test_importing_codecs_brings_no_framework() -> None:
    import subprocess

    names = {"torch", "tensorflow", "cv2", "ml_dtypes", "PIL"}
    code = f"import tensordb_data.schema, sys; assert not {names} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import pytest
import torch

from tensordb_data.errors import SampleError
from tensordb_data.torch.convert import to_pinned, to_samples, to_tensors

DTYPES = [
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_without_a_copy(dtype: str) -> None:
    array = np.ones((3, 2), dtype)
    tensor = to_tensors({"x": array})["x"]
    assert tensor.numpy().dtype == array.dtype and tensor.data_ptr() == array.ctypes.data


def test_an_array_that_cannot_be_written_is_copied_without_a_warning() -> None:
    array = np.arange(3)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_tensors({"x": array})["x"][0] = 7
    assert array.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_dtypes_that_numpy_has_from_elsewhere(name: str) -> None:
    array = np.array([[1.5, -2.0], [0.25, 3.0]]).astype(getattr(ml_dtypes, name))
    found = to_tensors({"x": array, "y": [array[0], array[1, 0, ...]]})
    assert found["x"].dtype == found["y"][0].dtype == getattr(torch, name)
    assert found["x"].float().tolist() == array.astype(float).tolist() and found["y"][1].float() == 0.25
    found["x"][0, 0] = 3.0
    assert array[0, 0] == 3.0


def test_lists_stay_lists_and_their_arrays_become_tensors() -> None:
    batch = to_tensors({"name": ["a", "b"], "ragged": [np.zeros(2), np.zeros(3)], "meta": [{"a": 1}, None]})
    assert batch["name"] == ["a", "b"] and batch["meta"] == [{"a": 1}, None]
    assert [tuple(item.shape) for item in batch["ragged"]] == [(2,), (3,)]


def test_a_dtype_that_torch_lacks_names_the_field() -> None:
    with pytest.raises(SampleError, match="'x': PyTorch has no dtype for datetime64"):
        to_tensors({"x": np.zeros(2, "datetime64[s]")})


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_collate_to_the_batch_they_came_from(dtype: str) -> None:
    rows = np.arange(6).reshape(3, 2).astype(dtype)
    batch = to_tensors({"x": rows, "y": np.arange(3).astype(dtype), "name": list("abc")})
    again = torch.utils.data.default_collate(list(to_samples(batch)))
    assert again["name"] == ["a", "b", "c"]
    for name in "xy":
        assert again[name].dtype == batch[name].dtype and torch.equal(again[name], batch[name])


def test_a_dataloader_pins_every_tensor_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    # Pinning itself needs a GPU; which tensors it is asked for does not.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *device: pinned.append(self) or self)
    batch = to_tensors({"image": np.zeros((2, 3)), "wave": [np.ones(1), np.ones(2)], "name": ["a", "b"]})
    again = torch.utils.data._utils.pin_memory.pin_memory(batch)
    assert again.keys() == batch.keys() and again["name"] == ["a", "b"]
    assert [tensor.shape for tensor in pinned] == [(2, 3), (1,), (2,)]


@pytest.fixture
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned memory needs a GPU; what is written to it does not."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda shape, *, dtype, pin_memory: empty(shape, dtype=dtype).fill_(9))


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize("dtype", [*DTYPES, "bfloat16", "float8_e5m2"])
@pytest.mark.parametrize("shape", [(3, 2), (0, 2), ()])
def test_what_goes_into_pinned_memory(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(6).astype(getattr(ml_dtypes, dtype, dtype))[: int(np.prod(shape))].reshape(shape)
    across = np.array([[1, 2], [3, 0]]).astype(array.dtype).T
    found = to_pinned({"x": array, "across": across, "ragged": [array, array], "name": ["a"]})
    for name, tensor in to_tensors({"x": array, "across": across}).items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].tolist() == tensor.tolist() and found[name].is_contiguous()
    assert found["ragged"][1].tolist() == found["x"].tolist() and found["name"] == ["a"]
    assert found["x"].numel() == 0 or found["x"].data_ptr() != array.ctypes.data


@pytest.mark.usefixtures("_no_gpu")
def test_what_torch_lacks_is_not_pinned() -> None:
    assert to_pinned({"x": np.zeros(2, "datetime64[s]")})["x"].dtype.kind == "M"

"""A snapshot is one instant, in memory that is used again, and its layout is safetensors."""

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from tensordb_data.checkpoint.staging import StagingBuffer
from tensordb_data.tensors import safetensors as safetensors_layout
from tensordb_data.tensors.snapshot import view
from tensordb_data.tensors.tree import flatten


def state():
    return {
        "w": torch.randn(300, 7),
        "n": np.arange(10.0)[::2],
        "b": b"bytes",
        "z": torch.empty(0, 3),
        "h": torch.ones(3, dtype=torch.bfloat16),
        "i": 5,
        "s": np.float32(2),
    }


def test_what_changes_afterwards_does_not_change_the_snapshot():
    live = state()
    buffer = StagingBuffer()
    expected = [bytes(data) for data in view(live).data]
    snapshot = buffer.take(flatten(live))
    live["w"].zero_(), live["n"].fill(-1), live["h"].zero_()
    assert [bytes(data) for data in snapshot.data] == expected


def test_memory_is_reused_and_grows():
    buffer = StagingBuffer()
    buffer.reserve(flatten(state()))
    size, memory = buffer.nbytes, buffer._memory
    buffer.take(flatten(state()))
    assert buffer._memory is memory
    smaller = buffer.take(flatten({"w": torch.full((3,), 7.0)}))
    assert buffer._memory is memory and bytes(smaller.data[0]) == np.full(3, 7, "f4").tobytes()
    buffer.take(flatten({"w": torch.randn(3000)}))
    assert buffer.nbytes > size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "bool", "int64", "complex64"])
def test_any_safetensors_reader_opens_the_layout(dtype, tmp_path):
    tensor = torch.randint(0, 2, (4, 5)).to(getattr(torch, dtype))
    flat = flatten({"a": tensor, "e": torch.empty(0, 2), "text": b"xyz"})
    front, offsets = safetensors_layout.header(flat.leaves, {"format": "x"})
    data = b"".join([front, *view({"a": tensor, "e": torch.empty(0, 2), "text": b"xyz"}).data])
    (tmp_path / "x.safetensors").write_bytes(data)
    back = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert back["a"].dtype == tensor.dtype and torch.equal(back["a"].to(torch.complex64), tensor.to(torch.complex64))
    assert back["e"].shape == (0, 2) and bytes(back["text"].tolist()) == b"xyz"
    assert data[offsets[2] :] == b"xyz"


def test_numpy_names_too(tmp_path):
    arrays = {"f": np.ones((2, 2), "<f8"), "swapped": np.ones(3, ">i4")}
    flat = flatten(arrays)
    front, _ = safetensors_layout.header(flat.leaves, {})
    back = safetensors.numpy.load(b"".join([front, *view(arrays).data]))
    assert np.array_equal(back["f"], arrays["f"]) and back["swapped"].view(">i4").tolist() == [1, 1, 1]


def test_what_follows_in_the_object_follows_in_memory_so_that_the_disk_reads_it_there():
    """Scalars between the tensors, as Adam has them, do not tear them apart."""
    tensors = {}
    for number in range(30):
        tensors |= {f"step{number}": torch.ones(1), f"w{number}": torch.ones(100_000 + 4 * number)}
    buffer = StagingBuffer()
    flat = flatten(tensors)
    snapshot = buffer.take(flat)
    large = [(leaf, data) for leaf, data in zip(snapshot.leaves, snapshot.data, strict=True) if leaf.nbytes > 256]
    at = [np.frombuffer(data, np.uint8).ctypes.data for _, data in large]
    front, offsets = safetensors_layout.header([leaf for leaf, _ in large], {"format": "x"}, at[0])
    assert len({(a - o) % 4096 for a, o in zip(at, offsets, strict=True)}) == 1
    assert (at[0] - offsets[0]) % 4096 == 0 and len(front) % 8 == 0

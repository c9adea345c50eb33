"""Files of parameters: what is read from them, what is refused, and that a file is written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tensordb_data.errors import CheckpointError, DuplicateError, NotFoundError, StorageError
from tensordb_data.params.exchange.reading import read_source
from tensordb_data.params.exchange.whole_file import whole_file
from tests.helpers import at_most


def written(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def row(shape: object, low: object, high: object, dtype: object = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [low, high]}


FOUR = '"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
DAMAGED = {
    "nothing": b"",
    "no JSON": b"{]",
    "no object": [1],
    "too deep": b'{"a":' * 100_000,
    "twice": f"{{{FOUR},{FOUR}}}".encode(),
    "outside": {"a": row([8], 0, 8)},
    "before": {"a": row([4], -4, 0)},
    "over another": {"a": row([4], 0, 4), "b": row([4], 0, 4)},
    "a hole": {"a": row([1], 0, 1), "b": row([2], 2, 4)},
    "too few": {"a": row([3], 0, 3)},
    "other size": {"a": row([3], 0, 4)},
    "huge": {"a": row([2**62, 2**62, 2**62], 0, 4)},
    "negative": {"a": row([-2, -2], 0, 4)},
    "a fraction": {"a": row([4.0], 0, 4)},
    "a boolean": {"a": row([True, 4], 0, 4)},
    "no list": {"a": row("4", 0, 4)},
    "unknown": {"a": row([4], 0, 4, "F3")},
    "odd dtype": {"a": row([4], 0, 4, ["U8"])},
    "no row": {"a": 7},
    "metadata": {"a": row([4], 0, 4), "__metadata__": {"x": 1}},
}


@pytest.mark.parametrize("header", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_safetensors_file_is_refused(tmp_path, header):
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        read_source(written(tmp_path / "x.safetensors", header, b"four"))


def test_a_header_that_claims_much_is_not_read(tmp_path):
    path = written(tmp_path / "x.safetensors", {"a": row([4], 0, 4)}, b"four", length=2**60)
    with at_most(1 << 20), pytest.raises(CheckpointError, match="its header claims"):
        read_source(path)


def test_a_torch_file_that_runs_code_or_claims_much_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(3), "x": Evil()}, path)
    with pytest.raises(CheckpointError, match="a pickle may run code"):
        read_source(path)
    assert not (tmp_path / "ran").exists()
    torch.save({"w": torch.zeros(1).expand(10**9)}, path)
    with pytest.raises(CheckpointError, match="not what torch"):
        read_source(path)
    loop: list[object] = [torch.zeros(3)]
    loop.append(loop)
    torch.save(loop, path)
    with pytest.raises(CheckpointError, match="contains itself"):
        read_source(path)
    torch.save({"w": torch.zeros(3).to_sparse()}, path)
    with pytest.raises(CheckpointError, match="sparse"):
        read_source(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match="expected tensors, found none"):
        read_source(path)


def test_what_is_no_file_of_parameters(tmp_path):
    with pytest.raises(NotFoundError):
        read_source(tmp_path / "none")
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"x\.npz cannot be read as tensors"):
        read_source(tmp_path / "x.npz")
    with pytest.raises(CheckpointError, match="expected one of"):
        read_source(tmp_path)
    written(tmp_path / "x.safetensors", {"a": row([4], 0, 4)}, b"four")
    with pytest.raises(CheckpointError, match="names an entry of a file of torch"):
        read_source(tmp_path / "x.safetensors", key="model")
    torch.save({"model": {"w": torch.zeros(3)}, "best": 1}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="no entry 'weights'; it has 'model', 'best'"):
        read_source(tmp_path / "x.pt", key="weights")
    found = read_source(tmp_path / "x.pt", key="model")
    assert [leaf.name for leaf in found.snapshot.leaves] == ["model/w"]
    assert found.left_out == {"['best']": "not in key='model'"}


def sharded(folder: Path, places: object) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_the_index_of_shards_leads_nowhere_else(tmp_path):
    safetensors.torch.save_file({"w": torch.zeros(3)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    absolute = str(tmp_path / "secret.safetensors")
    for name in ("../secret.safetensors", absolute, "..\\secret.safetensors", "..", ".", "", "a\0"):
        with pytest.raises(CheckpointError, match="no file beside it"):
            read_source(sharded(folder, {"w": name}))
    for places in (None, {}, [], {"w": 3}):
        with pytest.raises(CheckpointError, match="expected a weight_map"):
            read_source(sharded(folder, places))
    with pytest.raises(CheckpointError, match=r"names a\.safetensors, which is not there"):
        read_source(sharded(folder, {"w": "a.safetensors"}))
    safetensors.torch.save_file({"v": torch.zeros(3)}, folder / "a.safetensors")
    with pytest.raises(CheckpointError, match="promises 'w'"):
        read_source(sharded(folder, {"w": "a.safetensors"}))
    (folder / "model.safetensors.index.json").write_bytes(b"[" * 100_000)
    with pytest.raises(CheckpointError, match="is not JSON"):
        read_source(folder)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(KeyError), whole_file(path, False) as file:
        file.write(b"half")
        raise KeyError
    assert not list(tmp_path.iterdir())
    with whole_file(path, False) as file:
        file.write(b"one")
    with pytest.raises(DuplicateError, match="overwrite=True"), whole_file(path, False):
        raise AssertionError("begun")
    with pytest.raises(KeyError), whole_file(path, True) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"one"
    with whole_file(path, True) as file:
        file.write(b"two")
    assert path.read_bytes() == b"two" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(DuplicateError), whole_file(tmp_path / "y", False) as file:
        (tmp_path / "y").write_bytes(b"of another")
    assert (tmp_path / "y").read_bytes() == b"of another" and len(list(tmp_path.iterdir())) == 2
    for bad in (tmp_path, tmp_path / "no" / "x", tmp_path / "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(StorageError), whole_file(bad, False):
            raise AssertionError("begun")


def test_what_a_killed_writer_has_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    left = tmp_path / ".old.pt.4711-0123456789ab.part"
    others = [tmp_path / ".old.pt.part", tmp_path / "a.1-0123456789ab.part"]
    for path in (left, *others):
        path.write_bytes(b"half")
    with whole_file(tmp_path / "x", False) as file:
        assert not left.exists()
        with whole_file(tmp_path / "y", False) as other:
            other.write(b"y")
        file.write(b"x")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "x": b"x", "y": b"y", **{path.name: b"half" for path in others},
    }  # fmt: skip

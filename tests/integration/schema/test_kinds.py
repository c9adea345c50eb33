"""Every kind of value, from every kind of store, through every way in which it is read."""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

from tensordb_data import Array, Bytes, Image, Scalar, Selection, TensorDB, Text
from tensordb_data.errors import SampleError
from tensordb_data.torch import QueryDataset

pytestmark = pytest.mark.usefixtures("s3_service")  # started before the census of what a test leaves behind

N, LARGE = 23, 20_000_000
SCHEMA = {
    "deep": Image(dtype="uint16"), "wave": Array("float16", (None, 2)), "point": Array("complex64", ()),
    "half": Array(ml_dtypes.bfloat16, (3,)), "phase": Array("complex128", (2,)), "flag": Array("bool", ()),
    "empty": Array("int8", (0, 3)), "mask": Array("bool", (5,)), "volume": Array("int64", (2, 1, 3)), "blob": Bytes(),
    "nothing": Bytes(), "nested": Scalar("json"), "story": Text(), "number": int, "ratio": float, "good": bool,
    "title": str,
    "rank": Scalar("int", optional=True), "note": Text(optional=True),
}  # fmt: skip


@cache
def sample(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "deep": rng.integers(0, 1 << 16, (4 + number % 3, 6), np.uint16),
        "wave": rng.normal(size=(number % 4, 2)).astype(np.float16),
        "point": np.array(number - 2j, np.complex64),
        "half": rng.normal(size=3).astype(ml_dtypes.bfloat16),
        "phase": rng.normal(size=2) * 1j,
        "flag": np.array(number % 2 == 0),
        "empty": np.empty((0, 3), np.int8),
        "mask": rng.integers(0, 2, 5).astype(bool),
        "volume": rng.integers(-(1 << 62), 1 << 62, (2, 1, 3)),
        "blob": rng.bytes(LARGE if number == 11 else 1 if number % 2 else 1 + number * 999),
        "nothing": b"",
        "nested": {"at": [number, None, {"x": [0.5] * (number % 3)}], "of": {"№": str(number)}},
        "story": "" if number == 3 else "жизнь 生命 \U0001f9ec\n" * number,
        "number": number, "ratio": number / 7, "good": number % 3 == 0, "title": f"№ {number} \U0001f600",
    }  # fmt: skip


@pytest.fixture(params=["files", "s3", "gridfs"])
def kinds(request: pytest.FixtureRequest, mongo_uri: str, warehouse_dir: Path) -> Any:
    blobs = {"files": f"file://{warehouse_dir}/blobs", "gridfs": "gridfs://"}
    url = blobs.get(request.param) or request.getfixturevalue("s3") + "/blobs"
    with TensorDB(mongo_uri, blobs=url, cache=str(warehouse_dir / "cache")) as db:
        with db.data.writer("kinds", schema=SCHEMA, compression="zstd") as writer:
            for number in range(N):
                values = sample(number)
                out = io.BytesIO()
                PIL.Image.fromarray(values["deep"]).save(out, "PNG")
                more = {} if number % 4 == 0 else {"rank": number, "note": f"note {number}"}
                writer.add(**{**values, "deep": out.getvalue(), **more})
        yield db.data.find({"dataset": "kinds"})


def same(found: Any, expected: Any) -> bool:
    if not isinstance(expected, (np.ndarray, bool, int, float)):
        return bool(found == expected)
    if isinstance(found, torch.Tensor) and found.dtype == torch.bfloat16:
        found = found.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    found, wanted = np.asarray(found), np.asarray(expected)
    return found.dtype == wanted.dtype and found.shape == wanted.shape and found.tobytes() == wanted.tobytes()


def check(samples: Iterable[dict[str, Any]]) -> list[int]:
    """Compares each with what was written; their numbers."""
    numbers = []
    for found in samples:
        numbers.append(int(found["number"]))
        expected = sample(numbers[-1])
        assert found.keys() == expected.keys()
        assert not [name for name, value in expected.items() if not same(found[name], value)]
    return numbers


def rows(batches: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for batch in batches:
        for row in range(len(batch["number"])):
            yield {name: column[row] for name, column in batch.items()}


def alone(samples: list[dict[str, Any]]) -> dict[str, Any]:
    (one,) = samples
    return one


def test_streams_and_loaders(kinds: Selection[Any], request: pytest.FixtureRequest) -> None:
    assert check(rows(kinds.stream(batch_size=5, passes=1))) == list(range(N))
    for seed in (1, 99):
        shuffled = check(rows(kinds.stream(batch_size=4, passes=1, shuffle=True, seed=seed)))
        assert sorted(shuffled) == list(range(N)) != shuffled
    # A process that has used an object store can have no forks; workers of a forkserver take seconds to begin.
    far = request.node.callspec.params["kinds"] == "s3"
    context, of_samples = ("forkserver", (0,)) if far else ("fork", (0, 2))
    for workers in (0, 2):
        by_batch = DataLoader(
            QueryDataset(kinds, batch_size=3, passes=1, shuffle=True, seed=99), batch_size=None,
            num_workers=workers, multiprocessing_context=context if workers else None,
        )  # fmt: skip
        assert check(rows(by_batch)) == shuffled
    for workers in of_samples:
        by_sample = DataLoader(
            QueryDataset(kinds, passes=1), batch_size=1, collate_fn=alone,
            num_workers=workers, multiprocessing_context=context if workers else None,
        )  # fmt: skip
        assert sorted(check(by_sample)) == list(range(N))


@pytest.mark.parametrize("field", ["wave", "deep"])
def test_shapes_that_vary(kinds: Selection[Any], field: str) -> None:
    for transform in (None, dict):
        options: dict[str, Any] = {"batch_size": 4, "passes": 1, "fields": [field, "number"], "transform": transform}
        for batch in kinds.stream(**options):
            assert isinstance(batch[field], list)
        lengths = f"{field}_lengths"
        for each in rows(kinds.stream(**options, ragged="pad")):
            expected = sample(int(each["number"]))[field]
            high, wide = each[lengths]
            assert (high, wide) == expected.shape and same(each[field][:high, :wide], expected)
            assert not each[field][high:].any()
        with pytest.raises(SampleError, match=f"field '{field}': expected .* as in the rest of the batch"):
            list(kinds.stream(**options, ragged="error"))


def test_optional_fields(kinds: Selection[Any]) -> None:
    for shuffle in (False, True):
        few = kinds.db.data.find({"dataset": "kinds", "rank": {"$ne": None}})
        found = list(rows(few.stream(batch_size=4, passes=1, shuffle=shuffle, fields=["number", "rank", "note"])))
        assert sorted(int(each["number"]) for each in found) == [n for n in range(N) if n % 4]
        assert all(each["rank"] == each["number"] and each["note"] == f"note {each['rank']}" for each in found)
        for name in ("rank", "note"):
            with pytest.raises(SampleError, match=f"has no '{name}'"):
                list(kinds.stream(batch_size=4, passes=1, shuffle=shuffle, fields=[name]))


def test_tf_data_has_static_specs_and_padded_values(kinds: Selection[Any]) -> None:
    tf = pytest.importorskip("tensorflow")
    from tensordb_data.tf import query_dataset

    names = [name for name in SCHEMA if name not in ("rank", "note", "deep", "nested")]
    dataset = query_dataset(kinds, batch_size=4, passes=1, ragged="pad", fields=names)
    spec = dataset.element_spec
    assert spec["wave"] == tf.TensorSpec([None, None, 2], tf.float16)
    assert spec["wave_lengths"] == tf.TensorSpec([None, 2], tf.int64)
    assert spec["point"] == tf.TensorSpec([None], tf.complex64) and spec["blob"] == tf.TensorSpec([None], tf.string)
    assert spec["half"] == tf.TensorSpec([None, 3], tf.bfloat16) and spec["flag"] == tf.TensorSpec([None], tf.bool)
    assert spec["empty"] == tf.TensorSpec([None, 0, 3], tf.int8) and spec["good"] == tf.TensorSpec([None], tf.bool)
    found = []
    for batch in dataset.as_numpy_iterator():
        for each in rows([batch]):
            high, wide = each.pop("wave_lengths")
            assert not each["wave"][high:].any()
            each["wave"] = each["wave"][:high, :wide]
            found.append({**each, "story": each["story"].decode(), "title": each["title"].decode()})
    left_out = ({name: sample(int(each["number"]))[name] for name in ("deep", "nested")} for each in found)
    assert check({**each, **more} for each, more in zip(found, left_out, strict=True)) == list(range(N))

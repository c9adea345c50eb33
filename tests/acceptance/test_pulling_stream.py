"""The section "A pulling stream, with no epochs" of the interface, as a user writes it."""

from __future__ import annotations

import itertools
import json

import albumentations
import numpy as np
import pytest

from tensordb_data import TensorDB, mix

N = 600


@pytest.fixture
def db_with_fashion(db: TensorDB) -> TensorDB:
    rng = np.random.default_rng(0)
    with db.data.writer("fashion") as w:
        w.add_many(image=rng.integers(0, 255, (N, 28, 28), np.uint8), label=np.arange(N) % 10, split="train")
    return db


def test_endless_shuffled_batches(db_with_fashion: TensorDB) -> None:
    sel = db_with_fashion.data.find({"dataset": "fashion", "split": "train"})
    stream = sel.stream(batch_size=256, fields=["image", "label"], shuffle=True, seed=0)
    for number, batch in enumerate(stream):
        assert list(batch) == ["image", "label"]
        assert batch["image"].dtype == np.uint8 and batch["image"].shape[1:] == (28, 28)
        assert batch["label"].dtype == np.int64
        if number == 10:
            break


def test_one_pass_in_query_order(db_with_fashion: TensorDB) -> None:
    sel = db_with_fashion.data.find({"dataset": "fashion", "label": {"$in": [0, 1]}})
    batches = list(sel.stream(batch_size=64, passes=1))
    assert np.concatenate([batch["label"] for batch in batches]).tolist() == [0, 1] * (N // 10)


def test_transforms(db_with_fashion: TensorDB) -> None:
    sel = db_with_fashion.data.find({"dataset": "fashion"})
    pipeline = albumentations.Compose([albumentations.HorizontalFlip(p=0.5)])
    flipped, plain = (next(iter(sel.stream(batch_size=64, transform=transform))) for transform in (pipeline, None))
    same = (flipped["image"] == plain["image"]).all(axis=(1, 2))
    mirrored = (flipped["image"] == plain["image"][:, :, ::-1]).all(axis=(1, 2))
    assert (same | mirrored).all() and same.any() and mirrored.any()
    noisy = sel.stream(batch_size=64, transform=lambda sample, rng: {**sample, "noise": rng.normal()})
    assert np.array_equal(next(iter(noisy))["noise"], next(iter(sel.stream(**_options(noisy))))["noise"])


def _options(stream: object) -> dict[str, object]:
    spec = stream.spec  # type: ignore[attr-defined]
    return {"batch_size": spec.batch_size, "transform": spec.transform}


def test_exact_resume(db_with_fashion: TensorDB) -> None:
    sel = db_with_fashion.data.find({"dataset": "fashion"})
    stream = sel.stream(batch_size=64, shuffle=True, seed=3)
    list(itertools.islice(stream, 7))
    state = json.loads(json.dumps(stream.state_dict()))
    assert len(json.dumps(state)) < 1000
    resumed = sel.stream(batch_size=64, shuffle=True, seed=3)
    resumed.load_state_dict(state)
    for ours, theirs in itertools.islice(zip(resumed, stream, strict=False), 9):
        assert np.array_equal(ours["image"], theirs["image"])


def test_a_with_block_ends_the_iteration_and_keeps_the_position(db_with_fashion: TensorDB) -> None:
    sel = db_with_fashion.data.find({"dataset": "fashion"})
    with sel.stream(batch_size=8, shuffle=True) as stream:
        batches = iter(stream)
        next(batches)
    assert list(batches) == [] and stream.state_dict()["position"] == 8
    with mix([(stream, 1.0)], seed=0) as mixed:
        assert len(next(iter(mixed))["label"]) == 8


def test_ranks(db_with_fashion: TensorDB) -> None:
    sel = db_with_fashion.data.find({"dataset": "fashion"})
    parts = [
        list(sel.stream(batch_size=32, shuffle=True, passes=1, rank=rank, world_size=4, end="drop"))
        for rank in range(4)
    ]
    assert [len(part) for part in parts] == [4] * 4
    assert all(len(batch["label"]) == 32 for part in parts for batch in part)


def test_stats(db_with_fashion: TensorDB) -> None:
    stream = db_with_fashion.data.find({"dataset": "fashion"}).stream(batch_size=64, passes=1)
    list(stream)
    stats = stream.stats()
    assert stats["samples"] == N and stats["samples_per_second"] > 0 and stats["bytes"] == N * 784
    assert stats["bottleneck"]

"""Albumentations pipelines: fields by name, and the same augmentation of a sample however the work is divided."""

from __future__ import annotations

import itertools
import os
from typing import Any

import albumentations as A
import numpy as np
import pytest

from tensordb_data import TensorDB
from tensordb_data.errors import SampleError
from tensordb_data.stream.deliver.stream import Stream

N = 60


@pytest.fixture
def photos(db: TensorDB) -> TensorDB:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (N, 16, 16, 3), np.uint8)
    with db.data.writer("photos") as writer:
        writer.add_many(image=images, mask=images[..., 0] // 128, label=np.arange(N))
    return db


PIPELINE = A.Compose([A.HorizontalFlip(p=0.5), A.RandomCrop(12, 12), A.RandomBrightnessContrast(p=0.8)])


def augmented(stream: Stream, samples: int) -> dict[tuple[int, int], np.ndarray[Any, Any]]:
    """The augmented image by (appearance, label)."""
    seen: dict[int, int] = {}
    found = {}
    for batch in stream:
        for image, label in zip(batch["image"], batch["label"].tolist(), strict=True):
            found[seen.setdefault(label, 0), label] = image
            seen[label] += 1
        if len(found) >= samples:
            return found
    raise AssertionError("the stream ended")


def test_a_sample_is_augmented_alike_for_any_batch_size_threads_and_ranks(
    photos: TensorDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(**options: Any) -> Stream:
        return photos.data.find({"dataset": "photos"}).stream(shuffle=True, transform=PIPELINE, **options)

    expected = augmented(stream(batch_size=4), 2 * N)
    assert len(expected) == 2 * N
    assert any(not np.array_equal(expected[0, label], expected[1, label]) for label in range(N))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for other in (stream(batch_size=10), stream(batch_size=3)):
        assert other.stats()["threads"] == 8
        again = augmented(other, 2 * N)
        assert all(np.array_equal(image, again[key]) for key, image in expected.items())
    ranked = {}
    for rank in range(3):
        ranked.update(augmented(stream(batch_size=5, rank=rank, world_size=3), N // 3))
    assert all(np.array_equal(ranked[key], expected[key]) for key in ranked if key[0] == 0)


def test_masks_move_with_their_images_and_other_fields_stay(photos: TensorDB) -> None:
    stream = photos.data.find({"dataset": "photos"}).stream(batch_size=N, transform=PIPELINE, passes=1)
    (batch,) = stream
    plain = A.Compose([A.HorizontalFlip(p=0.5), A.RandomCrop(12, 12)])
    (moved,) = photos.data.find({"dataset": "photos"}).stream(batch_size=N, transform=plain, passes=1)
    assert np.array_equal(moved["image"][..., 0] // 128, moved["mask"])
    assert batch["label"].tolist() == list(range(N)) and batch["mask"].shape == (N, 12, 12)


def test_the_global_generators_are_left_alone(photos: TensorDB) -> None:
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    next(iter(photos.data.find({"dataset": "photos"}).stream(batch_size=N, transform=PIPELINE)))
    assert np.random.random() == expected


def test_a_pipeline_that_fails_names_the_sample(photos: TensorDB) -> None:
    too_large = A.Compose([A.RandomCrop(99, 99)])
    first = photos.data.find({"dataset": "photos"}).head(1)[0].id
    with pytest.raises(SampleError, match=f"sample {first}: the transform raised"):
        next(iter(photos.data.find({"dataset": "photos"}).stream(batch_size=2, transform=too_large)))


def test_a_stateful_callable_is_copied_for_each_thread(photos: TensorDB) -> None:
    class Scratch:
        """Unsafe to share: works on a buffer of its own."""

        def __init__(self) -> None:
            self.buffer = np.zeros((16, 16, 3), np.int64)

        def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
            self.buffer[:] = 0
            for _ in range(3):
                self.buffer += sample["image"]
            return {"image": self.buffer.copy(), "label": sample["label"]}

    scratch = Scratch()
    plain = photos.data.find({"dataset": "photos"}).stream(batch_size=N, passes=1)
    changed = photos.data.find({"dataset": "photos"}).stream(batch_size=2, passes=1, transform=scratch)
    expected = next(iter(plain))["image"].astype(np.int64) * 3
    assert np.array_equal(np.concatenate([batch["image"] for batch in changed]), expected)
    assert not scratch.buffer.any()


def test_random_numbers_of_a_sample_do_not_depend_on_the_division(photos: TensorDB) -> None:
    def noise(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"label": sample["label"], "noise": rng.integers(0, 2**62)}

    def drawn(batch_size: int) -> list[int]:
        stream = photos.data.find({"dataset": "photos"}).stream(batch_size=batch_size, shuffle=True, transform=noise)
        values = (value for batch in stream for value in batch["noise"].tolist())
        return list(itertools.islice(values, 3 * N))

    whole = drawn(7)
    assert whole == drawn(64) and len(set(whole)) == 3 * N

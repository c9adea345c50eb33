"""Transforms of torchvision v2, Kornia and albumentations: what each field is to them, and which are refused."""

from __future__ import annotations

import os
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch

from tensordb_data import Array, TensorDB
from tensordb_data.errors import QueryError
from tensordb_data.torch import QueryDataset, VisionTransform
from tests import vision_pipelines
from tests.vision import tv_tensors, v2

N, H, W = 24, 8, 10
FLIP = v2.RandomHorizontalFlip(p=1.0)


@pytest.fixture
def photos(db: TensorDB) -> TensorDB:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (N, H, W, 3), np.uint8)
    schema = {
        "image": Array("uint8", (H, W, 3)), "mask": Array("uint8", (H, W)), "boxes": Array("float32", (None, 4)),
        "cls": Array("int64", (None,)), "label": int,
    }  # fmt: skip
    with db.data.writer("photos", schema=schema) as writer:
        for row, image in enumerate(images):
            boxes = np.array([[1, 1, 4, 4], [2, 2, 5, 5]], np.float32)[: 1 + row % 2]
            writer.add(image=image, mask=image[..., 0] // 128, boxes=boxes, cls=np.arange(len(boxes)), label=row)
    return db


def first(db: TensorDB, transform: Any, dataset: str = "photos", **options: Any) -> dict[str, Any]:
    return next(iter(db.data.find({"dataset": dataset}).stream(batch_size=N, transform=transform, **options)))


def test_images_masks_and_boxes_move_together(photos: TensorDB) -> None:
    plain = first(photos, None)
    batch = first(photos, v2.Compose([FLIP, v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)]))
    expected = plain["image"][:, :, ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255
    assert batch["image"].dtype == np.float32 and np.allclose(batch["image"], expected)
    assert np.array_equal(batch["mask"], plain["mask"][..., ::-1]) and batch["mask"].dtype == np.uint8
    assert batch["boxes"][1].tolist() == [[6, 1, 9, 4], [5, 2, 8, 5]]
    assert batch["label"].tolist() == list(range(N)) and batch["cls"][1].tolist() == [0, 1]


def test_a_sample_is_augmented_alike_in_threads_workers_and_ranks(
    photos: TensorDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = photos.data.find({"dataset": "photos"})

    def images(batch_size: int, **options: Any) -> dict[int, Any]:
        made = selection.stream(
            batch_size=batch_size, fields=["image", "mask", "label"], shuffle=True, passes=1,
            **{"transform": vision_pipelines.PIPELINE, **options},
        )  # fmt: skip
        return {
            label: (image.tobytes(), mask.tobytes())
            for batch in made
            for label, image, mask in zip(batch["label"].tolist(), batch["image"], batch["mask"], strict=True)
        }

    torch.manual_seed(0)
    state = torch.get_rng_state()
    expected = images(N)
    assert len(set(expected.values())) == N and torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    torch.manual_seed(1)
    assert images(3) == expected
    assert images(5, transform="tests.vision_pipelines:PIPELINE", workers=1) == expected
    assert images(4, rank=0, world_size=2) | images(4, rank=1, world_size=2) == expected


def test_fields_of_other_names_are_what_targets_says(db: TensorDB) -> None:
    schema = {"photo": Array("float32"), "bboxes": Array("float32", (None, 4)), "depth": Array("float32", (H, W))}
    depth = np.arange(H * W, dtype=np.float32).reshape(H, W)
    with db.data.writer("other", schema=schema) as writer:
        writer.add(photo=np.ones((H, W), np.float32), bboxes=[[1, 1, 3, 3]], depth=depth)
    with pytest.raises(QueryError, match=r"'bboxes' may be boxes or points.*VisionTransform\(transform, targets="):
        first(db, FLIP, "other")
    with pytest.raises(QueryError, match="field 'bbox', which the stream does not deliver"):
        first(db, VisionTransform(FLIP, {"bbox": "boxes"}), "other")
    with pytest.raises(QueryError, match="'bboxes' is 'box'; expected image, mask"):
        VisionTransform(FLIP, {"bboxes": "box"})
    seen: list[str] = []

    def named(sample: dict[str, Any]) -> dict[str, Any]:
        seen.extend(type(value).__name__ for value in sample.values())
        return dict(FLIP(sample))

    batch = first(db, VisionTransform(named, {"bboxes": "boxes:xywh", "depth": None}), "other", passes=1)
    assert seen == ["Image", "BoundingBoxes", "Tensor"] and batch["bboxes"].tolist() == [[[6, 1, 3, 3]]]
    assert batch["photo"].shape == (1, 1, H, W) and batch["depth"][0, 0, 1] == 1


def test_what_would_change_nothing_is_refused_as_the_stream_is_made(photos: TensorDB) -> None:
    selection = photos.data.find({"dataset": "photos"})
    with pytest.raises(QueryError, match=r"see none of the fields cls, label: an image is"):
        selection.stream(batch_size=4, fields=["cls", "label"], transform=FLIP)
    with pytest.raises(QueryError, match=r"none of the fields label: name one `image`"):
        QueryDataset(selection, fields=["label"], transform=A.HorizontalFlip())
    import torchvision.transforms as v1

    with pytest.raises(QueryError, match=r"use torchvision\.transforms\.v2\.RandomHorizontalFlip"):
        selection.stream(batch_size=4, transform=v1.RandomHorizontalFlip())
    # A dataset that does not exist yet is looked at when it does.
    photos.data.find({"dataset": "later"}).stream(batch_size=4, transform=FLIP)


def test_kornia_moves_the_fields_of_a_sample_together(photos: TensorDB) -> None:
    from kornia import augmentation as K

    plain = first(photos, None)
    batch = first(photos, K.AugmentationSequential(K.RandomHorizontalFlip(p=1.0)))
    expected = plain["image"][:, :, ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255
    assert batch["image"].shape == (N, 3, H, W) and np.allclose(batch["image"], expected, atol=1e-4)
    assert np.array_equal(batch["mask"], plain["mask"][..., ::-1]) and batch["mask"].dtype == np.uint8
    assert np.allclose(batch["boxes"][0], [[5, 1, 8, 4]])
    random = K.AugmentationSequential(K.RandomHorizontalFlip(), K.ColorJiggle(0.3, 0.3, 0.3, 0.3, p=1.0))
    one, other = first(photos, random), first(photos, random)
    assert np.array_equal(one["image"], other["image"])
    assert len({mask.tobytes() == flat.tobytes() for mask, flat in zip(one["mask"], plain["mask"], strict=True)}) == 2
    with pytest.raises(QueryError, match="RandomHorizontalFlip of Kornia takes one batch"):
        first(photos, K.RandomHorizontalFlip())


def test_boxes_and_their_labels_go_through_albumentations(photos: TensorDB) -> None:
    with photos.data.writer("coco", schema={
        "image": Array("uint8", (H, W, 3)), "bboxes": Array("float32", (None, 4)), "cls": Array("int64", (None,)),
    }) as writer:  # fmt: skip
        writer.add(image=np.zeros((H, W, 3), np.uint8), bboxes=[[1, 1, 4, 4]], cls=[7])
    with pytest.raises(QueryError, match=r"field 'bboxes', which this pipeline .* bbox_params=A.BboxParams"):
        first(photos, A.Compose([A.HorizontalFlip(p=1.0)]), "coco")
    alone = first(photos, A.Compose([A.RandomBrightnessContrast(p=1.0)]), "coco", passes=1)
    assert alone["bboxes"].tolist() == [[[1, 1, 4, 4]]]
    params = A.BboxParams(format="pascal_voc", label_fields=["cls"])
    batch = first(photos, A.Compose([A.HorizontalFlip(p=1.0)], bbox_params=params), "coco", passes=1)
    assert np.allclose(batch["bboxes"], [[[6, 1, 9, 4]]]) and batch["cls"].tolist() == [[7]]
    missing = A.Compose([A.HorizontalFlip()], bbox_params=A.BboxParams(format="coco", label_fields=["kind"]))
    with pytest.raises(QueryError, match="label field 'kind'"):
        first(photos, missing, "coco")

"""Kornia: an `AugmentationSequential` is called with all images, masks, boxes and keypoints of a sample at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordb_data.errors import QueryError
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.transform.libraries.field_targets import BY_SHAPE, field_targets, looks_like_image
from tensordb_data.stream.transform.libraries.library import Function, Library, Sample, Targets, comes_from, made_of
from tensordb_data.stream.transform.libraries.torchvision import channels_first, mask_tensor, tensor

_KEYS = {
    "image": "input", "mask": "mask", "boxes": "bbox_xyxy", "boxes:xywh": "bbox_xywh", "keypoints": "keypoints",
}  # fmt: skip


class Kornia(Library):
    """An `AugmentationSequential`. Images of uint8 become float32 from 0 to 1; masks keep their dtype.

    It draws from PyTorch's generator, which `KeyedRandom` stands in for.
    """

    def __init__(self, function: Function, targets: Mapping[str, str | None]) -> None:
        super().__init__(function, targets)
        if not any(base.__name__ == "AugmentationSequential" for base in type(function).__mro__):
            raise QueryError(
                f"{type(function).__name__} of Kornia takes one batch of images, and a sample is a dict of fields: put"
                " it into kornia.augmentation.AugmentationSequential(...), which is called with all fields of a sample"
            )

    def targets(self, layout: FieldLayout) -> Targets:
        found = field_targets(layout, self.given)
        for name, kind in found.items():
            if kind not in _KEYS and kind != BY_SHAPE:
                raise QueryError(f"Kornia has no {kind}: store the boxes of {name!r} as XYXY, or convert them before")
        # The first one is the image, from which Kornia takes the size.
        return dict(sorted(found.items(), key=lambda item: item[1] not in ("image", BY_SHAPE)))

    def call(self, function: Function, sample: Sample, key: int, targets: Targets) -> Any:
        names, values, keys = [], [], []
        for name, kind in targets.items():
            value = sample[name]
            if kind == BY_SHAPE and not looks_like_image(value):
                continue
            keys.append(_KEYS["image" if kind == BY_SHAPE else kind])
            names.append(name)
            values.append(_batch_of_one(name, keys[-1], value))
        results = function(*values, data_keys=keys)
        results = results if isinstance(results, (list, tuple)) else [results]
        made = dict(sample)
        for name, kind, result in zip(names, keys, results, strict=True):
            single = result[0]
            if kind == "mask":
                mask = tensor(sample[name])
                single = (single[0] if mask.ndim == 2 else single).to(mask.dtype)
            made[name] = single
        return made


def is_kornia(function: Function) -> bool:
    """Whether a transform is one of Kornia, or made of such."""
    return comes_from(function, "kornia") or made_of(function, "kornia")


def _batch_of_one(name: str, key: str, value: Any) -> Any:
    if key == "input":
        image = channels_first(value)
        return (image.float() / 255 if not image.is_floating_point() else image)[None].contiguous()
    if key == "mask":
        mask = mask_tensor(name, value).float()
        return (mask[None] if mask.ndim == 2 else mask)[None].contiguous()
    return tensor(value).float()[None]

"""torchvision v2: fields become tv_tensors of [c, h, w], and what the transform returns is delivered as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tensordb_data.errors import QueryError, SampleError
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.transform.libraries.field_targets import BY_SHAPE, field_targets, looks_like_image
from tensordb_data.stream.transform.libraries.library import (
    Function,
    Library,
    Sample,
    Targets,
    comes_from,
    made_of,
    parts,
)

_V2 = "torchvision.transforms.v2"


class TorchVision(Library):
    """A transform of torchvision v2, or a function that takes a dict of tv_tensors.

    It draws from PyTorch's generator, which `KeyedRandom` stands in for.
    """

    def __init__(self, function: Function, targets: Mapping[str, str | None]) -> None:
        super().__init__(function, targets)
        for part in parts(function):
            if comes_from(part, "torchvision.transforms") and not comes_from(part, _V2):
                raise QueryError(
                    f"{type(part).__name__} of torchvision.transforms takes one image, and a sample is a dict of"
                    f" fields: use torchvision.transforms.v2.{type(part).__name__}"
                )

    def targets(self, layout: FieldLayout) -> Targets:
        return field_targets(layout, self.given)

    def call(self, function: Function, sample: Sample, key: int, targets: Targets) -> Any:
        return function(tv_sample(sample, targets))


def is_torchvision(function: Function) -> bool:
    """Whether a transform is one of torchvision, or made of such."""
    return comes_from(function, "torchvision.transforms") or made_of(function, "torchvision.transforms")


def tv_sample(sample: Sample, targets: Targets) -> Sample:
    """The sample with tv_tensors for the fields in `targets`. Other arrays of numbers become tensors beside an image.

    Without an image, torchvision would take the first plain tensor for one: so they stay arrays then.
    """
    from torchvision import tv_tensors

    made: Sample = {}
    size: tuple[int, int] | None = None
    for name, kind in targets.items():
        value = sample[name]
        if kind == "image" or (kind == BY_SHAPE and looks_like_image(value)):
            made[name] = tv_tensors.Image(channels_first(value))
            size = size or tuple(made[name].shape[-2:])
    for name, kind in targets.items():
        if kind == "mask":
            made[name] = tv_tensors.Mask(mask_tensor(name, sample[name]))
            size = size or tuple(made[name].shape[-2:])
    for name, kind in targets.items():
        form = kind.partition(":")[2].upper() or "XYXY"
        if kind in ("image", "mask", BY_SHAPE):
            continue
        if size is None:
            raise SampleError(f"field {name!r}: there is no image and no mask that the {kind} could belong to")
        data = tensor(sample[name])
        if kind == "keypoints":
            made[name] = tv_tensors.KeyPoints(data, canvas_size=size)
        else:
            made[name] = tv_tensors.BoundingBoxes(data.reshape(-1, 4), format=form, canvas_size=size)
    has_image = any(isinstance(value, tv_tensors.Image) for value in made.values())
    return {name: made[name] if name in made else _beside(value, has_image) for name, value in sample.items()}


def tensor(value: Any) -> Any:
    """An array as a tensor over the same memory, if it is writeable and of the machine's byte order."""
    import torch

    array = np.asarray(value)
    if not array.flags.writeable or not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.array(array, array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array)


def channels_first(value: Any) -> Any:
    """An image [h, w] or [h, w, c] as a tensor [c, h, w]."""
    image = tensor(value)
    return image[None] if image.ndim == 2 else image.permute(2, 0, 1)


def mask_tensor(name: str, value: Any) -> Any:
    """A mask [h, w], or masks [n, h, w]. A mask [h, w, 1], as a picture is read, becomes [1, h, w]."""
    mask = tensor(value)
    if mask.ndim not in (2, 3):
        raise SampleError(f"field {name!r}: expected a mask [h, w] or masks [n, h, w], found {list(mask.shape)}")
    return mask.permute(2, 0, 1) if name != "masks" and mask.ndim == 3 and mask.shape[2] == 1 else mask


def _beside(value: Any, has_image: bool) -> Any:
    if has_image and isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in "biufc":
        try:
            return tensor(value)
        except TypeError:  # a dtype that PyTorch does not have
            return value
    return value

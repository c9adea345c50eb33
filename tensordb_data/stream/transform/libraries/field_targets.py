"""Which fields are images, masks, boxes and keypoints to a transform of torchvision or Kornia."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tensordb_data.errors import QueryError
from tensordb_data.schema import Array, Image
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.transform.libraries.library import Targets, nothing_seen

KINDS = ("image", "mask", "boxes", "boxes:xywh", "boxes:cxcywh", "keypoints")
"""What a field can be to a transform; boxes are XYXY unless they say otherwise."""
BY_SHAPE = "image?"
"""A field whose values have shapes of their own: each value that can be an image is one."""
_BY_NAME = {"mask": "mask", "masks": "mask", "boxes": "boxes", "keypoints": "keypoints"}
"""The names that torchvision's own datasets give."""


def field_targets(layout: FieldLayout, given: Mapping[str, str | None]) -> Targets:
    """What each field is: as `given` says, by its name, or by its kind in the schema.

    Raises:
        QueryError: Nothing would be transformed; or a field may be boxes or points, and nobody says in which form.
    """
    for name in given:
        if name not in layout.fields:
            raise QueryError(
                f"targets= names the field {name!r}, which the stream does not deliver; its fields:"
                f" {', '.join(layout.fields)}"
            )
    found: dict[str, str] = {}
    for name in layout.fields:
        kind = given[name] if name in given else _kind(layout, name)
        if kind is not None:
            found[name] = kind
    if layout.schemas and not found:
        raise nothing_seen(
            layout,
            "an image is an Image, or an Array of uint8 or float of shape [h, w] or [h, w, 1, 3 or 4]; say which field"
            ' is one with VisionTransform(transform, targets={"field": "image"})',
        )
    return found


def looks_like_image(value: Any) -> bool:
    """Whether an array counts as an image: uint8 or float of shape [h, w] or [h, w, 1, 3 or 4]."""
    return isinstance(value, np.ndarray) and _imagelike(value.dtype, value.shape)


def _kind(layout: FieldLayout, name: str) -> str | None:
    fields = [schema[name] for schema in layout.schemas.values() if name in schema]
    if not any(isinstance(field, (Array, Image)) for field in fields):
        return None
    if name in _BY_NAME:
        return _BY_NAME[name]
    kinds: set[str | None] = set()
    for field in fields:
        if isinstance(field, Image):
            kinds.add("image")
        elif isinstance(field, Array):
            kinds.add(_array_kind(name, field))
    return kinds.pop() if len(kinds) == 1 else BY_SHAPE


def _array_kind(name: str, field: Array) -> str | None:
    shape = field.shape
    if name in ("bbox", "bboxes") or shape in ((None, 2), (None, 4)):
        raise QueryError(
            f"the field {name!r} may be boxes or points, and a transform that moves pixels would leave it out of step:"
            f' say what it is with VisionTransform(transform, targets={{{name!r}: "boxes"}}), which is one of'
            f" {', '.join(KINDS)}, or None to leave it alone"
        )
    if shape is None or (len(shape) == 3 and shape[2] is None):
        return BY_SHAPE if _dtype_fits(field.dtype) else None
    return "image" if _imagelike(field.dtype, shape) else None


def _imagelike(dtype: Any, shape: tuple[int | None, ...]) -> bool:
    return _dtype_fits(str(dtype)) and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4)))


def _dtype_fits(dtype: str) -> bool:
    return dtype == "uint8" or (dtype.startswith("float") and dtype[5:].isdigit())

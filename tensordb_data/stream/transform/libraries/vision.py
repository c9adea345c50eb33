"""VisionTransform: a transform of tv_tensors, with what each field is to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tensordb_data.errors import QueryError
from tensordb_data.stream.transform.libraries.field_targets import KINDS


@dataclass(frozen=True)
class VisionTransform:
    """A transform of torchvision or Kornia, where names and kinds of fields do not say what each of them is.

    A transform of torchvision v2 and an `AugmentationSequential` of Kornia need no VisionTransform as long as images
    are all there is, and masks, boxes and keypoints are called so. Also any function that takes a dict of tv_tensors
    and returns one can be given.

    Args:
        transform: It is called with a dict of all fields of a sample.
        targets: What fields are: "image", "mask", "boxes" (XYXY, or "boxes:xywh", "boxes:cxcywh"), "keypoints", or None
            for one that is left as it is. Fields that are not named are what their names and kinds say.

    Raises:
        QueryError: The transform is not callable, or there is no such target.
    """

    transform: Callable[..., Any]
    targets: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.transform):
            raise QueryError(f"`transform` must be callable. Found: {type(self.transform).__name__}")
        for name, kind in self.targets.items():
            if kind is not None and kind not in KINDS:
                raise QueryError(f"targets= says that {name!r} is {kind!r}; expected {', '.join(KINDS)}, or None")

    def __call__(self, sample: dict[str, Any]) -> Any:
        """Call the transform with a sample as it is: a stream makes tv_tensors of it before."""
        return self.transform(sample)

"""Albumentations: a pipeline is called with those fields that are its targets."""

from __future__ import annotations

from typing import Any

from tensordb_data.errors import QueryError
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.transform.libraries.library import (
    Function,
    Library,
    Sample,
    Targets,
    comes_from,
    nothing_seen,
    parts,
)

_IMAGES = ("image", "mask", "masks", "image2", "images", "volume", "volumes", "mask3d", "masks3d")
_POINTS = {"bboxes": ("bbox_params", "BboxParams"), "keypoints": ("keypoint_params", "KeypointParams")}


class Albumentations(Library):
    """A pipeline of albumentations, or one of its transforms. It has generators of its own, seeded for each sample."""

    def targets(self, layout: FieldLayout) -> Targets:
        function: Any = self.function
        processors = getattr(function, "processors", None) or {}
        extra = dict(getattr(function, "additional_targets", None) or {})
        found = {name: name for name in _IMAGES if name in layout.fields}
        found.update((name, kind) for name, kind in extra.items() if name in layout.fields)
        for name, (option, params) in _POINTS.items():
            named = [field for field in layout.fields if field == name or extra.get(field) == name]
            if named and name not in processors:
                for field in named:
                    found.pop(field, None)
                if not all(comes_from(part, "albumentations") and _keeps_places(part) for part in parts(function)):
                    raise QueryError(
                        f"the samples have the field {named[0]!r}, which this pipeline would move out of step with the"
                        f" image: give A.Compose(..., {option}=A.{params}(...)), or leave it out of `fields`"
                    )
            elif named:
                found.update(dict.fromkeys(named, name))
                for label in getattr(processors[name].params, "label_fields", None) or ():
                    if label not in layout.fields:
                        raise QueryError(
                            f"{option} of the pipeline names the label field {label!r}, and the samples have"
                            f" {', '.join(layout.fields)}"
                        )
                    found[label] = "label"
        if not set(found.values()) - {"label"}:
            raise nothing_seen(layout, "name one `image`, or give A.Compose(..., additional_targets=)")
        return found

    def call(self, function: Any, sample: Sample, key: int, targets: Targets) -> Any:
        function.set_random_seed(key & 0xFFFFFFFF)
        return {**sample, **function(**{name: value for name, value in sample.items() if name in targets})}


def is_albumentations(function: Function) -> bool:
    """Whether a transform is one of albumentations."""
    return comes_from(function, "albumentations")


def _keeps_places(part: Any) -> bool:
    """Whether a transform changes the values of pixels alone; a composition does what its parts do."""
    return hasattr(part, "transforms") or any(base.__name__ == "ImageOnlyTransform" for base in type(part).__mro__)

"""What fields are to the transforms of each library, from their names and kinds alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensordb_data import Array, Image, Text
from tensordb_data.errors import QueryError
from tensordb_data.schema.schema import Schema
from tensordb_data.stream.plan.sample_table import FieldLayout
from tensordb_data.stream.transform.libraries.choose import library_of
from tensordb_data.stream.transform.libraries.field_targets import BY_SHAPE, field_targets


def layout(**fields: Any) -> FieldLayout:
    return FieldLayout(tuple(fields), {"d": Schema(fields)})


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        (Image(), "image"),
        (Image(dtype="uint16"), "image"),
        (Array("uint8", (5, 4)), "image"),
        (Array("float32", (None, None, 3)), "image"),
        (Array("uint8", (9, 9, 1)), "image"),
        (Array("uint8"), BY_SHAPE),
        (Array("float16", (None, None, None)), BY_SHAPE),
        (Array("uint8", (3, 9, 9)), None),
        (Array("uint8", (9, 9, 2)), None),
        (Array("int64", (9, 9)), None),
        (Array("float32", (9,)), None),
        (Text(), None),
    ],
)
def test_the_schema_says_what_is_an_image(field: Any, kind: str | None) -> None:
    assert field_targets(layout(x=field, seen=Image()), {}).get("x") == kind


def test_names_of_torchvision_count_and_what_is_given_counts_more() -> None:
    fields = layout(
        image=Image(), mask=Array("uint8", (4, 4)), masks=Array("bool"), boxes=Array("float32", (None, 4)),
        keypoints=Array("float32", (None, 2)),
    )  # fmt: skip
    expected = {"image": "image", "mask": "mask", "masks": "mask", "boxes": "boxes", "keypoints": "keypoints"}
    assert field_targets(fields, {}) == expected
    assert field_targets(fields, {"mask": None, "boxes": "boxes:xywh", "masks": "image"}) == {
        "image": "image", "masks": "image", "boxes": "boxes:xywh", "keypoints": "keypoints",
    }  # fmt: skip
    with pytest.raises(QueryError, match="'points' may be boxes or points"):
        field_targets(layout(image=Image(), points=Array("float32", (None, 2))), {})


class Randomizable:
    """These classes have the shape that MONAI documents. Its own import would take longer than all unit tests."""

    R = np.random.RandomState()

    def set_random_state(self, seed: int | None = None) -> None:
        self.R = np.random.RandomState(seed)


class Flip:
    def __call__(self, image: Any) -> Any:
        return image[::-1]


class RandFlipd(Randomizable):
    def __init__(self, keys: list[str]) -> None:
        self.keys = tuple(keys)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        turn = self.R.rand() < 0.5
        return {key: value[::-1] if turn and key in self.keys else value for key, value in data.items()}


class Compose(Randomizable):
    def __init__(self, transforms: list[Any]) -> None:
        self.transforms = transforms

    def set_random_state(self, seed: int | None = None) -> None:
        super().set_random_state(seed)
        for part in self.transforms:
            part.set_random_state(seed=int(self.R.randint(2**32 - 1, dtype="uint32")))

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        for part in self.transforms:
            data = part(data)
        return data


for of_monai in (Flip, RandFlipd, Compose):
    of_monai.__module__ = "monai.transforms"


def test_dictionary_transforms_of_monai_are_seeded_and_others_refused() -> None:
    fields = layout(image=Array("float32", (4,)))
    library = library_of(Compose([RandFlipd(["image"])]))
    assert library.targets(fields) == {}

    def flipped(key: int) -> bool:
        return bool(library.call(library.function, {"image": np.arange(4)}, key, {})["image"][0] == 3)

    turns = [flipped(key) for key in range(20)]
    assert turns == [flipped(key) for key in range(20)] and len(set(turns)) == 2
    with pytest.raises(QueryError, match=r"Flip of MONAI takes one array: .* Flipd\(keys="):
        library_of(Compose([Flip()])).targets(fields)
    with pytest.raises(QueryError, match="its keys are photo"):
        library_of(RandFlipd(["photo"])).targets(fields)

"""Scaled: JPEGs are decoded at a half, a quarter or an eighth of their size."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tensordb_data.errors import QueryError
from tensordb_data.schema.field import BlobField, Buffer, Field
from tensordb_data.schema.image import Image
from tensordb_data.schema.views.view import View


@dataclasses.dataclass(frozen=True)
class Scaled(View):
    """Images in a smaller size, for a transform that makes them smaller anyway: `decode={"image": Scaled(224)}`.

    A JPEG is decoded at 1/8, 1/4 or 1/2 of its size, the smallest at which its shorter side has at least so many
    pixels. The decoder leaves out what it does not need, so this is faster than to decode and resize. The pixels
    differ from those of a resize. Other images come in full.

    Args:
        least: Pixels of the shorter side, at least.

    Raises:
        QueryError: It is no whole number from 1.
    """

    least: int

    def __post_init__(self) -> None:
        if not isinstance(self.least, int) or isinstance(self.least, bool) or self.least < 1:
            raise QueryError(f"Scaled(least) is a whole number of pixels from 1. Found: {self.least!r}")

    @property
    def advice(self) -> str:
        return "and it is for images"

    def takes(self, field: Field) -> bool:
        return isinstance(field, Image)

    def gives(self, field: Field) -> Field:
        return field

    def decode(self, field: BlobField, buf: Buffer, rng: np.random.Generator | None, beside: Any) -> Any:
        assert isinstance(field, Image)
        return field.decode_scaled(buf, self.least)

    def to_doc(self) -> dict[str, Any]:
        return {"scaled": self.least}

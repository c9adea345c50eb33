"""Encoded volumes."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from tensordb_data.errors import SchemaError
from tensordb_data.schema.field import BlobField, Buffer, Element


@dataclasses.dataclass(frozen=True, repr=False)
class Volume(BlobField):
    """x."""

    dtype: str = "float32"
    kind: ClassVar[str] = "volume"

    def to_doc(self) -> dict[str, Any]:
        return self._doc(kind=self.kind, dtype=self.dtype)

    @property
    def element(self) -> Element:
        return self.dtype, None

    def _check(self, value: Any) -> None:
        self.encode(value)

    def encode(self, value: Any) -> Buffer:
        raise SchemaError("not yet")

    def decode(self, buf: Buffer) -> Any:
        raise SchemaError("not yet")

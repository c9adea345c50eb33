"""Bytes and text that are stored as blobs."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tensordb_data.errors import CorruptBlobError, SchemaError
from tensordb_data.schema.field import BlobField, Buffer, describe


@dataclasses.dataclass(frozen=True, repr=False)
class Bytes(BlobField):
    """Bytes, stored as they are."""

    kind: ClassVar[str] = "bytes"

    def to_doc(self) -> dict[str, Any]:
        return self._doc(kind=self.kind)

    def _check(self, value: Any) -> None:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise SchemaError(f"expected bytes, found {describe(value)}")

    def lengths(self, nbytes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return nbytes

    def encode(self, value: Any) -> Buffer:
        self._check(value)
        return bytes(value) if isinstance(value, memoryview) else value

    def decode(self, buf: Buffer) -> bytes:
        return bytes(buf)


@dataclasses.dataclass(frozen=True, repr=False)
class Text(BlobField):
    """Text too long for the index, stored as UTF-8. Queries do not see it; for that, use `Scalar("str")`."""

    kind: ClassVar[str] = "text"

    def to_doc(self) -> dict[str, Any]:
        return self._doc(kind=self.kind)

    def _check(self, value: Any) -> None:
        self.encode(value)

    def lengths(self, nbytes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return nbytes

    def encode(self, value: Any) -> Buffer:
        if not isinstance(value, str):
            raise SchemaError(f"expected text, found {describe(value)}")
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise SchemaError(f"expected text that UTF-8 can hold, found a lone surrogate at {error.start}") from None

    def decode(self, buf: Buffer) -> str:
        try:
            return str(buf, "utf-8")
        except UnicodeDecodeError as error:
            raise CorruptBlobError(f"expected UTF-8 text, found other bytes at {error.start}") from None

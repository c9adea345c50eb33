"""Encoded video."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from tensordb_data.errors import SchemaError
from tensordb_data.schema.field import BlobField, Buffer, Element, describe
from tensordb_data.schema.media.containers import video_format
from tensordb_data.schema.media.files import given_bytes
from tensordb_data.schema.media.frames import Frames, read_all

TABLE = "_packets"
"""What is added to the name of a video for the field with the times of its frames; see `frames.table_of`."""


@dataclasses.dataclass(frozen=True, repr=False)
class Video(BlobField):
    """An encoded video, given as its bytes or as a `pathlib.Path`: MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, Ogg.

    It is stored byte for byte, and read as an array uint8 [frames, height, width, 3] of all of its frames. A stream
    takes parts, `decode={"video": Clip(frames=16, stride=2)}`. Frames are turned as the video says. Decoding needs
    PyAV, the extra `tensordb-data[video]`. More than a thousand million pixels are not decoded at once, unless the
    environment variable `TENSORDB_MAX_VIDEO` says so.

    Args:
        optional: Whether samples may leave the field out.
    """

    kind: ClassVar[str] = "video"

    def to_doc(self) -> dict[str, Any]:
        return self._doc(kind=self.kind)

    @property
    def element(self) -> Element:
        return "uint8", (None, None, None, 3)

    def _check(self, value: Any) -> None:
        self.encode(value)

    def encode(self, value: Any) -> Buffer:
        data = given_bytes(value, "a video")
        if video_format(data) is None:
            raise SchemaError(
                f"expected the bytes of an MP4, Matroska, AVI, MPEG, FLV or Ogg file, found {describe(data)}; arrays of"
                " frames are for Array('uint8', (None, None, None, 3))"
            )
        return data

    def decode(self, buf: Buffer) -> Frames:
        return read_all(buf)

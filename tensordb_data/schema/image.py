"""Encoded images: stored byte for byte, and decoded when they are read."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from tensordb_data.errors import CorruptBlobError, MissingExtraError, SchemaError
from tensordb_data.schema.field import BlobField, Buffer, Element, describe
from tensordb_data.schema.image_header import is_heic, read_header
from tensordb_data.schema.orientation import orientation, upright
from tensordb_data.schema.palette import as_gray, levels, palette_bits

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_GRAY_PNG = (0, 4)  # colour types, the second with transparency
_MODES = ("unchanged", "rgb", "gray", "index")

MAX_PIXELS = 100_000_000
"""Pixels of an image that is decoded, unless `TENSORDB_MAX_PIXELS` says otherwise: 300 MB in RGB."""
_VARIABLE = "TENSORDB_MAX_PIXELS"


@dataclasses.dataclass(frozen=True, repr=False)
class Image(BlobField):
    """An encoded image, given as its bytes or as a `pathlib.Path`. It is stored byte for byte.

    JPEG and PNG, and what OpenCV reads besides: WebP, TIFF, GIF (its first frame), BMP, AVIF, JPEG 2000 and PNM.

    It is read as an array [height, width] (gray), [height, width, 3] (RGB) or [height, width, 4] (RGBA). CMYK comes as
    RGB, without its colour profile. Decoding needs opencv, the extra `tensordb-data[images]`.

    An image of more than 100 million pixels is neither stored nor decoded: a file of 100 kB can claim gigabytes. Set
    the environment variable `TENSORDB_MAX_PIXELS` to allow more, wherever it is written or read.

    Args:
        mode: "unchanged" for the channels of each file, "rgb" or "gray" to convert all to those, "index" for the
            indices of palette PNGs, which are the classes of a mask; of gray images it gives their values.
        dtype: "uint8", or "uint16" for PNGs with 16 bits a channel.
        orient: whether the EXIF orientation of a JPEG, PNG or WebP is applied. Boxes and masks must be meant so, too.
        optional: whether samples may leave the field out.
    """

    mode: str = "unchanged"
    dtype: str = "uint8"
    orient: bool = False

    kind: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise SchemaError(f"expected an image mode of {', '.join(_MODES)}, found {self.mode!r}")
        if self.dtype not in ("uint8", "uint16"):
            raise SchemaError(f"expected an image dtype of uint8 or uint16, found {self.dtype!r}")
        if not isinstance(self.orient, bool):
            raise SchemaError(f"expected an image orient of True or False, found {self.orient!r}")

    def to_doc(self) -> dict[str, Any]:
        doc = self._doc(kind=self.kind, mode=self.mode, dtype=self.dtype)
        return {**doc, "orient": True} if self.orient else doc

    @property
    def element(self) -> Element:
        shape = {"rgb": (None, None, 3), "gray": (None, None), "index": (None, None)}.get(self.mode)
        return self.dtype, shape

    def _check(self, value: Any) -> None:
        self.encode(value)

    def encode(self, value: Any) -> Buffer:
        data = image_bytes(value)
        height, width = _size(data)
        if (why := _too_large(height, width)) is not None:
            raise SchemaError(why)
        if not is_image(data) and not (height and width):
            raise SchemaError("expected an image whose header says its size, found one that does not: is it damaged?")
        if self.mode == "index" and not palette_bits(data) and not is_gray(data):
            raise SchemaError("expected an image with a palette or gray values, found one with colours, which has no "
                              "indices")  # fmt: skip
        found = "uint16" if is_deep(data) else "uint8"
        if found != self.dtype:
            raise SchemaError(
                f"expected an image of {self.dtype}, found one of {found}: declare the field as Image(dtype={found!r})"
            )
        return data

    def decode(self, buf: Buffer) -> npt.NDArray[Any]:
        return self._decoded(buf, 1)

    def decode_scaled(self, buf: Buffer, least: int) -> npt.NDArray[Any]:
        """The pixels of a JPEG at 1/8, 1/4 or 1/2 of its size, or in full; of other images always in full.

        Args:
            buf: The encoded image.
            least: Pixels of the shorter side, at least.

        Raises:
            CorruptBlobError: see `decode`.
        """
        height, width = _size(buf) if bytes(buf[:3]) == _JPEG else (0, 0)
        return self._decoded(buf, next((n for n in (8, 4, 2) if -(-min(height, width) // n) >= least), 1))

    def _decoded(self, buf: Buffer, reduced: int) -> npt.NDArray[Any]:
        pixels = self._pixels(buf, reduced)
        turned = orientation(buf) if self.orient else 1
        return upright(pixels, turned) if turned != 1 else pixels

    def _pixels(self, buf: Buffer, reduced: int) -> npt.NDArray[Any]:
        try:
            import cv2
        except ImportError:
            raise MissingExtraError("decoding images needs opencv: pip install 'tensordb-data[images]'") from None
        if (why := _too_large(*_size(buf))) is not None:
            raise CorruptBlobError(why)
        channels = _check_whole(buf)
        bits = palette_bits(buf) if self.mode == "index" else 0
        if bits:
            buf = as_gray(buf)
        # Of a reduced JPEG there is no "unchanged": gray stays gray, and all else is RGB, as it is in full.
        mode = ("gray" if channels == 1 else "rgb") if reduced > 1 and self.mode == "unchanged" else self.mode
        flags = {
            "unchanged": cv2.IMREAD_UNCHANGED,
            "rgb": cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION,
            "gray": cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION,
            "index": cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION,
        }[mode]
        # A JPEG comes as RGB at once, which saves a pass over its pixels.
        at_once = channels > 0 and (mode == "rgb" or (mode == "unchanged" and channels > 1))
        if at_once:
            flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        flags |= {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
                  2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 1: 0}[reduced]  # fmt: skip
        try:
            pixels: npt.NDArray[Any] | None = cv2.imdecode(np.frombuffer(buf, np.uint8), flags)
        except cv2.error as error:
            raise CorruptBlobError(f"expected an image, found {len(buf)} bytes opencv cannot read: {error}") from None
        if pixels is None:
            raise CorruptBlobError(f"expected an image, found {len(buf)} damaged bytes")
        if bits and bits < 8:
            pixels //= levels(bits)
        if pixels.ndim == 2:
            return pixels
        if pixels.shape[2] == 1:
            return pixels[:, :, 0]
        if at_once:
            return pixels
        swap = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        return cv2.cvtColor(pixels, swap, dst=pixels)


def is_image(data: Buffer) -> bool:
    """Whether the bytes begin like a JPEG or a PNG."""
    head = bytes(data[:8])
    return head == _PNG or head.startswith(_JPEG)


def is_deep(data: Buffer) -> bool:
    """Whether the bytes are an image with more than 8 bits a channel."""
    if bytes(data[:8]) == _PNG:
        return len(data) > 24 and data[24] == 16
    header = None if bytes(data[:3]) == _JPEG else read_header(data)
    return header is not None and header.bits > 8


def is_gray(data: Buffer) -> bool | None:
    """Whether an encoded image has no colours, by its header; None if it is no image, or has no whole header."""
    head = bytes(data[:26])
    if head.startswith(_PNG):
        return head[25] in _GRAY_PNG if len(head) == 26 else None
    if head.startswith(_JPEG):
        channels = _scan(memoryview(data)).channels
    else:
        header = read_header(data)
        channels = 0 if header is None else header.channels
    return channels in (1, 2) if channels else None


def image_size(data: Buffer) -> tuple[int, int]:
    """Height and width that the header of an encoded image claims; 0 what it does not say."""
    return _size(data)


def check_pixels(data: Buffer) -> None:
    """Refuse an encoded image that is cut off, or claims too many pixels to be decoded.

    Raises:
        CorruptBlobError: It is such a one.
    """
    if (why := _too_large(*_size(data))) is not None:
        raise CorruptBlobError(why)
    _check_whole(data)


def image_bytes(value: Any) -> Buffer:
    """The encoded image in `value`, bytes or a `pathlib.Path`.

    Raises:
        SchemaError: it is no image that can be read, or the file cannot be read.
    """
    source = ""
    data = value
    if isinstance(value, pathlib.Path):
        source = f" in {value}"
        try:
            data = value.read_bytes()
        except OSError as error:
            raise SchemaError(f"expected an image file, found {value}: {error.strerror}") from None
    if isinstance(data, memoryview):
        data = bytes(data)
    if not isinstance(data, (bytes, bytearray)) or not (is_image(data) or read_header(data) is not None):
        advice = "; HEIC is not read: convert it" if isinstance(data, (bytes, bytearray)) and is_heic(data) else ""
        raise SchemaError(
            "expected the bytes of a JPEG or PNG, or of another image that OpenCV reads, or a pathlib.Path to one,"
            f" found {describe(data)}{source}{advice}"
        )
    return data


def _check_whole(buf: Buffer) -> int:
    """Refuse a file that was cut off: the decoders would fill its missing part with grey, without an error.

    Returns:
        The channels of a JPEG; 0 for others.
    """
    data, channels = memoryview(buf), 0
    if bytes(data[:8]) == _PNG:
        whole = b"IEND" in bytes(data[-64:]) or b"IEND\xaeB`\x82" in bytes(data)
    elif bytes(data[:3]) == _JPEG:
        scan, channels = (found := _scan(data)).start, found.channels
        # The mark is nearly always at the very end. Other data of any length may follow it.
        end = max(scan, len(data) - 64)
        whole = b"\xff\xd9" in bytes(data[end:]) or b"\xff\xd9" in bytes(data[scan:])
    elif read_header(data) is not None:
        return 0
    else:
        raise CorruptBlobError(f"expected an image, found {describe(bytes(data))}")
    if not whole:
        raise CorruptBlobError(f"expected a whole image, found {len(data)} bytes with no end-of-image mark: truncated")
    return channels


class _Scan(NamedTuple):
    """What the headers of a JPEG say: where the pixels begin, channels, height and width; 0 what they do not say."""

    start: int
    channels: int = 0
    height: int = 0
    width: int = 0


def _size(data: Buffer) -> tuple[int, int]:
    """Height and width that the header of an encoded image claims; 0 what it does not say."""
    head = bytes(data[:24])
    if head.startswith(_PNG):
        return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
    if not head.startswith(_JPEG):
        header = read_header(data)
        return (0, 0) if header is None else (header.height, header.width)
    scan = _scan(memoryview(data))
    return scan.height, scan.width


def _too_large(height: int, width: int) -> str | None:
    """What is wrong with an image of so many pixels, if it is too large."""
    text = os.environ.get(_VARIABLE, "")
    if text and not text.isdecimal():
        raise SchemaError(f"expected a number of pixels in the environment variable {_VARIABLE}, found {text!r}")
    limit = int(text) if text else MAX_PIXELS
    if height * width <= limit:
        return None
    return (
        f"expected an image of at most {limit:,} pixels, found one that claims {width:,} x {height:,}: if it is meant, "
        f"set the environment variable {_VARIABLE} to {height * width} or more"
    )


def _scan(data: memoryview) -> _Scan:
    """Read the headers of a JPEG. They are skipped one by one, since a thumbnail in them may hold marks of its own."""
    at, found = 2, _Scan(len(data))
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return found._replace(start=at)
        if marker == 0xFF:
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
        else:
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 9 < len(data):
                size = (int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big"))
                found = _Scan(len(data), data[at + 9], *size)
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return found

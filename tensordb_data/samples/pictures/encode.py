"""Small pictures of arrays and of encoded images, as PNG or JPEG."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from tensordb_data.errors import MissingExtraError
from tensordb_data.schema import Array, Field, Image
from tensordb_data.schema.field import Buffer
from tensordb_data.schema.image import check_pixels, image_size, is_deep, is_image

SMALL = 12_000
"""Bytes up to which an encoded image is given out as it is, if it has no more pixels than were asked for."""
_QUALITY = 80
_COLOURS = {1: 0, 3: 2, 4: 6}


def picture(field: Field, data: Buffer, size: int, small: int = SMALL) -> tuple[str, bytes, int, int]:
    """A small picture of a blob: media type, bytes, width and height, of at most `size` pixels a side.

    Args:
        field: Its kind.
        data: Its stored bytes, decompressed.
        size: Width and height at most.
        small: An encoded image is given out as it is, if it has no more bytes, and no more pixels.

    Raises:
        ValueError: It is no picture, or damaged.
        SchemaError, CorruptBlobError: It is damaged, or too large to be decoded.
        MissingExtraError: It has to be decoded, and opencv is not there.
    """
    if isinstance(field, Image):
        return of_image(bytes(data), size, small)
    if not isinstance(field, Array):
        raise ValueError(f"{field!r} is no picture")
    encoded, width, height = of_array(field.decode(data), size)
    return "image/png", encoded, width, height


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Pixels, uint8 [height, width] or [height, width, 1, 3 or 4], as a PNG."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = np.ascontiguousarray(pixels).reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, _COLOURS[channels], 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def of_array(value: Any, size: int) -> tuple[bytes, int, int]:
    """A PNG of an array, of at most `size` pixels a side, with its width and height.

    Raises:
        ValueError: It is no picture.
    """
    array = np.asarray(value)
    if array.size == 0 or array.dtype.kind not in "buif":
        raise ValueError(f"an array of {array.dtype} {array.shape} is no picture")
    while array.ndim > 3 or (array.ndim == 3 and array.shape[2] not in _COLOURS):
        array = array[0]
    if array.ndim < 2:
        raise ValueError(f"an array of {np.ndim(value)} dimension{'s' if np.ndim(value) != 1 else ''} is no picture")
    height, width = array.shape[:2]
    step = max(1, -(-max(height, width) // size))
    array = array[::step, ::step]
    return png(_as_bytes(array)), int(array.shape[1]), int(array.shape[0])


def _as_bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if array.dtype.kind == "b" or array.dtype == np.uint8:
        pixels: npt.NDArray[np.uint8] = array.astype(np.uint8)
        return pixels if array.dtype.kind == "u" else pixels * np.uint8(255)
    numbers = array.astype(np.float64)
    finite = np.isfinite(numbers)
    low, high = (numbers[finite].min(), numbers[finite].max()) if finite.any() else (0.0, 1.0)
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = np.where(finite, (numbers - low) / ((high - low) or 1.0), 0.0)
    return np.asarray(scaled * 255, np.uint8)


def of_image(data: bytes, size: int, small: int = SMALL) -> tuple[str, bytes, int, int]:
    """A small picture of an encoded image: media type, bytes, width and height. Its size is read from its header first.

    Raises:
        ValueError: It is damaged.
        SchemaError, CorruptBlobError: It is too large to be decoded.
        MissingExtraError: It has to be decoded, and opencv is not there.
    """
    if not is_image(data):
        raise ValueError("it is no JPEG or PNG")
    height, width = image_size(data)
    check_pixels(data)
    if len(data) <= small and 0 < max(height, width) <= size and not is_deep(data):
        return ("image/png" if data[:1] == b"\x89" else "image/jpeg"), bytes(data), width, height
    try:
        import cv2
    except ImportError:
        raise MissingExtraError("thumbnails of images need opencv: pip install 'tensordb-data[images]'") from None
    reduced = next((n for n in (8, 4, 2) if min(height, width) // n >= size), 1)
    flag = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}.get(
        reduced, cv2.IMREAD_COLOR
    )
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise ValueError(str(error)) from None
    if pixels is None:
        raise ValueError("it is damaged")
    factor = size / max(pixels.shape[:2])
    if factor < 1:
        shape = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
        pixels = cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA)
    done, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise ValueError("it cannot be encoded")
    return "image/jpeg", encoded.tobytes(), int(pixels.shape[1]), int(pixels.shape[0])

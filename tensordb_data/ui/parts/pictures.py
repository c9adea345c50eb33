"""What a blob looks like: the bytes of an image as they are, and arrays as PNG."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensordb_data.errors import StorageError
from tensordb_data.samples.pictures.encode import png
from tensordb_data.schema.image import image_size, is_image

if TYPE_CHECKING:
    from tensordb_data.samples.sample import Sample

MOST_BYTES = 64_000_000
MOST_PIXELS = 100_000_000
_COLOURS = (1, 3, 4)

decoding = threading.BoundedSemaphore(2)
"""Those who decode or make a picture, which takes memory, are two at a time."""


def media_type(data: bytes) -> str | None:
    """The media type of an image by its first bytes; None for all else, HTML and SVG among it.

    Raises:
        StorageError: Its header claims more than 100 million pixels, which a browser would try to show.
    """
    if not is_image(data):
        return None
    height, width = image_size(data)
    if (pixels := height * width) > MOST_PIXELS:
        raise StorageError(f"this image claims {pixels:,} pixels, and at most {MOST_PIXELS:,} are shown")
    return "image/png" if data[:1] == b"\x89" else "image/jpeg"


def check_size(sample: Sample, name: str) -> None:
    """Refuse a blob that is too large for a page, as it is stored or as its schema says that it becomes.

    Raises:
        StorageError: It has more than 64 MB.
    """
    nbytes = max(sample.stored_bytes(name), getattr(sample.blobs.get(name), "fixed_nbytes", None) or 0)
    if nbytes > MOST_BYTES:
        raise StorageError(f"this blob has {nbytes:,} bytes, and at most {MOST_BYTES:,} are shown")


def check_shape(shape: object) -> None:
    """Refuse the shape of an array that is too large for a page, before the array is read.

    Raises:
        StorageError: It has more than 64 million numbers, or is no shape.
    """
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise StorageError(f"this is no array; its shape is {shape!r:.100}")
    if (n := math.prod(shape)) > MOST_BYTES:
        raise StorageError(f"this array has {n:,} numbers, and at most {MOST_BYTES:,} are shown")


def slices_of(shape: tuple[int, ...]) -> int:
    """How many pictures an array is: 1 if it is a single one, 0 if it is none."""
    if not 2 <= len(shape) <= 4 or 0 in shape:
        return 0
    if len(shape) == 2:
        return 1
    if len(shape) == 3:
        return 1 if shape[-1] in _COLOURS or shape[0] in _COLOURS else shape[0]
    return shape[0]


def picture(array: npt.NDArray[Any], number: int, channel: int | None = None) -> bytes:
    """One picture of an array, as a PNG of grey or coloured pixels.

    Numbers that are no bytes are stretched, from the lowest to the highest.

    Args:
        array: The array, of two to four dimensions.
        number: Which of its slices.
        channel: Only this channel; None for all.

    Raises:
        StorageError: The array is no picture, or has no such slice or channel.
    """
    count = slices_of(array.shape)
    if not 0 <= number < count:
        raise StorageError(f"an array of shape {array.shape} has {count} pictures, and no number {number}")
    if array.ndim == 4 or (array.ndim == 3 and count > 1):
        array = array[number]
    if array.ndim == 3 and array.shape[-1] not in _COLOURS:
        array = np.moveaxis(array, 0, -1) if array.shape[0] in _COLOURS else array[..., :1]
    if array.ndim == 2:
        array = array[..., None]
    if channel is not None:
        if not 0 <= channel < array.shape[-1]:
            raise StorageError(f"a picture of this array has {array.shape[-1]} channels, and no number {channel}")
        array = array[..., channel : channel + 1]
    if array.shape[0] * array.shape[1] > MOST_PIXELS:
        raise StorageError(f"a picture of this array has more than {MOST_PIXELS:,} pixels")
    return png(grey(array))


def grey(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Values as bytes from 0 to 255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    values = np.abs(array) if np.iscomplexobj(array) else array
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    spread = high - low
    with np.errstate(all="ignore"):
        scaled = (values - low) * (255.0 / spread) if spread > 0 else np.zeros_like(values)
    return np.where(finite, np.clip(scaled, 0, 255), 0).astype(np.uint8)

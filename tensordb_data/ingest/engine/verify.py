"""Look for damage before files are stored: a decoder that draws what is missing in grey tells nobody."""

from __future__ import annotations

from typing import Any

from tensordb_data.errors import MissingExtraError, TensorDBError
from tensordb_data.schema import Audio, Image, Video, Volume
from tensordb_data.schema.media.frames import count_frames

_JPEG = b"\xff\xd8\xff"
CHECKED = (Image, Audio, Video, Volume)
"""The kinds of fields of which each value is decoded before it is stored."""


def damage_in(data: bytes, field: Image | Audio | Video | Volume) -> str | None:
    """What is wrong with an image, sound, video or volume that a field would take; None if nothing is.

    JPEGs are decoded by simplejpeg where it is installed, which reports everything that its decoder finds. OpenCV draws
    a picture of most damaged ones, without an error.

    Args:
        data: The encoded bytes.
        field: Its field.
    """
    try:
        if isinstance(field, Video):
            count_frames(data)
        elif isinstance(field, Image) and data.startswith(_JPEG) and (decode := _simplejpeg()) is not None:
            decode(data)
        else:
            field.decode(data)
    except MissingExtraError:
        return None  # it cannot be looked at here, and is taken as it is
    except ValueError as error:
        return f"damaged JPEG: {error}"
    except TensorDBError as error:
        return str(error)
    return None


def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg.decode_jpeg

"""EXIF orientation: how the pixels of an image are to be turned before it is shown."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

_TAG = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST = 1024  # entries of a directory that are looked at


def orientation(data: bytes | bytearray | memoryview) -> int:
    """The EXIF orientation of a JPEG, PNG or WebP, 1 to 8; 1, which is upright, where there is none."""
    data = memoryview(data)
    try:
        exif = _exif(data)
        return 1 if exif is None else _orientation(exif)
    except (struct.error, IndexError, ValueError):
        return 1


def is_turned(orientation: int) -> bool:
    """Whether height and width change places."""
    return orientation >= 5


def upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Pixels [height, width, ...] as they are to be shown."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 6, 7):
        pixels = pixels[:, ::-1] if orientation in (3, 6, 7) else pixels
        pixels = pixels[::-1] if orientation in (3, 4, 7) else pixels
    elif orientation == 2:
        pixels = pixels[:, ::-1]
    elif orientation == 8:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _exif(data: memoryview) -> memoryview | None:
    """The EXIF data of an image: a TIFF header and its directory."""
    if bytes(data[:2]) == b"\xff\xd8":
        return _of_jpeg(data)
    if bytes(data[:8]) == _PNG:
        return _of_chunks(data, 8, ">", b"eXIf")
    if bytes(data[:4]) == b"RIFF" and bytes(data[8:12]) == b"WEBP":
        return _of_chunks(data, 12, "<", b"EXIF")
    return None


def _of_jpeg(data: memoryview) -> memoryview | None:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return None
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xE1 and bytes(data[at + 4 : at + 10]) == b"Exif\0\0":
            return data[at + 10 : at + 2 + size]
        at += 2 + size
    return None


def _of_chunks(data: memoryview, at: int, order: str, wanted: bytes) -> memoryview | None:
    """The chunk of a name. PNG and RIFF differ in the order of size and name, and in what is behind a chunk."""
    png = order == ">"
    while at + 8 <= len(data):
        size = struct.unpack_from(order + "I", data, at if png else at + 4)[0]
        name = bytes(data[at + 4 : at + 8] if png else data[at : at + 4])
        if name == wanted:
            found = data[at + 8 : at + 8 + size]
            return found[6:] if bytes(found[:6]) == b"Exif\0\0" else found
        at += 8 + size + (4 if png else size & 1)
    return None


def _orientation(exif: memoryview) -> int:
    order = {b"II": "<", b"MM": ">"}[bytes(exif[:2])] if bytes(exif[:2]) in (b"II", b"MM") else None
    if order is None:
        return 1
    at = struct.unpack_from(order + "I", exif, 4)[0]
    for i in range(min(_MOST, struct.unpack_from(order + "H", exif, at)[0])):
        tag, kind, count = struct.unpack_from(order + "HHI", exif, at + 2 + 12 * i)
        if tag == _TAG and kind == 3 and count == 1:
            found: int = struct.unpack_from(order + "H", exif, at + 10 + 12 * i)[0]
            return found if 1 <= found <= 8 else 1
    return 1

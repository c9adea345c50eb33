"""What the first bytes of an encoded image say: its format, size, channels and depth. Nothing is decoded."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

_PNM = re.compile(rb"P([1-6])\s(?:\s|#[^\n]*\n)*(\d{1,9})\s(?:\s|#[^\n]*\n)*(\d{1,9})(?:\s(?:\s|#[^\n]*\n)*(\d{1,6}))?")
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_MOST = 1 << 16
"""Bytes of a header that are looked at."""


class Header(NamedTuple):
    """What a header says. 0 is what it does not say."""

    format: str
    height: int = 0
    width: int = 0
    channels: int = 0
    bits: int = 8


def read_header(data: bytes | bytearray | memoryview) -> Header | None:
    """The header of an image that is no JPEG and no PNG; None if the bytes begin like no image that can be read."""
    head = bytes(data[:_MOST])
    for begins, read in _READERS:
        if head.startswith(begins):
            try:
                return _tiff(data) if read is _tiff else read(head)  # the directory of a TIFF may be at its end
            except (struct.error, IndexError, ValueError):
                return None
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1", b"miaf"):
        return _avif(head)
    return None


def has_more_frames(data: bytes | bytearray | memoryview) -> bool:
    """Whether an image has further pages or frames, which are not read: of a TIFF, WebP or PNG."""
    head = bytes(data[:64])
    if head.startswith(b"RIFF"):
        return head[8:16] == b"WEBPVP8X" and len(head) > 20 and bool(head[20] & 0x02)
    if head.startswith(b"\x89PNG"):
        return head[37:41] == b"acTL"
    if not head.startswith((b"II*\0", b"MM\0*")):
        return False
    order = "<" if head.startswith(b"II") else ">"
    try:
        at = struct.unpack_from(order + "I", head, 4)[0]
        entries = struct.unpack_from(order + "H", data, at)[0]
        return bool(struct.unpack_from(order + "I", data, at + 2 + 12 * entries)[0])
    except struct.error:
        return False


def is_heic(data: bytes | bytearray | memoryview) -> bool:
    """Whether the bytes begin like a HEIC image, as phones take them."""
    return bytes(data[4:12]) in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmsf1")


def _gif(head: bytes) -> Header:
    width, height = struct.unpack_from("<HH", head, 6)
    return Header("GIF", height, width, 3)


def _bmp(head: bytes) -> Header | None:
    size = struct.unpack_from("<I", head, 14)[0]
    if size == 12:
        width, height = struct.unpack_from("<HH", head, 18)
    elif size >= 40:
        width, height = struct.unpack_from("<ii", head, 18)
    else:
        return None
    bits = struct.unpack_from("<H", head, 24 if size == 12 else 28)[0]
    each = 3 if size == 12 else 4
    palette = head[14 + size : 14 + size + (each << bits)] if bits <= 8 else b""
    gray = palette != b"" and palette[::each] == palette[1::each] == palette[2::each]
    return Header("BMP", abs(height), abs(width), 1 if gray else 3)


def _webp(head: bytes) -> Header | None:
    kind = head[12:16]
    if head[8:12] != b"WEBP":
        return None
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return Header("WebP", height & 0x3FFF, width & 0x3FFF, 3)
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", head, 21)[0]
        return Header("WebP", (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, 4 if bits >> 28 & 1 else 3)
    if kind == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
        return Header("WebP", height, width, 4 if head[20] & 0x10 else 3)
    return None


def _tiff(head: bytes | bytearray | memoryview) -> Header | None:
    order = "<" if bytes(head[:2]) == b"II" else ">"
    at = struct.unpack_from(order + "I", head, 4)[0]
    tags: dict[int, int] = {}
    for i in range(struct.unpack_from(order + "H", head, at)[0]):
        tag, kind, count = struct.unpack_from(order + "HHI", head, at + 2 + 12 * i)
        where = at + 10 + 12 * i
        if kind == 3 and count > 2:  # shorts that lie elsewhere
            where = struct.unpack_from(order + "I", head, where)[0]
        if kind in (3, 4):
            tags[tag] = struct.unpack_from(order + ("H" if kind == 3 else "I"), head, where)[0]
    if tags.get(339, 1) != 1:  # numbers that are no unsigned integers
        return None
    channels = 3 if tags.get(262) == 3 else tags.get(277, 1)
    return Header("TIFF", tags[257], tags[256], channels, tags.get(258, 1)) if 256 in tags and 257 in tags else None


def _pnm(head: bytes) -> Header | None:
    match = _PNM.match(head)
    if match is None:
        return None
    most = int(match[4] or 1)
    return Header("PNM", int(match[3]), int(match[2]), 3 if match[1] in b"36" else 1, 16 if most > 255 else 8)


def _jp2(head: bytes) -> Header | None:
    at = head.find(b"ihdr")
    if at < 0:
        return None
    height, width, channels, bits = struct.unpack_from(">IIHB", head, at + 4)
    return Header("JPEG 2000", height, width, channels, (bits & 0x7F) + 1)


def _avif(head: bytes) -> Header | None:
    at = head.find(b"ispe")
    if at < 0 or len(head) < at + 16:
        return None
    width, height = struct.unpack_from(">II", head, at + 8)
    pixi = head.find(b"pixi")
    channels = head[pixi + 8] if 0 <= pixi < len(head) - 8 else 3
    return Header("AVIF", height, width, channels, head[pixi + 9] if 0 <= pixi < len(head) - 9 else 8)


_READERS: tuple[tuple[tuple[bytes, ...] | bytes, Callable[[bytes], Header | None]], ...] = (
    ((b"GIF87a", b"GIF89a"), _gif),
    (b"RIFF", _webp),
    ((b"II*\0", b"MM\0*"), _tiff),
    (_JP2, _jp2),
    (b"BM", _bmp),
    (tuple(b"P%d" % n for n in range(1, 7)), _pnm),
)

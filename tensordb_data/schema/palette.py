"""Palette PNGs: their indices, which are the classes of a mask, and not the colours that stand for them."""

from __future__ import annotations

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE, _GRAY = 3, 0
_DROPPED = (b"PLTE", b"tRNS", b"bKGD", b"hIST", b"sPLT", b"gAMA", b"cHRM", b"sRGB", b"iCCP")


def palette_bits(data: bytes | bytearray | memoryview) -> int:
    """Bits of an index of a palette PNG; 0 if the image is none."""
    head = bytes(data[:26])
    return head[24] if head.startswith(_SIGNATURE) and len(head) == 26 and head[25] == _PALETTE else 0


def as_gray(data: bytes | bytearray | memoryview) -> bytes:
    """A palette PNG as a gray one, whose gray values are the indices. Its pixels are not looked at.

    A reader of PNGs spreads gray values of less than 8 bits over the 256 of a byte: `levels` takes that back.
    """
    data = bytes(data)
    out, at = [_SIGNATURE], len(_SIGNATURE)
    while at + 12 <= len(data):
        size = struct.unpack_from(">I", data, at)[0]
        kind, whole = data[at + 4 : at + 8], data[at : at + 12 + size]
        if kind == b"IHDR" and size == 13:
            body = kind + whole[8:17] + bytes([_GRAY]) + whole[18:21]
            whole = whole[:4] + body + struct.pack(">I", zlib.crc32(body))
        if kind not in _DROPPED:
            out.append(whole)
        at += 12 + size
    return b"".join(out)


def levels(bits: int) -> int:
    """By what a gray value of so many bits was multiplied."""
    return 255 // ((1 << bits) - 1)

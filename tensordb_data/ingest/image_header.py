"""What the header of a JPEG or PNG says, without decoding it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import BinaryIO

_PNG = b"\x89PNG\r\n\x1a\n"
_GRAY_PNG = (0, 4)
_NOT_FRAMES = (0xC4, 0xC8, 0xCC)  # tables, between the markers that begin a frame


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image is made of."""

    gray: bool
    deep: bool
    """Whether it has 16 bits a channel."""


def read_header(path: Path) -> Header | None:
    """The header of an image file; None when it is no JPEG or PNG, or cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(26)
            if head.startswith(_PNG) and len(head) == 26:
                return Header(head[25] in _GRAY_PNG, head[24] == 16)
            if head.startswith(b"\xff\xd8"):
                file.seek(2)
                return _jpeg(file)
    except OSError:
        return None
    return None


def _jpeg(file: BinaryIO) -> Header | None:
    while True:
        mark = file.read(1)
        if mark != b"\xff":
            return None
        while mark == b"\xff":
            mark = file.read(1)
        length = int.from_bytes(file.read(2), "big")
        if not mark or length < 2:
            return None
        if 0xC0 <= mark[0] <= 0xCF and mark[0] not in _NOT_FRAMES:
            frame = file.read(6)
            return Header(frame[5] == 1, False) if len(frame) == 6 else None
        file.seek(length - 2, 1)

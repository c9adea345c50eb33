"""Containers of video: what the first bytes say, and whether all of the file is there."""

from __future__ import annotations

from tensordb_data.errors import CorruptBlobError
from tensordb_data.schema.field import Buffer


def video_format(data: Buffer) -> str | None:
    """The container of an encoded video, as FFmpeg calls it, by its first bytes; None if it is none that is read."""
    head = bytes(data[:64])
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return None if head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"M4A ") else "mov"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(b"FLV"):
        return "flv"
    if head.startswith(b"\0\0\1\xba"):
        return "mpeg"
    if head.startswith(b"OggS") and b"theora" in head:
        return "ogg"
    if len(data) >= 189 and data[0] == data[188] == 0x47:
        return "mpegts"
    return None


def check_whole(data: Buffer, name: str) -> None:
    """Refuse a file that is shorter than its container says. FFmpeg takes what is left for all of it.

    Args:
        data: The file.
        name: What `video_format` calls its container.

    Raises:
        CorruptBlobError: It was cut off.
    """
    view = memoryview(data)
    end = {"mov": _end_of_boxes, "matroska": _end_of_segment, "avi": _end_of_riff}.get(name, len)(view)
    if end > len(view):
        raise CorruptBlobError(f"expected a video of {end} bytes, as it says itself, found {len(view)}: truncated")


def _end_of_boxes(data: memoryview) -> int:
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1 and at + 16 <= len(data):
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0: to the end of the file
            return len(data)
        at += size
    return at


def _end_of_segment(data: memoryview) -> int:
    at = 4
    size, length = _number(data, at)
    at += length + (size or 0)
    if bytes(data[at : at + 4]) != b"\x18S\x80g":
        return len(data)
    size, length = _number(data, at + 4)
    return len(data) if size is None else at + 4 + length + size


def _number(data: memoryview, at: int) -> tuple[int | None, int]:
    """A number of EBML and its length; None if it is not known."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length() if first else 8
    bits = 7 * length
    value = int.from_bytes(data[at : at + length], "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value, length


def _end_of_riff(data: memoryview) -> int:
    return 8 + int.from_bytes(data[4:8], "little")

"""Messages of Protocol Buffers, read without their descriptions."""

from __future__ import annotations

from collections.abc import Iterator


def fields(data: memoryview | bytes) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: number, and an integer or bytes. Numbers of fixed width are the integers of their bytes.

    Raises:
        ValueError: It is no message.
        IndexError: It is cut off within an integer.
    """
    view, at = memoryview(data), 0
    while at < len(view):
        tag, at = varint(view, at)
        kind = tag & 7
        if kind == 0:
            value, at = varint(view, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = varint(view, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of the wire type {kind}")
        if at + length > len(view):
            raise ValueError("a field that is cut off")
        part = view[at : at + length]
        at += length
        yield tag >> 3, part if kind == 2 else int.from_bytes(part, "little")


def varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """The integer at a place, and where it ends.

    Raises:
        ValueError: It has more than 64 bits.
        IndexError: It is cut off.
    """
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")


def signed(value: int) -> int:
    """An integer of a message as one of 64 bits with a sign."""
    return value - (1 << 64) if value >= 1 << 63 else value

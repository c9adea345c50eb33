"""Pieces of n documents in BSON. Put one after the other, they are the documents.

A piece is the same bytes in each document, or the rows of a table if it has one size in all of them, or else n strings
of bytes. What is a table costs next to nothing for each document.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import bson
import numpy as np
import numpy.typing as npt
from bson import ObjectId

Table = npt.NDArray[np.uint8]
"""The same number of bytes in each document: uint8[n, size]."""
Piece = bytes | Table | list[bytes]

_FLOAT, _STRING, _DOCUMENT, _BINARY, _ID, _BOOL, _INT, _LONG = b"\x01\x02\x03\x05\x07\x08\x10\x12"
_INT_RANGE = range(-(2**31), 2**31)
LARGEST_INT = _INT_RANGE[-1]
"""The largest integer that a document holds in four bytes; a larger one takes eight."""


def element(name: str, value: Any) -> bytes:
    """One field of a document."""
    return bson.encode({name: value})[4:-1]


def elements(name: str, values: Iterable[Any]) -> list[bytes]:
    """A field of n documents, whose values differ in size; None where a document has no such field."""
    return [b"" if value is None else element(name, value) for value in values]


def ids(name: str, values: Sequence[ObjectId]) -> list[Piece]:
    """A field of ids."""
    joined = b"".join([id.binary for id in values])
    return [_head(_ID, name), np.frombuffer(joined, np.uint8).reshape(len(values), 12)]


def integers(name: str, values: Sequence[int] | npt.NDArray[np.int64]) -> list[Piece]:
    """A field of integers of 64 bits. BSON stores those of 32 bits in four bytes, so they may differ in size."""
    numbers = np.asarray(values, np.int64)
    narrow = (numbers >= _INT_RANGE[0]) & (numbers <= LARGEST_INT)
    if narrow.all():
        return [_head(_INT, name), table(numbers, "<i4")]
    if not narrow.any():
        return [_head(_LONG, name), table(numbers, "<i8")]
    return [scattered(len(numbers), [
        (np.flatnonzero(some), [_head(kind, name), table(numbers[some], dtype)])
        for some, kind, dtype in ((narrow, _INT, "<i4"), (~narrow, _LONG, "<i8"))
    ])]  # fmt: skip


def numbers(name: str, values: Table) -> list[Piece]:
    """A field of integers of 32 bits, which are in a table already."""
    return [_head(_INT, name), values]


def floats(name: str, values: Sequence[float]) -> list[Piece]:
    """A field of floats."""
    return [_head(_FLOAT, name), table(np.asarray(values, np.float64), "<f8")]


def bools(name: str, values: Sequence[bool]) -> list[Piece]:
    """A field of truth values."""
    return [_head(_BOOL, name), table(np.asarray(values, np.bool_), "u1")]


def texts(name: str, values: Sequence[str]) -> list[Piece]:
    """A field of texts."""
    distinct = set(values)
    if 4 * len(distinct) <= len(values):
        made = {text: element(name, text) for text in distinct}
        return [made[values[0]]] if len(made) == 1 else [[made[text] for text in values]]
    data = [text.encode() for text in values]
    lengths = np.fromiter(map(len, data), np.int64, len(data)) + 1
    return [_head(_STRING, name), table(lengths, "<i4"), data, b"\0"]


def binaries(name: str, values: Sequence[bytes]) -> list[Piece]:
    """A field of bytes."""
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    same = len(values) > 0 and bool((lengths == lengths[0]).all())
    data: Piece = list(values)
    if same:
        data = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), int(lengths[0]))
    return [_head(_BINARY, name), table(lengths, "<i4"), b"\0", data]


def document(name: str, pieces: Sequence[Piece], n: int) -> list[Piece]:
    """A field whose values are documents."""
    return [_head(_DOCUMENT, name), *whole(pieces, n)]


def whole(pieces: Sequence[Piece], n: int) -> list[Piece]:
    """Documents of given fields: with their sizes in front, and the byte that ends them."""
    fixed, varying = 5, np.zeros(n, np.int64)
    for piece in pieces:
        if isinstance(piece, list):
            varying += np.fromiter(map(len, piece), np.int64, n)
        else:
            fixed += _width(piece)
    size: Piece = fixed.to_bytes(4, "little")
    if any(isinstance(piece, list) for piece in pieces):
        size = table(varying + fixed, "<i4")
    return [size, *pieces, b"\0"]


def scattered(n: int, parts: Iterable[tuple[npt.NDArray[np.intp], Sequence[Piece]]]) -> list[bytes]:
    """Pieces of some of the documents each, as one of all n; a document that is in no part has nothing."""
    out = [b""] * n
    for rows, pieces in parts:
        for row, data in zip(rows.tolist(), joined(pieces, len(rows)), strict=True):
            out[row] = data
    return out


def merged(pieces: Iterable[Piece], n: int) -> list[Table | list[bytes]]:
    """The same with as few pieces as possible: tables, and what varies between them."""
    out: list[Table | list[bytes]] = []
    run: list[bytes | Table] = []
    for piece in chain(pieces, [[]]):  # the last one ends the run
        if not isinstance(piece, list):
            run.append(piece)
            continue
        if run:
            out.append(_filled(run, n))
            run = []
        if piece:
            out.append(piece)
    return out


def joined(pieces: Sequence[Piece], n: int) -> list[bytes]:
    """The n strings of bytes that the pieces make."""
    parts = [piece if isinstance(piece, list) else _rows(piece) for piece in merged(pieces, n)]
    return parts[0] if len(parts) == 1 else [b"".join(row) for row in zip(*parts, strict=True)]


def concatenated(pieces: Sequence[Piece], n: int) -> bytes:
    """What the pieces make, as one string of bytes."""
    found = merged(pieces, n)
    if len(found) == 1 and not isinstance(found[0], list):
        return found[0].tobytes()
    return b"".join(joined(pieces, n))


def table(values: npt.NDArray[Any], dtype: str) -> Table:
    """Numbers as the rows of a table."""
    packed = np.ascontiguousarray(values.astype(dtype, copy=False))
    return packed.view(np.uint8).reshape(len(packed), packed.dtype.itemsize)


def _rows(piece: Table) -> list[bytes]:
    data, size = piece.tobytes(), piece.shape[1]
    return [data[at : at + size] for at in range(0, len(data), size)] if size else [b""] * len(piece)


def _filled(run: Sequence[bytes | Table], n: int) -> Table:
    out: Table = np.empty((n, sum(map(_width, run))), np.uint8)
    at = 0
    for piece in run:
        end = at + _width(piece)
        out[:, at:end] = np.frombuffer(piece, np.uint8) if isinstance(piece, bytes) else piece
        at = end
    return out


def _width(piece: bytes | Table) -> int:
    return len(piece) if isinstance(piece, bytes) else piece.shape[1]


def _head(kind: int, name: str) -> bytes:
    return bytes((kind,)) + name.encode() + b"\0"

"""The safetensors layout: written without putting the tensors together in memory first, and its headers read.

8 bytes little-endian header length, a JSON header (name: dtype, shape, data_offsets), then the data without gaps. Any
safetensors reader opens such an object. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tensordb_data.common.system.files import read_at
from tensordb_data.tensors.leaf import Leaf, nbytes_of

# torch and numpy names to those of safetensors; what it does not have travels as bytes, our own structure knows better.
_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "|b1": "BOOL", "|u1": "U8", "|i1": "I8", "<i2": "I16", "<u2": "U16", "<i4": "I32", "<u4": "U32", "<i8": "I64",
    "<u8": "U64", "<f2": "F16", "<f4": "F32", "<f8": "F64", "<c8": "C64",
}  # fmt: skip

_OF_TORCH = {name: dtype for dtype, name in _NAMES.items() if dtype[0] not in "<|"}
_LONGEST = 100_000_000  # bytes of a header, by the format
METADATA = "__metadata__"
"""The one name in a header that is not that of a tensor."""

_PAGE = 4096
_LARGE = 256 * _PAGE  # bytes from which on a page of padding does not matter


class Place(NamedTuple):
    """A tensor in a file: the dtype as torch calls it, and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def has_name(dtype: str) -> bool:
    """Whether the format has a name for a dtype of torch or NumPy."""
    return dtype in _NAMES


def read_header(fd: int) -> tuple[list[Place], dict[str, str]]:
    """Read the header of an open file, and check that the file is what it says.

    Returns:
        The tensors in the order of their bytes, and the texts that say what the file is.

    Raises:
        ValueError: It is no such file, or damaged. Nothing larger than the header was read.
    """
    size = os.fstat(fd).st_size
    length = int.from_bytes(_exactly(fd, 8, 0), "little")
    if length > min(size - 8, _LONGEST):
        raise ValueError(f"its header claims {length:,} bytes; the file has {size:,}, and no header {_LONGEST:,}")
    try:
        document = json.loads(_exactly(fd, length, 8), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("its header is no JSON object")
    metadata = document.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError(f"{METADATA} is no object of texts")
    places = sorted((_place(name, row, 8 + length) for name, row in document.items()), key=lambda one: one[3:])
    end = 8 + length
    for place in places:
        if place.offset != end:
            raise ValueError(f"tensor {place.name!r} does not begin where the one before it ends")
        end += place.nbytes
    if end != size:
        raise ValueError(f"its tensors end at byte {end:,}, and the file at {size:,}")
    return places, metadata


def _exactly(fd: int, nbytes: int, offset: int) -> bytes:
    found = b""
    while len(found) < nbytes:
        if not (piece := read_at(fd, nbytes - len(found), offset + len(found))):
            raise ValueError("it ends within its header")
        found += piece
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is twice in its header")
    return found


def _place(name: str, row: Any, data: int) -> Place:
    """One row of a header; `data` is where the data begins."""
    try:
        kind, shape, (low, high) = row["dtype"], row["shape"], row["data_offsets"]
        dtype, named = _OF_TORCH.get(kind), isinstance(shape, list)
    except (TypeError, KeyError, ValueError):
        named = False
    if not named or len(row) != 3 or type(low) is not int or type(high) is not int or not 0 <= low <= high:
        raise ValueError(f"tensor {name!r} has no dtype, shape and data_offsets")
    if dtype is None:
        raise ValueError(f"tensor {name!r} has the dtype {kind!r:.40}, which is not known here")
    if (needed := nbytes_of(dtype, shape)) != high - low:
        raise ValueError(f"tensor {name!r} has {high - low:,} bytes; {dtype} of its shape has {needed:,}")
    return Place(name, dtype, tuple(shape), data + low, high - low)


def header(leaves: Sequence[Leaf], metadata: Mapping[str, str], address: int = 0) -> tuple[bytes, list[int]]:
    """The bytes in front of the data, and the offset within the object at which each leaf will lie.

    Args:
        leaves: What is stored, in order, back to back.
        metadata: Short texts that say what the object is.
        address: Of the first byte of the data in memory: the offset in the object becomes the same within a page, so
            that the disk can read the one into the other without a copy between.
    """
    document: dict[str, object] = {"__metadata__": dict(metadata)}
    starts: list[int] = []
    end = 0
    for leaf in leaves:
        kind = _NAMES.get(leaf.dtype)
        starts.append(end)
        end += leaf.nbytes
        document[leaf.name] = {
            "dtype": kind or "U8",
            "shape": list(leaf.shape) if kind else [leaf.nbytes],
            "data_offsets": [starts[-1], end],
        }
    text = json.dumps(document, separators=(",", ":")).encode()
    # readers like the data aligned, to 8 bytes at least
    text += b" " * ((address - address % 8 - 8 - len(text)) % (_PAGE if end >= _LARGE else 8))
    front = len(text).to_bytes(8, "little") + text
    return front, [len(front) + start for start in starts]

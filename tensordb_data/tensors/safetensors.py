"""The safetensors layout, written without putting the tensors together in memory first.

8 bytes little-endian header length, a JSON header (name: dtype, shape, data_offsets), then the data without gaps. Any
safetensors reader opens such an object. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tensordb_data.tensors.leaf import Leaf

# torch and numpy names to those of safetensors; what it does not have travels as bytes, our own structure knows better.
_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "|b1": "BOOL", "|u1": "U8", "|i1": "I8", "<i2": "I16", "<u2": "U16", "<i4": "I32", "<u4": "U32", "<i8": "I64",
    "<u8": "U64", "<f2": "F16", "<f4": "F32", "<f8": "F64", "<c8": "C64",
}  # fmt: skip

_PAGE = 4096
_LARGE = 256 * _PAGE  # bytes from which on a page of padding does not matter


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

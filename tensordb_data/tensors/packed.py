"""Pack a small state with its tensors into one byte string, without pickle, to send it to another process."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from tensordb_data.tensors.leaf import build, host_bytes
from tensordb_data.tensors.tree import flatten, from_json, to_json, unflatten


def pack(state: Any) -> bytes:
    """The state as bytes.

    Raises:
        CheckpointError: It holds something that cannot be saved.
    """
    flat = flatten(state)
    leaves = [
        [leaf.kind, leaf.dtype, list(leaf.shape), base64.b64encode(host_bytes(leaf)).decode()] for leaf in flat.leaves
    ]
    return to_json({"tree": flat.structure, "leaves": leaves})


def unpack(data: bytes) -> Any:
    """The reverse of `pack`."""
    found = from_json(data)
    leaves = [
        build(kind, dtype, tuple(shape), np.frombuffer(bytearray(base64.b64decode(text)), np.uint8), "auto", "packed")
        for kind, dtype, shape, text in found["leaves"]
    ]
    return unflatten(found["tree"], leaves)

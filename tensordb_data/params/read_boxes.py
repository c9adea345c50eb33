"""Read parts of tensors: of what was saved in pieces only the pieces that have some of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tensordb_data.common.chunks import runs_by_size
from tensordb_data.errors import CorruptBlobError
from tensordb_data.params.table import LeafRow, Piece
from tensordb_data.tensors.pieces import Box, Bytes, copy_part, overlap
from tensordb_data.tensors.read import read_leaves

if TYPE_CHECKING:
    from tensordb_data.warehouse.context import Warehouse

AT_ONCE = 128 << 20
"""Bytes of tensors that are in memory besides what is wanted of them, unless one alone is larger."""


class _Read(NamedTuple):
    """A piece that is read for a part of a leaf."""

    number: int
    piece: Piece


def read_boxes(warehouse: Warehouse, wanted: Mapping[int, tuple[LeafRow, Box | None]], label: str) -> dict[int, Bytes]:
    """The bytes of parts of leaves, uint8 [n] in C order, by the numbers of the leaves.

    A tensor that was not saved in pieces is read as a whole, since its digest is that of all its bytes. Some are read
    at a time.

    Args:
        warehouse: The warehouse.
        wanted: The leaves, and which part of each; None for all of it.
        label: What they belong to, for messages.

    Raises:
        CheckpointError: The warehouse does not have one of them any more.
        CorruptBlobError: Stored bytes do not match their digest.
        StorageError: The blob store failed.
    """
    boxes = {n: box or Box((0,) * len(row.shape), row.shape) for n, (row, box) in wanted.items()}
    memory: dict[int, Bytes] = {}
    reads = []
    for number, (row, _) in wanted.items():
        if row.nbytes is None:
            raise CorruptBlobError(f"{label}: {row.name!r} is of {row.dtype}, of which parts cannot be told here")
        pieces = row.pieces or (Piece(Box((0,) * len(row.shape), row.shape), row.nbytes, row.content, row.inline),)
        here = [_Read(number, piece) for piece in pieces if overlap(piece.box, boxes[number]) is not None]
        if not (len(here) == 1 and here[0].piece.box == boxes[number]):  # or its bytes are taken as they are
            memory[number] = np.empty(boxes[number].size * row.itemsize, np.uint8)
        reads += here
    for low, high in runs_by_size((read.piece.nbytes for read in reads), AT_ONCE):
        some = reads[low:high]
        named = {i: wanted[read.number][0].name for i, read in enumerate(some)}
        stored = {i: (named[i], read.piece.content) for i, read in enumerate(some) if read.piece.content is not None}
        got = read_leaves(warehouse, stored, label, {i: some[i].piece.nbytes for i in stored})
        for i, read in enumerate(some):
            data = got.pop(i) if i in stored else np.frombuffer(bytearray(read.piece.inline), np.uint8)
            if read.number not in memory:
                memory[read.number] = data
            else:
                itemsize = wanted[read.number][0].itemsize
                copy_part(memory[read.number], boxes[read.number], data, read.piece.box, itemsize)
    return memory

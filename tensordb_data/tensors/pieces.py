"""A part of a tensor that several processes hold together, and how such parts lie in the whole."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Box(NamedTuple):
    """A part of a tensor with the same number of dimensions."""

    offset: tuple[int, ...]
    """Its first element in the whole."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class LocalPiece:
    """What this process holds of a tensor; a value in a state that is saved.

    Attributes:
        value: The tensor of the part.
        whole: The shape of the whole tensor.
        box: Which part it is; None if another process stores it, or if this one has nothing of it.
    """

    value: Any
    whole: tuple[int, ...]
    box: Box | None


def divided_box(
    whole: Sequence[int], mesh: Sequence[int], coordinate: Sequence[int], dims: Sequence[tuple[int, bool] | None]
) -> Box:
    """The part of a tensor that one process holds, as DTensor divides it: evenly, from the first process on.

    Args:
        whole: The shape of the tensor.
        mesh: The shape of the mesh of processes.
        coordinate: The place of the process in it.
        dims: For each dimension of the mesh the dimension of the tensor that it divides, and whether it divides what
            later dimensions of the mesh leave (`_StridedShard`, which FSDP2 makes on tensor parallel modules); None
            where it divides nothing.
    """
    offset, shape = [0] * len(whole), list(whole)
    first = [number for number, each in enumerate(dims) if each is not None and not each[1]]
    strided = [number for number, each in enumerate(dims) if each is not None and each[1]]
    for number in [*first, *reversed(strided)]:
        dim = dims[number][0]  # type: ignore[index]
        size = -(-shape[dim] // mesh[number])
        begin = min(coordinate[number] * size, shape[dim])
        offset[dim] += begin
        shape[dim] = min(size, shape[dim] - begin)
    return Box(tuple(offset), tuple(shape))


def is_whole(whole: Sequence[int], boxes: Collection[Box]) -> bool:
    """Whether parts make up a tensor: each element is in one of them. Parts lie in a grid, as DTensor makes them."""
    if len(set(boxes)) != len(boxes) or any(len(box.shape) != len(whole) for box in boxes):
        return False
    count = 1
    for dim, length in enumerate(whole):
        spans = sorted({(box.offset[dim], box.shape[dim]) for box in boxes})
        end = 0
        for begin, size in spans:
            if begin != end or size <= 0:
                return False
            end += size
        if end != length:
            return False
        count *= len(spans)
    return count == len(boxes)


def overlap(one: Box, other: Box) -> Box | None:
    """What two parts of a tensor have in common; None if that is nothing."""
    low = [max(a, b) for a, b in zip(one.offset, other.offset, strict=True)]
    ends = zip(one.offset, one.shape, other.offset, other.shape, strict=True)
    high = [min(a + n, b + m) for a, n, b, m in ends]
    if any(begin >= end for begin, end in zip(low, high, strict=True)):
        return None
    return Box(tuple(low), tuple(end - begin for begin, end in zip(low, high, strict=True)))


def copy_part(target: Bytes, to: Box, source: Bytes, of: Box, itemsize: int) -> None:
    """Copy what two parts have in common, as bytes in C order, from one to the other."""
    common = overlap(to, of)
    if common is not None:
        _view(target, to, common, itemsize)[...] = _view(source, of, common, itemsize)


def _view(memory: Bytes, box: Box, part: Box, itemsize: int) -> Bytes:
    slices = [slice(low - at, low - at + n) for low, at, n in zip(part.offset, box.offset, part.shape, strict=True)]
    return memory.reshape((*box.shape, itemsize))[tuple(slices)]

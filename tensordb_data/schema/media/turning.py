"""Volumes turned so that their axes go where a text such as `RAS` says: to the right, to the front and to the top."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from tensordb_data.errors import CorruptBlobError
from tensordb_data.schema.media.scaling import Voxels

_LETTERS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
"""Which direction of space a letter is: an axis of the affine, and its sign."""


def is_orientation(text: object) -> bool:
    """Whether a text has a letter for each direction of space, as `RAS` and `LPS` have."""
    return (
        isinstance(text, str)
        and len(text) == 3
        and all(letter in _LETTERS for letter in text)
        and len({_LETTERS[letter][0] for letter in text}) == 3
    )


def turned(values: Voxels, affine: npt.NDArray[np.float64] | None, orient: str) -> Voxels:
    """The same numbers, with the first three axes swapped and turned round. Nothing between the voxels is computed.

    Args:
        values: The numbers, three dimensions or more.
        affine: float64 [4, 4]: from their indices to millimetres, to the right, front and top.
        orient: Where the indices of each axis shall grow to.

    Returns:
        A copy, or the array itself if it lies so already.

    Raises:
        CorruptBlobError: It has fewer dimensions, or does not say how it lies in space.
    """
    if values.ndim < 3:
        raise CorruptBlobError(f"orient={orient!r} turns volumes of three dimensions, found the shape {values.shape}")
    lengths = np.zeros(3) if affine is None else np.linalg.norm(affine[:3, :3], axis=0)
    if affine is None or not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        raise CorruptBlobError(f"orient={orient!r} needs a volume that says how it lies in space, found one without")
    cosines = affine[:3, :3] / lengths  # by direction of space and axis of the array
    wanted = [_LETTERS[letter] for letter in orient]
    axes = max(
        itertools.permutations(range(3)),
        key=lambda order: sum(abs(cosines[world, axis]) for (world, _), axis in zip(wanted, order, strict=True)),
    )
    found = values.transpose(*axes, *range(3, values.ndim))
    for at, ((world, sign), axis) in enumerate(zip(wanted, axes, strict=True)):
        if cosines[world, axis] * sign < 0:
            found = np.flip(found, at)
    return np.ascontiguousarray(found)

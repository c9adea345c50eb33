"""Numbers of a volume: stored ones become those that are meant, and those that a field holds, without losing any."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tensordb_data.errors import CorruptBlobError
from tensordb_data.schema.media.files import limit

MAX_VOXELS = 1_000_000_000
"""Numbers in a volume that is decoded, unless `TENSORDB_MAX_VOXELS` says otherwise: 4 GB as float32."""
_VARIABLE = "TENSORDB_MAX_VOXELS"

Voxels = npt.NDArray[Any]


def check_voxels(count: int) -> None:
    """Refuse a volume that claims too many numbers.

    Raises:
        CorruptBlobError: It does.
    """
    most = limit(_VARIABLE, MAX_VOXELS)
    if count > most:
        raise CorruptBlobError(
            f"expected a volume of at most {most:,} numbers, found one that claims {count:,}: if it is meant, set the"
            f" environment variable {_VARIABLE} to more"
        )


def is_whole(slope: float, intercept: float) -> bool:
    """Whether whole numbers stay whole."""
    return float(slope).is_integer() and float(intercept).is_integer()


def rescaled(raw: Voxels, slope: float, intercept: float) -> Voxels:
    """`raw * slope + intercept`: whole numbers of 64 bits where all are whole, otherwise float64."""
    if raw.dtype.kind in "iu" and is_whole(slope, intercept) and max(abs(slope), abs(intercept)) < 2**31:
        if (slope, intercept) == (1, 0):
            return raw
        if raw.dtype.itemsize < 8:
            return raw.astype(np.int64) * int(slope) + int(intercept)
    found: Voxels = raw.astype(np.float64) * slope + intercept
    return found


def held(values: Voxels, dtype: np.dtype[Any]) -> Voxels:
    """Values as another dtype, in C order.

    Raises:
        CorruptBlobError: It does not hold them.
    """
    if values.dtype == dtype:
        return np.ascontiguousarray(values)
    if dtype.kind in "iu" and values.size:
        low, high = values.min(), values.max()
        info = np.iinfo(dtype)
        if not (info.min <= low and high <= info.max):  # NaN, too
            raise CorruptBlobError(
                f"expected values that {dtype} holds, found some from {low} to {high}: give Volume('float32')"
            )
        if values.dtype.kind == "f" and (values != np.floor(values)).any():
            raise CorruptBlobError(f"expected whole values, for {dtype}, found others: give Volume('float32')")
    return np.ascontiguousarray(values, dtype)

"""Columns of pandas, Arrow and Polars as lists and arrays: integers keep their digits, missing values become None."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_column(value: Any) -> Any:
    """A column as an array of numbers, or as a list."""
    module = type(value).__module__.partition(".")[0]
    if module == "pandas":
        value = _from_pandas(value)
    elif module == "pyarrow":
        value = _from_arrow(value)
    elif module == "polars" and value.null_count():
        value = value.to_list()
    elif hasattr(value, "to_numpy"):
        value = value.to_numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind in "OUST":
        return value.tolist()
    return value


def _from_pandas(value: Any) -> Any:
    dtype = getattr(value, "dtype", None)
    if dtype is None or (isinstance(dtype, np.dtype) and dtype.kind not in "OmM"):
        return value.to_numpy()
    missing = value.isna()
    if not missing.any():
        return value.to_numpy()
    return [None if lacks else item for item, lacks in zip(value.tolist(), missing.tolist(), strict=True)]


def _from_arrow(value: Any) -> Any:
    import pyarrow as pa

    if not isinstance(value, (pa.Array, pa.ChunkedArray)):
        return value
    kind = value.type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not pa.types.is_nested(kind) and (value.null_count or not number):
        return value.to_pylist()
    if isinstance(value, pa.ChunkedArray):
        return value.to_numpy()
    return value.to_numpy(zero_copy_only=False)

"""Values that say that there is none: None, and what pandas and NumPy put in its place."""

from __future__ import annotations

from typing import Any

import numpy as np


def is_missing(value: Any) -> bool:
    """Whether a value stands for no value: None, `pd.NaT`, `pd.NA` or `np.datetime64("NaT")`. NaN is a number."""
    if value is None:
        return True
    kind = type(value)
    if kind is np.datetime64 or kind is np.timedelta64:
        return bool(np.isnat(value))
    return kind.__name__ in ("NaTType", "NAType") and kind.__module__.startswith("pandas.")

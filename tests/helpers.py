"""What several tests need."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np


def same(found: Any, expected: Any) -> bool:
    """Asserts that two values are equal to the last bit, types and the order of keys included."""
    assert type(found) is type(expected)
    torch = sys.modules.get("torch")
    if isinstance(expected, dict):
        assert list(found) == list(expected) and [*map(type, found)] == [*map(type, expected)]
        assert all(same(found[key], expected[key]) for key in expected)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected) and all(map(same, found, expected))
    elif isinstance(expected, (np.ndarray, np.generic)):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
    elif torch is not None and isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        if expected.numel():
            assert found.reshape(-1).view(torch.uint8).equal(expected.reshape(-1).view(torch.uint8))
    elif isinstance(expected, float):
        alike = found == expected and math.copysign(1, found) == math.copysign(1, expected)
        assert alike or (math.isnan(found) and math.isnan(expected))
    else:
        assert found == expected
    return True

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensordb_data import TensorDB
from tensordb_data.api.selection import Selection

N = 301


@pytest.fixture
def sel(db: TensorDB) -> Selection[Any]:
    """301 samples, whose label is their number."""
    images = np.arange(N * 6, dtype=np.uint16).reshape(N, 2, 3)
    with db.data.writer("numbers") as writer:
        writer.add_many(image=images, label=np.arange(N), name=[f"n{i}" for i in range(N)])
    return db.data.find({"dataset": "numbers"})

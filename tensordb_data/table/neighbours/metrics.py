"""How near two vectors are: fast bounds from products in float32, and the exact value in float64.

A product of matrices rounds, and may round the same vector differently at another place in the matrix. So it only says
which vectors may be among the nearest. Those are compared anew, each by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import QueryError
from tensordb_data.table.neighbours.vectors import Vectors

METRICS = ("cosine", "l2", "dot")
_CHUNK = 8 << 20  # bytes of float64 at a time
_SLACK = 3e-7  # relative: what is nearer than this may have the same score

Float64s = NDArray[np.float64]


def rounding(width: int) -> tuple[float, float]:
    """By how much a product of float32 vectors may be wrong: relative to their lengths, and what is added to it."""
    return (width + 32) * 6.6e-8, width * 2.4e-38


def check_metric(metric: object, what: str) -> str:
    """Refuse what is no metric.

    Raises:
        QueryError: It is none.
    """
    if not isinstance(metric, str) or metric not in METRICS:
        raise QueryError(f"{what}: metric is one of {', '.join(map(repr, METRICS))}; found {metric!r:.100}")
    return metric


@dataclass(frozen=True)
class Comparison:
    """One vector, with which others are compared.

    A key orders as scores do: the cosine, the dot product, or minus the square of the distance.
    """

    vector: NDArray[np.float32]
    """float32 [d]."""
    metric: str

    @property
    def _square(self) -> float:
        found = self.vector.astype(np.float64)
        return float(found @ found)

    def bounds(self, vectors: Vectors) -> tuple[Float64s, Float64s]:
        """The least and the greatest that each key can be: two arrays float64 [m]."""
        square = self._square
        size = np.sqrt(square)
        lengths = np.sqrt(vectors.squares)
        relative, added = rounding(len(self.vector))
        unit = (self.vector / size).astype(np.float32) if size else self.vector
        with np.errstate(all="ignore"):
            product = (vectors.matrix @ unit).astype(np.float64)
            wrong = relative * lengths + added
            if self.metric == "cosine":
                key, error = product / lengths, wrong / lengths
            elif self.metric == "dot":
                key, error = product * size, wrong * size
            else:
                both = vectors.squares + square
                key, error = 2 * size * product - both, 2 * size * wrong + 1e-12 * both
            error = error + _SLACK * np.abs(key)
            known = np.isfinite(key)
            return np.where(known, key - error, -np.inf), np.where(known, key + error, np.inf)

    def exact(self, vectors: Vectors, which: NDArray[np.int64]) -> Float64s:
        """The keys of the vectors at some positions: float64 [len(which)]."""
        vector, square = self.vector.astype(np.float64), self._square
        keys = np.empty(len(which))
        step = max(1, _CHUNK // (8 * len(vector)))
        for low in range(0, len(which), step):
            some = which[low : low + step]
            rows = vectors.matrix[some].astype(np.float64)
            if self.metric == "l2":
                keys[low : low + step] = -np.square(rows - vector).sum(axis=1)
                continue
            keys[low : low + step] = (rows * vector).sum(axis=1)
            if self.metric == "cosine":
                keys[low : low + step] /= np.sqrt(vectors.squares[some] * square)
        return keys

    def scores(self, keys: Float64s) -> Float64s:
        """What a user sees of keys."""
        if self.metric == "cosine":
            return as_cosine(keys)
        return 0.0 - np.sqrt(-keys) if self.metric == "l2" else keys


def as_cosine(keys: Float64s) -> Float64s:
    """Cosines to the precision of float32: those of the same direction are all 1."""
    return np.clip(keys, -1, 1).astype(np.float32).astype(np.float64)

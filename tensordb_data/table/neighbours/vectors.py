"""The vectors of a field as float32 matrices, read in bulk; and the newest of them, kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import QueryError
from tensordb_data.schema.array import numpy_dtype

KEPT_BYTES = 512 << 20
"""Bytes of matrices that a warehouse keeps in memory, of one project and process."""
MOST_NUMBERS = 1 << 20
"""Numbers of one vector, at most."""


@dataclass(frozen=True)
class LeftOut:
    """How many samples have no vector that can be compared."""

    missing: int = 0
    """Samples without the field."""
    zero: int = 0
    """Vectors of zeros, which have no direction."""
    nan: int = 0
    """Vectors with a NaN, an infinity, or a number that float32 does not hold."""

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(self.missing + other.missing, self.zero + other.zero, self.nan + other.nan)


@dataclass(frozen=True)
class Vectors:
    """Some vectors, of which none is zero or has a NaN."""

    rows: NDArray[np.int64]
    """int64 [m]: which samples of the plan these are of, ascending."""
    matrix: NDArray[np.float32]
    """float32 [m, d]."""
    squares: NDArray[np.float64]
    """float64 [m]: the squares of their lengths."""
    left_out: LeftOut
    """Those that were left out while these were read."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self.rows.nbytes + self.matrix.nbytes + self.squares.nbytes

    def take(self, low: int, high: int) -> Vectors:
        """Those from `low` to `high`, which share memory with these."""
        some = slice(low, high)
        return Vectors(self.rows[some], self.matrix[some], self.squares[some], LeftOut())


def can_be_kept(count: int, width: int) -> bool:
    """Whether so many vectors of so many numbers may stay in memory."""
    return nbytes_of(count, width) <= KEPT_BYTES


def nbytes_of(count: int, width: int) -> int:
    """The memory that `Vectors` take."""
    return count * (4 * width + 16)


def clean(rows: NDArray[np.int64], matrix: NDArray[np.float32]) -> Vectors:
    """The vectors that can be compared, of some."""
    # float64 holds the square of any float32, so only what is not finite has a sum that is not.
    squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
    finite, zero = np.isfinite(squares), squares == 0
    left_out = LeftOut(0, int(zero.sum()), int((~finite).sum()))
    good = finite & ~zero
    if not good.all():
        rows, matrix, squares = rows[good], matrix[good], squares[good]
    return Vectors(rows, matrix, squares, left_out)


def join(parts: Sequence[Vectors]) -> Vectors:
    """Several as one. It copies them, unless there is one only."""
    if len(parts) == 1:
        return parts[0]
    return Vectors(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.matrix for part in parts]),
        np.concatenate([part.squares for part in parts]),
        sum((part.left_out for part in parts), LeftOut()),
    )


def as_float32(value: Any, where: str) -> NDArray[np.float32]:
    """Numbers as float32. What it does not hold becomes infinite.

    Raises:
        QueryError: They are no real numbers.
    """
    array = np.asarray(value)
    if not _is_numeric(array.dtype):
        raise QueryError(f"{where}: expected real numbers, found {array.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def check_dtype(name: str, where: str) -> None:
    """Refuse a dtype whose values are no real numbers.

    Raises:
        QueryError: It is bool or complex.
    """
    if not _is_numeric(numpy_dtype(name)):
        raise QueryError(
            f"{where}: expected an array of integers or floats, found one of {name}; add a field with what is to be"
            " compared, as float32 say"
        )


def _is_numeric(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iuf" or dtype.type.__module__.startswith("ml_dtypes")


def stacked(column: Any, width: int | None, names: Sequence[str], field: str) -> NDArray[np.float32]:
    """Loaded values as rows of a matrix.

    Args:
        column: An array [m, ...], or a list of m arrays.
        width: The numbers that each must have; None for as many as the first one has.
        names: How errors speak of the samples.
        field: The field.

    Raises:
        QueryError: They do not have one number of numbers, or too many.
    """
    for row, value in enumerate(column if isinstance(column, list) else column[:1]):
        found = int(np.asarray(value).size)
        width = found if width is None else width
        if found != width:
            raise QueryError(
                f"{names[row]}, field {field!r}: expected {width} numbers, as other samples have, found {found};"
                " vectors of one Selection have one length: narrow the query"
            )
        check_width(width, field)
    where = f"field {field!r}"
    if isinstance(column, list):  # datasets may have different dtypes
        return np.stack([as_float32(value, where).reshape(-1) for value in column])
    return as_float32(column, where).reshape(len(column), width or 0)


def check_width(width: int, field: str) -> None:
    """Refuse vectors of no numbers, or of so many that they are none.

    Raises:
        QueryError: They are.
    """
    if not 1 <= width <= MOST_NUMBERS:
        raise QueryError(
            f"field {field!r}: expected vectors of 1 to {MOST_NUMBERS:,} numbers, found {width:,}; name a field of"
            " embeddings"
        )


class KeptVectors:
    """The matrices that were used last, up to `KEPT_BYTES`; the least recently used ones go first."""

    def __init__(self) -> None:
        # Replaced as a whole: threads need no lock, and a fork finds none that is held.
        self._kept: tuple[tuple[Any, Vectors], ...] = ()

    def get(self, key: Any) -> Vectors | None:
        """The vectors of a key, if they are kept."""
        found = next((vectors for known, vectors in self._kept if known == key), None)
        if found is not None:
            self.keep(key, found)
        return found

    def keep(self, key: Any, vectors: Vectors) -> None:
        """Keep vectors, in place of those that have not been used for long."""
        others = [pair for pair in self._kept if pair[0] != key]
        room = KEPT_BYTES - vectors.nbytes
        kept: list[tuple[Any, Vectors]] = [(key, vectors)] if room >= 0 else []
        for pair in others:
            room -= pair[1].nbytes
            if room < 0:
                break
            kept.append(pair)
        self._kept = tuple(kept)

    def make_room(self, nbytes: int) -> None:
        """Let go of matrices before a new one is read, so that both together keep to the limit."""
        room, kept = KEPT_BYTES - nbytes, []
        for pair in self._kept:
            room -= pair[1].nbytes
            if room < 0:
                break
            kept.append(pair)
        self._kept = tuple(kept)

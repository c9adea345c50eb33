"""Tokens: the options of a stream whose batches are made by the lengths of sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from tensordb_data.common.options import OptionGroup, Written
from tensordb_data.errors import QueryError

Long = Literal["error", "drop", "cut", "split"]

WINDOW, PACK_WINDOW = 8192, 10_000
"""How many samples are sorted, or packed, together."""
_PACK_BITS = 24
"""Packing keeps a set of the rooms that are left, with a bit for each size."""


@dataclass(frozen=True, kw_only=True)
class Tokens(OptionGroup):
    """How batches are made of sequences: by tokens (`n`), or packed into rows of one length (`pack`).

    The lengths come from the index. So the batches are a function of the seed, the pass and the data, as the order is.

    Raises:
        QueryError: A value is outside its range, or `n` and `pack` are not exactly one.
    """

    n: int | None = None
    """The most tokens in a batch: the length of its longest sample times the number of its samples."""
    pack: int | None = None
    """The length of a row. Each row holds whole samples, one behind the other. A batch has `batch_size` rows."""
    length: str | None = None
    """The field that says how long a sample is: a whole number of the index, or an array, text or bytes, of which the
    index knows the size. None for the only array of one dimension that is delivered."""
    long: Long = "error"
    """What happens to samples longer than `n` or `pack`: `"error"`, or `"drop"` leaves them out. With `pack`, `"cut"`
    delivers their beginning, and `"split"` delivers all of them, in pieces of at most `pack`."""
    window: int | None = None
    """How many samples are sorted (8,192), or packed (10,000), together. Then come the next ones."""

    def _check(self, written: Written) -> None:
        for name, bits in (("n", 31), ("pack", _PACK_BITS), ("window", 31)):
            value = getattr(self, name)
            if isinstance(value, np.integer):
                value = int(value)
                object.__setattr__(self, name, value)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**bits:
                raise QueryError(
                    f"{written(name)} must be a whole number of at least 1 (and below 2**{bits}). Found: {value!r}"
                )
        if (self.n is None) == (self.pack is None):
            found = "neither" if self.n is None else "both"
            raise QueryError(
                f"sequences are batched by {written('n')} or packed by {written('pack')}: give one of them. Found:"
                f" {found}"
            )
        if self.length is not None and (not isinstance(self.length, str) or not self.length):
            raise QueryError(f"{written('length')} is the name of a field. Found: {self.length!r}")
        if self.long not in get_args(Long):
            raise QueryError(f"{written('long')} must be one of {', '.join(get_args(Long))}. Found: {self.long!r}")
        if self.n is not None and self.long in ("cut", "split"):
            raise QueryError(
                f'{written("long")} must be "error" or "drop" with {written("n")}, which cuts no samples: cut them in a'
                f" transform, and name a field with the lengths that it leaves. Found: {self.long!r}"
            )
        if self.window is None:
            object.__setattr__(self, "window", WINDOW if self.pack is None else PACK_WINDOW)

    @property
    def most(self) -> int:
        """The length of the longest sample that a batch can hold."""
        most = self.n if self.pack is None else self.pack
        assert most is not None
        return most

    @property
    def samples_together(self) -> int:
        """`window`, which always has a value."""
        assert self.window is not None
        return self.window

    def to_doc(self) -> dict[str, Any]:
        """The JSON form, for the state of a stream."""
        return {name: getattr(self, name) for name in ("n", "pack", "length", "long", "window")}

"""Items: what the passes of a stream of sequences go over: samples of a plan, or pieces of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import SampleError
from tensordb_data.stream.plan.sample_table import SampleTable
from tensordb_data.stream.tokens import Tokens


@dataclass(frozen=True)
class Items:
    """m items."""

    rows: NDArray[np.int64]
    """int64 [m]: the row of the plan of each."""
    offset: NDArray[np.int64]
    """int64 [m]: where in its sample an item begins."""
    length: NDArray[np.int64]
    """int64 [m]: its length."""
    whole: NDArray[np.int64]
    """int64 [m]: the length of its sample."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, numbers: NDArray[np.int64]) -> Items:
        """Some of the items."""
        return Items(self.rows[numbers], self.offset[numbers], self.length[numbers], self.whole[numbers])


def items_of(table: SampleTable, lengths: NDArray[np.int64], tokens: Tokens) -> Items:
    """What to deliver of the samples of a plan, some of which may be too long.

    Args:
        table: The samples.
        lengths: int64 [n]: their lengths.
        tokens: Says what is too long, and what happens to it.

    Raises:
        SampleError: A sample is too long, and that is to be an error.
    """
    most = tokens.most
    rows, none = np.arange(len(lengths)), np.zeros(1, np.int64)
    is_long = lengths > most
    if is_long.any():
        if tokens.long == "error":
            row = int(np.flatnonzero(is_long)[0])
            option, others = ("pack", '"drop", "cut" or "split"') if tokens.n is None else ("batch_tokens", '"drop"')
            raise SampleError(
                f"{table.name(row)} has the length {lengths[row]}, and {option}={most} holds none above {most} (there"
                f" are {is_long.sum()} such samples); make it larger, or say what happens to them: long={others}"
            )
        if tokens.long == "drop":
            rows = rows[~is_long]
        if tokens.long == "split":
            return _pieces(lengths, most)
    found = lengths[rows]
    return Items(rows, np.broadcast_to(none, found.shape), np.minimum(found, most), found)


def _pieces(lengths: NDArray[np.int64], most: int) -> Items:
    counts = np.maximum(-(-lengths // most), 1)
    rows = np.repeat(np.arange(len(lengths)), counts)
    offset = (np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)) * most
    return Items(rows, offset, np.minimum(lengths[rows] - offset, most), lengths[rows])

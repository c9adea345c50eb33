"""Which streams a mix may have, and from which of them each of its samples comes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tensordb_data.errors import QueryError
from tensordb_data.stream.order.permutation import draw, pass_key

if TYPE_CHECKING:
    from tensordb_data.stream.spec import StreamSpec

_AGREE = ("batch_size", "ragged", "rank", "world_size")


class Proportions:
    """The stream of each sample of a mix, drawn by weights: a function of (seed, number of the sample).

    Raises:
        QueryError: A weight is not a positive number, or the seed none that can be used.
    """

    def __init__(self, weights: Sequence[object], seed: int) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise QueryError(f"`seed` must be a whole number from 0 to 2**63 - 1. Found: {seed!r}")
        self.weights, self.seed = [_weight(weight) for weight in weights], seed
        self._sums = np.cumsum(np.array(self.weights, np.float64))

    def choices(self, low: int, high: int) -> NDArray[np.int64]:
        """The streams of the samples `low` to `high` - 1: int64 [samples]."""
        return draw(np.arange(low, high), pass_key(self.seed, 0), len(self.weights), self._sums)

    def counts(self, choices: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of some samples come from each stream: int64 [streams]."""
        return np.bincount(choices, minlength=len(self.weights))


def check_agreement(specs: Sequence[StreamSpec]) -> None:
    """Check that streams can be parts of one mix.

    Raises:
        QueryError: They cannot, and why.
    """
    for name in _AGREE:
        values = {getattr(spec, name) for spec in specs}
        if len(values) > 1:
            raise QueryError(
                f"the streams of a mix must have one `{name}`. Found: {', '.join(map(repr, sorted(values)))}"
            )
    for spec in specs:
        if spec.tokens is not None:
            raise QueryError(
                "a mix takes its samples one by one, and `batch_tokens` and `pack` need those of a window of one"
                " stream: mix streams without them, or take whole batches of several streams in turn, as"
                " docs/streams.md shows under Sequences"
            )
        if spec.passes is not None or spec.follow:
            raise QueryError("the streams of a mix have no end: make them without `passes` and without `follow`")


def _weight(weight: object) -> float:
    number = isinstance(weight, (int, float, np.number)) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight <= 0:  # type: ignore[arg-type, operator]
        raise QueryError(f"a weight of a mix must be a number above 0. Found: {weight!r}")
    return float(weight)  # type: ignore[arg-type]

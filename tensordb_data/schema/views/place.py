"""Where in a recording a part begins."""

from __future__ import annotations

from typing import Literal

import numpy as np

from tensordb_data.errors import QueryError

At = Literal["random", "start", "middle", "end"] | float
_NAMED = ("random", "start", "middle", "end")


def check_at(what: str, at: object) -> None:
    """Refuse what is no place.

    Raises:
        QueryError: It is none.
    """
    if isinstance(at, str) and at in _NAMED:
        return
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not 0 <= at < 1e9:
        raise QueryError(f'{what}(at=) is "random", "start", "middle", "end", or a number of seconds. Found: {at!r}')


def is_count(value: object) -> bool:
    """Whether a value is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def start_of(at: At, total: int, need: int, rate: float, rng: np.random.Generator | None) -> int:
    """The first item of a part of `need` items of a recording of `total` items, of which there are `rate` a second.

    Where there are not so many, it is 0, unless a number of seconds is given.
    """
    if not isinstance(at, str):
        return round(at * rate)
    room = max(0, total - need)
    if at == "random":
        assert rng is not None
        return int(rng.integers(0, room + 1))
    return {"start": 0, "middle": room // 2, "end": room}[at]

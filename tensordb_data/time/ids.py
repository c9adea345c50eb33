"""Many `_id`s at once, as bytes: uint8 [n, 12]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

Ids = NDArray[np.uint8]


def unique_ids(ids: Ids, times: NDArray[np.int64] | None = None) -> tuple[Ids, NDArray[np.int64]]:
    """The different ones, in order, and how often each occurs.

    Args:
        ids: The ids.
        times: int64 [n]: how often each row counts; None for once.
    """
    order = in_order(ids)
    sorted_ = ids[order]
    starts = np.ones(len(ids), np.bool_)
    starts[1:] = (sorted_[1:] != sorted_[:-1]).any(axis=1)
    first = np.flatnonzero(starts)
    if times is None or not len(ids):
        return sorted_[first], np.diff(np.append(first, len(ids))).astype(np.int64)
    return sorted_[first], np.add.reduceat(times[order], first)


def matched(one: Ids, other: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of the ids that both have: int64 [k] each. No id is twice in one of them."""
    ids = np.concatenate([one, other])
    order = in_order(ids)
    sorted_ = ids[order]
    twice = np.flatnonzero((sorted_[1:] == sorted_[:-1]).all(axis=1))
    first, second = order[twice], order[twice + 1]
    both = (first < len(one)) & (second >= len(one))
    return first[both], second[both] - len(one)


def in_order(ids: Ids) -> NDArray[np.int64]:
    """The rows in the order of their ids; of equal ones, as they were."""
    high = np.ascontiguousarray(ids[:, :8]).view(">u8").reshape(-1).astype(np.uint64)
    low = np.ascontiguousarray(ids[:, 8:]).view(">u4").reshape(-1).astype(np.uint32)
    return np.lexsort((low, high)).astype(np.int64)


def as_ids(packed: Ids) -> list[ObjectId]:
    """The ids themselves."""
    data = packed.tobytes()
    return [ObjectId(data[at : at + 12]) for at in range(0, len(data), 12)]


def packed_ids(ids: Sequence[ObjectId]) -> Ids:
    """The bytes of ids."""
    return np.frombuffer(b"".join([id.binary for id in ids]), np.uint8).reshape(-1, 12)

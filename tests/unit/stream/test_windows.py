"""Tasks of a pass by blocks: all batches in order, each window's samples announced while the one before runs."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.blobs.refs import BlobRefs
from tensordb_data.stream.block import Block, Layouts
from tensordb_data.stream.order import Run
from tensordb_data.stream.state import Position
from tensordb_data.stream.windows import by_windows


def plan(n: int) -> Block:
    """Samples of which the offset is the row."""
    refs = BlobRefs((ObjectId(),), np.zeros(n, np.uint32), np.arange(n), np.ones(n, np.int64))
    ids, dataset = np.zeros((n, 12), np.uint8), np.zeros(n, np.uint16)
    return Block(Layouts(("image",), {}), ids, ("d",), dataset, {"image": refs}, {})


@given(
    n=st.integers(0, 200),
    start=st.integers(0, 60),
    batch=st.integers(1, 9),
    size=st.integers(1, 5),
    window=st.integers(0, 80),
    stride=st.integers(1, 3),
)
def test_every_batch_comes_once_and_every_window_is_announced_in_the_one_before(
    n: int, start: int, batch: int, size: int, window: int, stride: int
) -> None:
    order = np.random.default_rng(0).permutation(n)
    found = [
        Run(0, low, min(low + batch, n), Position(0, min(low + batch, n))) for low in range(start, n, batch * stride)
    ]
    tasks = list(by_windows(iter(found), window, size, plan(n), lambda positions: order[positions]))
    assert [run for group, _ in tasks for run in group] == found
    assert all(0 < len(group) <= size for group, _ in tasks)
    announced = [int(offset) for _, later in tasks for refs in later() for offset in refs.offset]
    if not found or window < 4 * size * (found[0].high - found[0].low):
        assert not announced
        return
    windows = [
        [row for run in part for row in order[run.low : run.high].tolist()]
        for _, part in groupby(found, lambda run: run.low // window)
    ]
    assert announced == [row for rows in windows[1:] for row in sorted(rows)]
    for group, later in tasks:
        number = group[0].low // window
        assert {run.low // window for run in group} == {number}
        rows = {int(offset) for refs in later() for offset in refs.offset}
        following = next((rows for run, rows in zip(_firsts(found, window), windows, strict=True) if run > number), [])
        assert rows <= set(following)


def _firsts(found: list[Run], window: int) -> list[int]:
    return [number for number, _ in groupby(found, lambda run: run.low // window)]

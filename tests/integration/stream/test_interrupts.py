"""An interrupt at any instruction leaves a stream able to end, and to begin anew.

Some instructions of our modules are interrupted, and of `threading` below them. With MATRICES=all each.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tensordb_data import TensorDB
from tensordb_data.stream.deliver.ordered_pool import ordered
from tests.interrupts import Interrupter

FILES = (
    "/deliver/ordered_pool.py", "/deliver/base.py", "/deliver/stream.py", "/deliver/iteration.py", "/fetch/prefetch.py",
    "/common/interruptible.py",
)  # fmt: skip


def assert_all_end(at: int) -> None:
    for thread in threading.enumerate():
        if thread.name == "tensordb-stream" and thread.ident is not None:
            with contextlib.suppress(RuntimeError):  # one that begins just now, and ends
                thread.join(60)
                assert not thread.is_alive(), at


def test_the_pool_ends() -> None:
    interrupter = Interrupter("/deliver/ordered_pool.py")

    def work(results: Iterator[int]) -> None:
        assert list(itertools.islice(results, 5)) == [3] * 5

    results = ordered(itertools.repeat(lambda: 3), 2, 3)
    interrupter.run(lambda: work(results))
    results.close()
    for at in interrupter.points(400):
        results = ordered(itertools.repeat(lambda: 3), 2, 3)
        interrupter.interrupt(lambda results=results: work(results), at)  # type: ignore[misc]
        results.close()
        assert_all_end(at)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_stream_ends_and_begins_anew(db: TensorDB, shuffle: bool) -> None:
    with db.data.writer("d") as writer:
        writer.add_many(x=np.zeros((40, 4), np.float32), n=np.arange(40))
    options: dict[str, Any] = {"batch_size": 8, "shuffle": shuffle, "passes": 1}
    stream = db.data.find({"dataset": "d"}).stream(**options)
    interrupter = Interrupter(*FILES)
    interrupter.run(lambda: list(stream))
    for at in interrupter.points(40):
        stream = db.data.find({"dataset": "d"}).stream(**options)
        seen: list[int] = []

        def work(stream: Any = stream, seen: list[int] = seen) -> None:
            for batch in stream:
                seen.extend(batch["n"].tolist())

        interrupter.interrupt(work, at)
        stream.close()
        assert_all_end(at)
        rest = [number for batch in stream for number in batch["n"].tolist()]
        # A batch that was on its way to the loop as the interrupt came is in neither; after the last comes a new pass.
        goes_on = not {*seen} & {*rest} and len(seen) + len(rest) in (32, 40)
        assert goes_on or (len(seen) >= 32 and len(rest) == 40), at

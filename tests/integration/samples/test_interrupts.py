"""An interrupt at any instruction leaves logs and writers able to end.

Each test interrupts at some instructions of our modules, and of `threading` below them. With MATRICES=all at each.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from tensordb_data import TensorDB
from tests.interrupts import Interrupter

FILES = (
    "/logs/writer.py", "/samples/writer.py", "/samples/write_buffer.py", "/common/background.py",
    "/common/interruptible.py",
)  # fmt: skip


def test_a_log_ends_and_keeps_its_rows(db: TensorDB) -> None:
    interrupter = Interrupter(*FILES)
    with db.logs.run("r") as log:
        log.write(0)  # starts its thread

        def work() -> None:
            log.write(1, loss=0.5)
            log.flush()

        interrupter.run(work)
    for at in interrupter.points(40):
        with db.logs.run(f"r{at}") as log:
            log.write(0)
            interrupter.interrupt(work, at)
            log.write(2)
        steps = db.logs.find({"run": f"r{at}"}).distinct("step")
        assert steps in ([0, 2], [0, 1, 2]), at
        with contextlib.suppress(KeyboardInterrupt), db.logs.run(f"e{at}") as log:  # and as it comes out of the block
            log.write(0)
            interrupter.run(work, at)
        assert 0 in db.logs.find({"run": f"e{at}"}).distinct("step"), at


@pytest.mark.parametrize("live", [False, True])
def test_a_writer_ends(db: TensorDB, live: bool) -> None:
    interrupter = Interrupter(*FILES)
    x = np.zeros(4, np.float32)
    with db.data.writer("d", live=live) as writer:
        writer.add(x=x)

        def work() -> None:
            writer.add(x=x)
            writer.flush()

        interrupter.run(work)
    for at in interrupter.points(20):
        before = db.data.find({"dataset": "d"}).count()
        with contextlib.suppress(KeyboardInterrupt), db.data.writer("d", live=live) as writer:
            writer.add(x=x)
            interrupter.run(work, at)
        with writer._buffer.changed:  # a commit that goes on
            writer._buffer.changed.wait_for(lambda: not writer._buffer.pending)
        after = db.data.find({"dataset": "d"}).count()
        assert before <= before + writer.written <= after <= before + 2, at
    with db.data.writer("d", live=live) as writer:
        writer.add(x=x)
    assert all(sample["x"].shape == (4,) for sample in db.data.find({"dataset": "d"}))

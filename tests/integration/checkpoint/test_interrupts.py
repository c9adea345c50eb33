"""An interrupt at any instruction of a save leaves the saver able to save and to end, and no set damaged.

At some of the instructions; with MATRICES=all at each.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from tensordb_data import TensorDB
from tensordb_data.checkpoint.background import Saver
from tensordb_data.params.parameter_set import set_fields
from tests.interrupts import Interrupter

FILES = (
    "/checkpoint/background.py", "/checkpoint/staging.py", "/common/background.py", "/common/interruptible.py",
)  # fmt: skip


@pytest.mark.timeout(900)  # with MATRICES=all
def test_a_saver_saves_and_ends(db: TensorDB) -> None:
    interrupter = Interrupter(*FILES)
    saver = Saver(db.warehouse)

    def save(step: int) -> None:
        fields: dict[str, Any] = {**set_fields("r", step, [], {}), "lineage": {}}
        saver.save({"w": np.full(3, step), "step": step}, fields)

    def work() -> None:
        save(10**6)
        saver.wait()

    for _ in range(3):  # later ones need no new memory
        interrupter.run(work)
    steps = []
    for at in interrupter.points(40):  # one saver after all of them: no interrupt takes its memory away
        interrupter.interrupt(work, at)
        save(at)
        steps.append(at)
    saver.close()
    assert set(db.params.find({"run": "r"}).distinct("step")) == {10**6, *steps}
    for found in db.params.find({"run": "r"}):
        assert found.load("step") == found.step and (found.load("w") == found.step).all()
    fresh = Saver(db.warehouse)
    interrupter.run(lambda: first(fresh))
    for at in interrupter.points(20):
        saver = Saver(db.warehouse)  # whose thread starts with this save
        with contextlib.suppress(RuntimeError):  # of `threading`, for an interrupt in the start of a thread
            interrupter.interrupt(lambda saver=saver: first(saver), at)  # type: ignore[misc]
        first(saver)
        saver.close()
    fresh.close()


def first(saver: Saver) -> None:
    saver.save({"w": np.zeros(3)}, {**set_fields("first", 1, [], {}), "lineage": {}})

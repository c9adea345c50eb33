"""An interrupt at any instruction of a save leaves the saver able to save and to end, and no set damaged.

At some of the instructions; with MATRICES=all at each.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from tensordb_data import TensorDB
from tensordb_data.checkpoint.background import Saver
from tensordb_data.params.parameter_set import set_fields
from tests.interrupts import Interrupter

ALL = os.environ.get("MATRICES") == "all"
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

    passed = []
    for _ in range(3):  # later ones need no new memory
        interrupter.run(work)
        passed.append(interrupter.passed)
    steps = range(0, min(passed) * 9 // 10, 1 if ALL else max(1, min(passed) // 40))
    for at in steps:  # one saver after all of them: no interrupt takes its memory away
        with pytest.raises(KeyboardInterrupt):
            interrupter.run(work, at)
        save(at)
    saver.close()
    assert set(db.params.find({"run": "r"}).distinct("step")) == {10**6, *steps}
    for found in db.params.find({"run": "r"}):
        assert found.load("step") == found.step and (found.load("w") == found.step).all()
    fresh = Saver(db.warehouse)
    interrupter.run(lambda: first(fresh))
    for at in range(0, interrupter.passed * 9 // 10, 1 if ALL else max(1, interrupter.passed // 20)):
        saver = Saver(db.warehouse)  # whose thread starts with this save
        with pytest.raises((KeyboardInterrupt, RuntimeError)):  # the latter of `threading`, in the start of a thread
            interrupter.run(lambda saver=saver: first(saver), at)  # type: ignore[misc]
        first(saver)
        saver.close()
    fresh.close()


def first(saver: Saver) -> None:
    saver.save({"w": np.zeros(3)}, {**set_fields("first", 1, [], {}), "lineage": {}})

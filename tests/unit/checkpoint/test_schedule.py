"""When a save is due: steps, seconds, a better metric, a budget. The clock is a fake one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data.checkpoint.options import Every
from tensordb_data.checkpoint.schedule import SaveSchedule
from tensordb_data.errors import CheckpointError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def dues(schedule, steps, clock=None, seconds=0.0, metrics=None):
    """The steps at which a save was due, and taken."""
    saved, found = 0, []
    for step in range(1, steps + 1):
        if clock:
            clock.now += seconds
        if schedule.due(step, step - 1, saved, (metrics or {}).get(step, {}), False):
            found.append(step)
            saved = step
            schedule.saved(0.0)
        schedule.resume()
    return found


def test_seconds():
    clock = Clock()
    assert dues(SaveSchedule(Every(seconds=10), clock=clock), 20, clock, 3.0) == [4, 8, 12, 16, 20]


def test_steps_and_seconds_together():
    clock = Clock()
    assert dues(SaveSchedule(Every(steps=5, seconds=6), clock=clock), 10, clock, 3.0) == [2, 4, 5, 7, 9, 10]


def test_better_is_more_unless_less_is():
    values = {2: {"m": 1.0}, 3: {"m": 0.5}, 4: {"m": math.nan}, 5: {"m": 1.0}, 6: {"m": 2}}
    assert dues(SaveSchedule(on_best="m"), 9, metrics=values) == [2, 6]
    assert dues(SaveSchedule(on_best=("m", "min")), 9, metrics=values) == [2, 3]
    known = SaveSchedule(on_best="m")
    known.remember(1.5)
    assert dues(known, 9, metrics=values) == [6]
    with pytest.raises(CheckpointError, match="must be a number"):
        SaveSchedule(on_best="m").due(1, 0, 0, {"m": "high"}, False)


@settings(deadline=None, max_examples=40)
@given(
    part=st.floats(0.001, 0.2),
    step=st.floats(0.001, 1.0),
    stall=st.floats(0.0001, 0.5),
    slower=st.floats(0.0, 0.5),
    during=st.integers(0, 5),
)
def test_a_budget_is_kept(part, step, stall, slower, during):
    """A simulated loop: what saves cost in all is within the budget once the number of steps has been chosen."""
    clock = Clock()
    schedule = SaveSchedule(Every(overhead=part), clock=clock)
    saved, busy, cost, useful, costs = 0, 0, 0.0, 0.0, []
    number = 0
    while len(costs) < 8 and number < 5_000:
        number += 1
        extra = slower * step if busy else 0.0
        clock.now += step + extra
        cost, useful = cost + extra, useful + step
        due = schedule.due(number, number - 1, saved, {}, busy > 0)
        busy = max(0, busy - 1)
        if due:
            costs.append((cost, useful))
            cost, useful = stall, 0.0
            clock.now += stall
            saved, busy = number, during
            schedule.saved(stall)
        schedule.resume()
    for spent, trained in costs[4:]:
        assert spent <= part * trained * 1.001 + 1e-9


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "When to save"),
        ({"on_best": ("m", "least")}, "on_best"),
        ({"on_best": 3}, "on_best"),
    ],
)
def test_nonsense_is_refused(options, says):
    with pytest.raises(CheckpointError, match=says):
        SaveSchedule(**options)

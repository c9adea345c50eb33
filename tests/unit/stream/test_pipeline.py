"""Tasks run on threads, and their results come in order, each once."""

from __future__ import annotations

import itertools
import threading
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.stream.pipeline import ordered


@given(count=st.integers(0, 40), threads=st.integers(1, 4), ahead=st.integers(0, 5), gaps=st.sets(st.integers(0, 40)))
def test_results_come_in_order_and_each_task_runs_once(count: int, threads: int, ahead: int, gaps: set[int]) -> None:
    runs: list[int] = []

    def work(number: int) -> int:
        runs.append(number)
        return number

    tasks = itertools.chain.from_iterable(
        [None, partial(work, number)] if number in gaps else [partial(work, number)] for number in range(count)
    )
    assert list(ordered(tasks, threads, ahead)) == list(range(count))
    assert sorted(runs) == list(range(count))


@given(threads=st.integers(1, 4), bad=st.integers(0, 9))
def test_an_error_is_raised_in_its_place(threads: int, bad: int) -> None:
    def work(number: int) -> int:
        if number == bad:
            raise ValueError(number)
        return number

    results = ordered((partial(work, number) for number in range(10)), threads, threads + 1)
    assert list(itertools.islice(results, bad)) == list(range(bad))
    with pytest.raises(ValueError, match=str(bad)):
        next(results)


def test_one_thread_runs_all_tasks_itself() -> None:
    where = set(ordered([threading.get_ident] * 200, 1, 1))
    assert len(where) == 1 and threading.get_ident() not in where

"""Tasks run on threads, and their results come in order, each once."""

from __future__ import annotations

import itertools
import os
import threading
import warnings
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.stream.deliver.ordered_pool import ordered


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


def test_closing_waits_for_nothing_and_the_threads_end_behind_it() -> None:
    begun, go, runs = threading.Semaphore(0), threading.Event(), itertools.count()
    threads: list[threading.Thread] = []

    def work() -> int:
        if (number := next(runs)) > 0:
            threads.append(threading.current_thread())
            begun.release()
            assert go.wait(60)
        return number

    results = ordered(itertools.repeat(work), 2, 3)
    assert next(results) == 0
    for _ in range(2):
        assert begun.acquire(timeout=60)
    results.close()
    assert all(thread.is_alive() for thread in threads), "both are still at it"
    go.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert next(runs) == 3, "what had not begun never did"


def test_a_fork_waits_for_threads_that_are_about_to_end() -> None:
    """Or the child could get a lock that nobody is there to let go of."""
    begun, go, lock = threading.Event(), threading.Event(), threading.Lock()

    def work() -> None:
        with lock:
            begun.set()
            go.wait(60)

    results = ordered([lambda: None, work], 1, 1)
    next(results)
    assert begun.wait(60)
    results.close()
    threading.Timer(0.1, go.set).start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 on: this process has threads
        pid = os.fork()
    if pid == 0:
        os._exit(0 if lock.acquire(timeout=5) else 1)
    assert os.waitpid(pid, 0)[1] == 0

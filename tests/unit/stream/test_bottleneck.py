"""Which stage limits a stream, and what the advice says, from times that are given."""

from __future__ import annotations

from typing import Any

import pytest

from tensordb_data.stream.bottleneck import NOTHING, Times, advice, bottleneck

STAGES = ("index", "fetch", "decode", "transform", "batch")


def times(wait: float = 9.0, loop: float = 1.0, *, threads: int = 2, cores: int = 2, **parts: Any) -> Times:
    """Ten seconds on two threads; each stage is given as (work, wait)."""
    stages = {stage: parts.pop(stage, NOTHING) for stage in STAGES}
    return Times(threads, cores, stages, wait, loop, **parts)


CASES = {
    "index-bound: one reader of documents, 96% busy;": times(cursor=(4.0, 5.6), decode=(8.0, 1.0)),
    "index-bound: reading the references of all samples took 9 s": times(plan=(3.0, 6.0), fetch=(1.0, 0.0)),
    "index-bound: 2 threads, 90% busy; draw fewer, larger batches": times(index=(16.0, 0.0), fetch=(1.0, 1.0)),
    "fetch-bound: 2 threads, 97% busy, 92% of it waiting for the store, from which 80% of the blobs came; give":
        times(fetch=(1.4, 16.0), decode=(2.0, 0.0), missed=0.8),
    "fetch-bound: 2 threads, 97% busy, 92% of it waiting; put the blobs": times(fetch=(1.4, 16.0), decode=(2.0, 0.0)),
    "fetch-bound: 2 threads, 97% busy copying and unpacking": times(fetch=(17.0, 0.4), decode=(2.0, 0.0)),
    "decode-bound: 2 threads, 97% busy; store smaller images": times(decode=(18.0, 0.4), fetch=(1.0, 0.0)),
    "transform-bound: 2 threads, 97% busy; do less for each sample": times(transform=(18.0, 0.4), decode=(1.0, 0.0)),
    "transform-bound: 2 threads, 97% busy, 50% of it waiting, as Python code does":
        times(transform=(9.2, 9.2), decode=(1.0, 0.0)),
    "transform-bound: 1 worker process, 95% busy; do less for each sample, or use more of them":
        times(transform=(9.0, 0.5), decode=(1.0, 0.0), cores=4, workers=1),
    "transform-bound: 2 worker processes, 95% busy": times(transform=(18.0, 1.0), decode=(1.0, 0.0), workers=2),
    "batch-bound: 2 threads, 97% busy; give samples one shape": times(batch=(18.4, 0.0), decode=(1.0, 0.0)),
    "commits-bound: all that was committed has been delivered": times(commits=(0.1, 8.9), fetch=(0.1, 0.0)),
    "loop-bound: it waited for batches 5% of the time": times(0.5, 9.5, decode=(19.0, 0.0)),
}  # fmt: skip


@pytest.mark.parametrize("expected", CASES)
def test_each_bottleneck_is_named_with_its_advice(expected: str) -> None:
    assert advice(CASES[expected]).startswith(expected)
    assert bottleneck(CASES[expected]) == expected.split("-")[0]


def test_the_gain_of_free_loading_is_told_unless_the_loop_does_nothing() -> None:
    assert "would be 2.5 times as fast" in advice(times(6.0, 4.0, decode=(18.0, 0.0)))
    assert "if loading" not in advice(times(10.0, 0.01, decode=(18.0, 0.0)))


def test_the_start_counts_only_while_there_is_nothing_else() -> None:
    plan = times(1.0, 9.0, start=60.0, plan=(20.0, 40.0), decode=(4.0, 0.0))
    assert bottleneck(plan) == "decode"
    assert bottleneck(times(0.0, 0.0, start=60.0, plan=(20.0, 39.0), decode=(0.5, 0.0))) == "index"
    assert bottleneck(times(0.1, 9.9, start=60.0, plan=(20.0, 39.0))) == "loop"


def test_unused_cores_are_said() -> None:
    assert "use more of the 32 cores with worker processes" in advice(times(threads=8, cores=32, decode=(75.0, 0.0)))
    assert "machine with more cores" in advice(times(decode=(18.0, 0.0)))


def test_a_short_run_says_that_it_was_one() -> None:
    assert "measure a longer one" in advice(times(decode=(1.0, 0.0)))

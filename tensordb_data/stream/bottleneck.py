"""Bottleneck: finds the stage that limits a stream, from the times of its stages, and says what to do about it.

The stages form a line with three servers: the reader of the index, the threads that build batches, and the training
loop. If the loop hardly ever waits, the loop itself is the slowest. Otherwise it is the server that is busy for most of
the time. If these are the threads, it is the stage that takes most of their time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Seconds = tuple[float, float]
"""Work and wait of a stage: how long its thread ran, and how long it waited."""
NOTHING: Seconds = (0.0, 0.0)

_WAITS = 0.1  # a loop that waits for less than this share of its time is not limited by loading
_BUSY = 0.3  # if no server is busier than this, the run was too short to tell
_BLOCKED = 0.3  # if a stage waits for this share of its time or more, the advice is about the waiting
_MISSED = 0.05


@dataclass(frozen=True)
class Times:
    """Times of a running stream, in seconds."""

    threads: int
    """Threads that build batches, in each process."""
    cores: int
    """Cores that this process may use."""
    stages: Mapping[str, Seconds]
    """Times of the stages in the threads, summed over all threads."""
    wait: float
    """Time in which the loop waited for batches, after the first one."""
    loop: float
    """Time in which the loop was busy itself."""
    start: float = 0.0
    """Time in which the loop waited for the first batch of an iteration."""
    cursor: Seconds = NOTHING
    """Times of reading the index page by page, ahead of the threads."""
    plan: Seconds = NOTHING
    """Times of reading the references of all samples, before a pass."""
    commits: Seconds = NOTHING
    """Times in which a stream that follows waited for commits."""
    missed: float = 0.0
    """The part of the blobs that came from a store on another machine."""
    processes: int = 1
    """The number of processes over which all times are summed."""
    workers: int = 0
    """The number of processes that transform in place of the threads."""

    @property
    def elapsed(self) -> float:
        """Seconds that the loop has run, without its start. If it got no further than its start, the start counts."""
        return self.wait + self.loop or self.start

    def busy(self) -> dict[str, float]:
        """For each stage, the part of the time in which its server was busy. Of the threads, only the stage that takes
        most of their time.
        """
        if not self.elapsed:
            return {"loop": 0.0}
        inside = {
            stage: sum(pair) for stage, pair in self.stages.items() if not (self.workers and stage == "transform")
        }
        most = max(inside, key=inside.__getitem__)
        in_start = self.start if self.wait + self.loop else 0.0
        shares = {
            "index": (sum(self.cursor) + max(0.0, sum(self.plan) - in_start)) / self.elapsed,
            "commits": sum(self.commits) / self.elapsed,
        }
        if self.workers:
            shares["transform"] = sum(self.stages.get("transform", NOTHING)) / (self.elapsed * self.workers)
        pool = sum(inside.values()) / (self.elapsed * self.threads)
        shares[most] = max(pool, shares.get(most, 0.0))
        return {stage: min(1.0, share) for stage, share in shares.items()}


def bottleneck(times: Times) -> str:
    """The stage that limits the stream. It is "loop" if loading costs the loop next to nothing."""
    if times.elapsed - times.loop < _WAITS * times.elapsed:
        return "loop"
    busy = times.busy()
    return max(busy, key=busy.__getitem__)


def advice(times: Times) -> str:
    """One sentence on what limits the rate, and what to do about it."""
    stage = bottleneck(times)
    if stage == "loop":
        share = times.wait / times.elapsed if times.elapsed else 0.0
        return f"loop-bound: it waited for batches {share:.0%} of the time; a faster stream would not help it"
    busy = times.busy()[stage]
    count = times.threads * times.processes
    server = f"{count} thread{'s' * (count > 1)}, {busy:.0%} busy"
    text = {
        "index": _index,
        "commits": lambda times, server: "all that was committed has been delivered; the stream waits for the writers",
        "fetch": _fetch,
        "decode": _decode,
        "transform": _transform,
        "batch": _batch,
    }[stage](times, server)
    if stage != "commits" and busy < _BUSY:
        text += "; this was a short run, in which no stage was busy for long: measure a longer one"
    elif times.loop > 0.05 * times.elapsed:
        text += f"; if loading were free, the loop would be {times.elapsed / times.loop:.2g} times as fast"
    return f"{stage}-bound: {text}"


def _index(times: Times, server: str) -> str:
    asked = "create an index for the filter if it has none (`explain()` tells)"
    if sum(times.plan) > sum(times.cursor):
        took = f"{sum(times.plan):.2g} s"
        return f"reading the references of all samples took {took}, and is done once while the data stays so; {asked}"
    if not sum(times.cursor):
        return f"{server}; draw fewer, larger batches"
    share = min(1.0, sum(times.cursor) / times.elapsed)
    return (
        f"one reader of documents, {share:.0%} busy; name the `fields` that you need, {asked}, or use shuffle=True,"
        " which reads the index once and keeps it"
    )


def _fetch(times: Times, server: str) -> str:
    blocked = _blocked(times, "fetch")
    if blocked < _BLOCKED:
        return f"{server} copying and unpacking; deliver fewer `fields`, store smaller samples, or compress less"
    if times.missed > _MISSED:
        return (
            f"{server}, {blocked:.0%} of it waiting for the store, from which {times.missed:.0%} of the blobs came;"
            " give the cache room for all of them (`cache_bytes=`), or bring the store nearer"
        )
    return (
        f"{server}, {blocked:.0%} of it waiting; put the blobs, or the cache (`cache=`), on a faster disk, and small"
        " blobs of live writers into segments (`compact`)"
    )


def _decode(times: Times, server: str) -> str:
    return f"{server}; store smaller images (resize them once, at ingest), deliver fewer `fields`, or {_more(times)}"


def _transform(times: Times, server: str) -> str:
    if times.workers:
        busy = times.busy()["transform"]
        more = "use more of them (`workers=`)" if times.cores > times.workers else "use a machine with more cores"
        count = f"{times.workers} worker process{'es' * (times.workers > 1)}"
        return f"{count}, {busy:.0%} busy; do less for each sample, or {more}"
    blocked = _blocked(times, "transform")
    if times.threads > 1 and blocked >= _BLOCKED:
        return (
            f"{server}, {blocked:.0%} of it waiting, as Python code does, of which one thread runs at a time; run it in"
            " worker processes (`workers=`), or let NumPy, OpenCV or PyTorch do the work"
        )
    return f"{server}; do less for each sample, do once at ingest what is not random, or {_more(times)}"


def _batch(times: Times, server: str) -> str:
    return f"{server}; give samples one shape and dtype, at ingest or in a transform, or {_more(times)}"


def _more(times: Times) -> str:
    if times.cores > times.threads * times.processes:
        return f"use more of the {times.cores} cores with worker processes (DataLoader with `num_workers`)"
    return "use a machine with more cores"


def _blocked(times: Times, stage: str) -> float:
    work, wait = times.stages.get(stage, NOTHING)
    return wait / (work + wait) if work + wait else 0.0

"""Bottleneck: which stage a stream waits for, and what to do about it, from the times of its stages.

The stages form a line with three servers: the reader of the index, the threads that make batches, and the training
loop. If the loop hardly ever waits, it is the slowest itself. Otherwise it is the server that is busy for most of the
time, and within the threads the stage that takes most of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Seconds = tuple[float, float]
"""Work and wait of a stage: how long its thread ran, and how long it did not."""
NOTHING: Seconds = (0.0, 0.0)

_WAITS = 0.1  # share of its time that a loop must wait for batches, for loading to be worth attention
_BUSY = 0.3  # below it, not even the busiest server explains the waiting: the run was short
_BLOCKED = 0.3  # share of a stage that is waiting, from which on the waiting is what to look at
_MISSED = 0.05


@dataclass(frozen=True)
class Times:
    """Times of a running stream, in seconds."""

    threads: int
    """That make batches, in each process."""
    cores: int
    """That this process may use."""
    stages: Mapping[str, Seconds]
    """Of the threads, summed over them."""
    wait: float
    """The loop waited for batches, after the first."""
    loop: float
    """The loop was busy elsewhere."""
    start: float = 0.0
    """The loop waited for the first batch of its iterations."""
    cursor: Seconds = NOTHING
    """The index was read ahead of the threads, page by page."""
    plan: Seconds = NOTHING
    """The references of all samples were read, before a pass."""
    commits: Seconds = NOTHING
    """A stream that follows had nothing left to deliver."""
    missed: float = 0.0
    """Share of the blobs that had to be fetched from a store elsewhere."""
    processes: int = 1
    """Over which all times are summed."""
    workers: int = 0
    """Processes that transform in place of the threads."""

    @property
    def elapsed(self) -> float:
        """Seconds that the loop has run: without its start, if it came further than that."""
        return self.wait + self.loop or self.start

    def busy(self) -> dict[str, float]:
        """By stage the share of the time in which its server was at work: of the threads, the stage that takes most."""
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
    """The stage to look at, or "loop" where loading costs the loop next to nothing."""
    if times.elapsed - times.loop < _WAITS * times.elapsed:
        return "loop"
    busy = times.busy()
    return max(busy, key=busy.__getitem__)


def advice(times: Times) -> str:
    """What limits the rate, and what to do about it, in one sentence."""
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
        return f"{times.workers} worker processes, {busy:.0%} busy; do less for each sample, or {more}"
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

"""What is measured, and the counters of this process.

Nothing is sent from here. Whoever wants to know, asks `collect`: an endpoint for Prometheus, or OpenTelemetry if on.
Until then, a count is an addition, at events that are rare. What is frequent is counted by its owner, who is asked.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tensordb_data.common.system.fork import at_fork

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Measure:
    """One thing that is measured."""

    kind: Literal["counter", "gauge"]
    unit: str
    """In the words of OpenTelemetry: `By`, `s`, or what is counted in braces."""
    about: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Value:
    """A value of a measure."""

    name: str
    number: float
    labels: Labels = ()


OWN: Mapping[str, Measure] = {
    "tensordb.stream.samples": Measure("counter", "{sample}", "Samples that streams have delivered"),
    "tensordb.stream.batches": Measure("counter", "{batch}", "Batches that streams have delivered"),
    "tensordb.stream.bytes": Measure("counter", "By", "Bytes of blobs that streams have read, decompressed"),
    "tensordb.stream.blobs": Measure(
        "counter", "{blob}", "Blobs that streams have read: from this machine (hit), or from a store (miss)", ("cache",)
    ),
    "tensordb.stream.stage": Measure(
        "counter", "s", "Seconds of threads in a stage: at work, or waiting", ("stage", "state")
    ),
    "tensordb.stream.loop": Measure(
        "counter",
        "s",
        "Seconds of the loop: waiting for a first batch (start), for another (wait), or busy (loop)",
        ("part",),
    ),
    "tensordb.stream.skipped": Measure("counter", "{sample}", "Bad samples that were left out"),
    "tensordb.stream.deleted": Measure("counter", "{sample}", "Samples that were deleted since their pass began"),
    "tensordb.saves": Measure("counter", "{save}", "Saves that have ended: durable or failed", ("outcome",)),
    "tensordb.save.bytes": Measure("counter", "By", "Bytes of the tensors that were saved"),
    "tensordb.save.stored": Measure("counter", "By", "Bytes of them that were sent to a store; the others were there"),
    "tensordb.save.time": Measure("counter", "s", "Seconds that saves have taken in the background"),
    "tensordb.jobs": Measure("counter", "{job}", "Attempts of jobs that a worker has ended", ("outcome",)),
    "tensordb.retries": Measure("counter", "{retry}", "Calls that were repeated while the server was unavailable"),
}
"""What a process counts about itself."""
WAREHOUSE: Mapping[str, Measure] = {
    "tensordb.dataset.written": Measure("counter", "{sample}", "Samples that were ever written", ("dataset",)),
    "tensordb.dataset.changes": Measure("counter", "{change}", "Changes of existing samples", ("dataset",)),
    "tensordb.log.rate": Measure("gauge", "{row}/s", "Rows of logs a second, over ten seconds"),
    "tensordb.blobs.size": Measure("gauge", "By", "Bytes of live blobs: data or params", ("of",)),
    "tensordb.queue.jobs": Measure("gauge", "{job}", "Jobs by status", ("status",)),
    "tensordb.queue.workers": Measure("gauge", "{worker}", "Workers that are alive"),
    "tensordb.changes.open": Measure("gauge", "{change}", "Changes of samples that have begun and not ended"),
    "tensordb.runs.held": Measure("gauge", "{run}", "Runs that a saver holds"),
    "tensordb.save.age": Measure("gauge", "s", "How old the newest checkpoint is"),
    "tensordb.unknown": Measure("gauge", "{part}", "Parts that the database did not tell in time"),
}
"""What an endpoint asks the index for."""
MEASURES: Mapping[str, Measure] = {**OWN, **WAREHOUSE}


Asked = Callable[[], Iterable[Value]]
_Key = tuple[str, Labels]


class _Counters:
    def __init__(self) -> None:
        # Again by the same thread: an owner may end, and be told of, at any allocation.
        self.lock = threading.RLock()
        self.counted: dict[_Key, float] = {}
        self.owners: dict[int, tuple[weakref.ref[object], Asked]] = {}


_own = _Counters()


def add(name: str, amount: float = 1.0, **labels: str) -> None:
    """Count something in this process."""
    with _own.lock:
        _count(_own.counted, Value(name, amount, tuple(sorted(labels.items()))))


def watch(owner: object, values: Asked) -> None:
    """Ask somebody who counts by himself, from now on. What he has counted stays when he has gone.

    Args:
        owner: Whoever counts.
        values: Tells what he has counted so far. It does not refer to him.
    """
    mine, key = _own, id(owner)
    reference: weakref.ref[object] = weakref.ref(owner, lambda _: _retire(mine, key))
    with mine.lock:
        mine.owners[key] = reference, values


def collect() -> list[Value]:
    """What this process has counted. A counter never falls."""
    mine = _own
    with mine.lock:
        found, owners = dict(mine.counted), list(mine.owners.values())
        for _, values in owners:
            for value in values():
                _count(found, value)
    return [Value(name, number, labels) for (name, labels), number in sorted(found.items())]


def _retire(counters: _Counters, key: int) -> None:
    with counters.lock:
        if (gone := counters.owners.pop(key, None)) is not None:
            for value in gone[1]():
                _count(counters.counted, value)


def _count(counted: dict[_Key, float], value: Value) -> None:
    key = value.name, value.labels
    counted[key] = counted.get(key, 0.0) + value.number


def _after_fork() -> None:
    global _own
    _own = _Counters()  # what the parent has counted, it tells by itself


at_fork(after_in_child=_after_fork)

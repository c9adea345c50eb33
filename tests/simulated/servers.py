"""A database, an object store and a board that answer in virtual time, by latencies that were measured."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from tensordb_data.blobs.reader.download_pool import Fetcher
from tensordb_data.blobs.stores.base import TransientError
from tensordb_data.common.boards import Board
from tests.simulated.clock import Clock

T = TypeVar("T")
LATENCIES: dict[str, Any] = json.loads((Path(__file__).parent / "latencies.json").read_text())
"""Made by `measure.py`, which says what was measured and where."""
_BANDWIDTH = 1e9  # bytes a second of one connection to the store; small beside the latency of small ranges

Span = tuple[float, float]


class Server:
    """What all of them have in common: latencies, times of failure, and counts by the second."""

    def __init__(self, clock: Clock, what: str, seed: int) -> None:
        self.clock, self._dice = clock, random.Random(seed)
        self._latencies = [value / 1000 for value in LATENCIES["ms"][what]]
        self.requests: Counter[int] = Counter()
        """By the second of virtual time."""
        self.nbytes = 0
        self.failed = 0
        """Requests that got no good answer."""
        self.failing: list[Span] = []

    def _latency(self) -> float:
        return self._dice.choice(self._latencies)

    def _begin(self) -> None:
        self.requests[int(self.clock.now)] += 1

    def _is_failing(self) -> Span | None:
        return next((span for span in self.failing if span[0] <= self.clock.now < span[1]), None)

    @property
    def total(self) -> int:
        return sum(self.requests.values())


class Documents(Server):
    """A collection of a replica set. While it has no primary, a command is sent again, as the driver does.

    A command whose answer was lost has been carried out in half of the cases, and is carried out again.
    """

    def __init__(self, clock: Clock, seed: int) -> None:
        super().__init__(clock, "database", seed)
        self._found: dict[str, dict[str, Any]] = {}

    def find_one(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        return self._asked(lambda: self._found.get(key["_id"]))

    def update_one(self, key: Mapping[str, Any], update: Mapping[str, Any], upsert: bool) -> None:
        assert upsert and set(update) <= {"$set", "$setOnInsert"}

        def carry_out() -> None:
            known = self._found.get(key["_id"])
            if known is None:
                fresh = update.get("$setOnInsert", {}) | update.get("$set", {})
                self._found[key["_id"]] = {"_id": key["_id"], **fresh}
            else:
                known.update(update.get("$set", {}))

        self._asked(carry_out)

    def ask(self, count: int) -> None:
        """Commands of which the answer matters to nobody here."""
        for _ in range(count):
            self._asked(lambda: None)

    def _asked(self, carry_out: Callable[[], T]) -> T:
        while True:
            self._begin()
            latency = self._latency()
            if (span := self._is_failing()) is None:
                self.clock.sleep(latency / 2)
                found = carry_out()
                self.clock.sleep(latency / 2)
                return found
            self.failed += 1
            if self._dice.random() < 0.5:
                carry_out()
            self.clock.sleep(span[1] - self.clock.now + latency)


class ObjectStore(Server):
    """A store that has the objects of another one, behind a network. At times some of its answers are 503."""

    def __init__(self, clock: Clock, seed: int, objects: Any, refuses: float = 0.0) -> None:
        super().__init__(clock, "store", seed)
        self.url = "s3://simulated"
        self._objects, self._refuses = objects, refuses

    def get_ranges(self, key: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        for _ in offsets:
            self._begin()
        self.clock.sleep(max(self._latency() for _ in offsets) + sum(lengths) / _BANDWIDTH)
        if self._is_failing() and self._dice.random() < self._refuses:
            self.failed += 1
            raise TransientError("503")
        self.nbytes += sum(lengths)
        found: list[memoryview] = self._objects.get_ranges(key, offsets, lengths)
        return found

    def size(self, key: str) -> int:
        return int(self._objects.size(key))

    def local_path(self, key: str) -> None:
        return None


class MeetingBoard(Board):
    """The board of one job. It lives as long as the job."""

    def __init__(self, server: Documents) -> None:
        super().__init__()
        self._server, self._found = server, dict[str, str]()

    def agree(self, key: str, value: str) -> str:
        self._server.ask(1)
        return self._found.setdefault(key, value)


class VirtualFetcher(Fetcher):
    """Requests in virtual time, each a coroutine; how often one is repeated is the product's."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.running: list[Any] = []
        closed: Any = SimpleNamespace(wait=self._waited, is_set=lambda: False, set=lambda: None)
        self.closed = closed

    def submit(self, work: Callable[[], T], cost: Callable[[], int], urgent: bool = False) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.running = [one for one in self.running if not one.dead]
        self.running.append(self._clock.spawn(run))
        return future

    def _waited(self, seconds: float) -> bool:
        self._clock.sleep(seconds)
        return False

"""Renew a claim, or a lease, while its work goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from pymongo.errors import PyMongoError

from tensordb_data.errors import ClaimLostError, ConnectError
from tensordb_data.mongo.claims import Claim

BEATS = 3
"""Renewals in the time of a lease: two may fail."""


class Heartbeat:
    """A thread that renews something until it is stopped, or until it is lost.

    Args:
        renew: What to call.
        every: Seconds between two calls.
        loss: What it raises if it is lost.
    """

    def __init__(self, renew: Callable[[], object], every: float, loss: type[Exception] = ClaimLostError) -> None:
        self._renew, self._every, self._loss = renew, every, loss
        self._ended = threading.Event()
        self._then: Callable[[], object] | None = None
        self.lost = False
        """Whether another has it, or the entity was deleted."""
        self._thread = threading.Thread(target=self._beat, name="tensordb-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the thread."""
        self._ended.set()
        self._thread.join()

    def stop_later(self, then: Callable[[], object]) -> None:
        """Stop. The thread calls `then` at its end. This does not wait."""
        self._then = then
        self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(self._every):
            with contextlib.suppress(ConnectError, PyMongoError):  # the server was away: the next renewal may reach it
                try:
                    self._renew()
                except self._loss:
                    self.lost = True
                    break
        self._ended.wait()
        if self._then is not None:
            self._then()


def heartbeat_of(claim: Claim, lease: float) -> Heartbeat:
    """A heartbeat that prolongs a claim to `lease` seconds, each time a third of it has passed."""
    return Heartbeat(lambda: claim.renew(lease), lease / BEATS)


@contextlib.contextmanager
def beating(heartbeat: Heartbeat) -> Iterator[None]:
    """Stop the heartbeat when the block ends. If what it renews was lost, the next write of its owner fails."""
    try:
        yield
    finally:
        heartbeat.stop()


def keep_renewing(claim: Claim, lease: float) -> AbstractContextManager[None]:
    """Renew the claim from a thread until the block ends."""
    return beating(heartbeat_of(claim, lease))

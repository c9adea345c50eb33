"""Renew a claim while its work goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from pymongo.errors import PyMongoError

from tensordb_data.errors import ClaimLostError, ConnectError
from tensordb_data.mongo.claims import Claim

_BEATS = 3  # renewals in the time of a lease: two may fail


class Heartbeat:
    """A thread that renews a claim until it is stopped, or until another has the claim.

    Args:
        claim: The claim.
        lease: Seconds to which each renewal prolongs it.
    """

    def __init__(self, claim: Claim, lease: float) -> None:
        self._claim, self._lease = claim, lease
        self._ended = threading.Event()
        self._then: Callable[[], object] | None = None
        self.lost = False
        """Whether another has the claim, or the entity was deleted."""
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
        while not self._ended.wait(self._lease / _BEATS):
            with contextlib.suppress(ConnectError, PyMongoError):  # the server was away: the next renewal may reach it
                try:
                    self._claim.renew(self._lease)
                except ClaimLostError:
                    self.lost = True
                    break
        self._ended.wait()
        if self._then is not None:
            self._then()


@contextlib.contextmanager
def keep_renewing(claim: Claim, lease: float) -> Iterator[None]:
    """Renew the claim from a thread until the block ends. If the claim was lost, the next write of its owner fails."""
    heartbeat = Heartbeat(claim, lease)
    try:
        yield
    finally:
        heartbeat.stop()

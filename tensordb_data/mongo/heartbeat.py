"""Renew a claim while its work goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from tensordb_data.errors import ClaimLostError, ConnectError
from tensordb_data.mongo.claims import Claim

_BEATS = 3  # renewals in the time of a lease: two may fail


@contextlib.contextmanager
def keep_renewing(claim: Claim, lease: float) -> Iterator[None]:
    """Renew the claim from a thread until the block ends. If the claim was lost, the next write of its owner fails."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(lease / _BEATS):
            with contextlib.suppress(ConnectError):  # the server was away for long: the next renewal may reach it
                try:
                    claim.renew(lease)
                except ClaimLostError:
                    return

    thread = threading.Thread(target=beat, name="tensordb-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

"""A claim that is kept while its work goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from tensordb_data.errors import ClaimLostError, ConnectError
from tensordb_data.mongo.claims import Claim

_BEATS = 3  # renewals a lease: two may fail


@contextlib.contextmanager
def keep_renewing(claim: Claim, lease: float) -> Iterator[None]:
    """Renews the claim from a thread until the block ends. One that was lost is found out by the next write."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(lease / _BEATS):
            with contextlib.suppress(ConnectError):  # it was away for long: the next one may reach it
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

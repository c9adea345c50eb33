"""A pass in query order outlives the limits of the server on cursors and sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensordb_data import TensorDB
from tests.mongod import running

N = 40_000
# As short as a server allows. A cursor ends with its session, which the test ends before its minute is over.
SHORT = [
    word
    for limit in (
        "cursorTimeoutMillis=100", "clientCursorMonitorFrequencySecs=1",
        "localLogicalSessionTimeoutMinutes=1", "logicalSessionRefreshMillis=1000",
    )
    for word in ("--setParameter", limit)
]  # fmt: skip


def cursors(db: TensorDB) -> dict[str, Any]:
    found: dict[str, Any] = db._mongo().client.admin.command("serverStatus")["metrics"]["cursor"]
    return found


@pytest.mark.parametrize("sort", [None, [("label", -1)]], ids=["in order", "sorted"])
def test_a_pass_goes_on_behind_cursors_that_the_server_has_ended(tmp_path: Path, sort: Any) -> None:
    with running(tmp_path, *SHORT) as mongod, TensorDB(mongod.uri, blobs=f"file://{tmp_path}/blobs") as db:
        with db.data.writer("numbers") as writer:
            for first in range(0, N, 10_000):
                numbers = np.arange(first, first + 10_000)
                writer.add_many(x=numbers.astype(np.uint32).reshape(-1, 1), label=numbers)
                writer.flush()
        stream = db.data.find({"dataset": "numbers"}, sort=sort).stream(batch_size=10, passes=1)
        admin = db._mongo().client.admin
        labels: list[int] = []
        ended = 0
        for number, batch in enumerate(stream):
            labels += batch["label"].tolist()
            if number % 100 == 0 and cursors(db)["open"]["total"]:
                admin.command("killAllSessions", [])
                ended += 1
        assert labels == (list(range(N)) if sort is None else list(range(N))[::-1])
        assert ended >= (2 if sort is None else 0), "a sorted pass is a plan, which holds no cursor"

"""A pass in query order outlives the limits of the server on cursors and sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import TensorDB
from tensordb_data.errors import DuplicateError
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
    found: dict[str, Any] = db.database.client.admin.command("serverStatus")["metrics"]["cursor"]
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
        admin = db.database.client.admin
        labels: list[int] = []
        ended = 0
        for number, batch in enumerate(stream):
            labels += batch["label"].tolist()
            if number % 100 == 0 and cursors(db)["open"]["total"]:
                admin.command("killAllSessions", [])
                ended += 1
        assert labels == (list(range(N)) if sort is None else list(range(N))[::-1])
        assert ended >= (2 if sort is None else 0), "a sorted pass is a plan, which holds no cursor"


def test_what_is_too_large_for_the_cache_of_a_server_is_committed_in_parts(tmp_path: Path) -> None:
    n = N
    with running(tmp_path) as mongod, TensorDB(mongod.uri, blobs=f"file://{tmp_path}/blobs") as db:
        with db.data.writer("numbers") as writer:
            ids = writer.add_many(x=np.arange(n, dtype=np.uint32).reshape(-1, 1), label=np.arange(n))
        assert writer.written == n
        labels: list[int] = []
        for batch in db.data.find({"dataset": "numbers"}).stream(batch_size=1000, passes=1):
            assert batch["x"][:, 0].tolist() == batch["label"].tolist()
            labels += batch["label"].tolist()
        assert labels == list(range(n))
        (counter,) = db.database["datasets"].find()
        assert counter["seq"] == n
        assert not db.database["segments"].count_documents({"state": {"$ne": "live"}})
        # A later part that fails leaves those before it, whose segment stays.
        with pytest.raises(DuplicateError, match="nothing of this commit was written") as failed:
            with db.data.writer("numbers") as writer:
                fresh = [ObjectId() for _ in range(N - 1)]
                columns = {"x": np.full((N, 1), 7, np.uint32), "label": -1}
                writer.add_many(_id=[*fresh, ids[0]], **columns)
        assert 0 < writer.written < N and any(f"{writer.written} samples" in note for note in failed.value.__notes__)
        more = [batch["x"] for batch in db.data.find({"label": -1}).stream(batch_size=1000, passes=1)]
        assert np.concatenate(more).tolist() == [[7]] * writer.written

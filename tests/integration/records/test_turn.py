"""Writers of one host take turns to commit, and none waits for ever."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tensordb_data import TensorDB
from tensordb_data.records import turn

WRITERS, COMMITS = 6, 15


@pytest.fixture
def db(mongo_uri: str, warehouse_dir: Path) -> Iterator[TensorDB]:
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs", cache=warehouse_dir / "cache") as opened:
        yield opened


def write(db: TensorDB, number: int) -> None:
    with db.data.writer("d", flush_every=None) as writer:
        for i in range(COMMITS):
            writer.add(number=number, i=i)
            writer.flush()


def aborted(db: TensorDB) -> int:
    return int(db._mongo().client.admin.command("serverStatus")["transactions"]["totalAborted"])


def test_no_two_meet_at_the_counter(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "PATIENCE", 120.0)
    write(db, WRITERS)
    before = aborted(db)
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda number: write(db, number), range(WRITERS)))
    assert aborted(db) == before
    assert db.data.find({"dataset": "d"}).count() == (WRITERS + 1) * COMMITS


def test_one_that_holds_on_is_passed(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "PATIENCE", 0.01)
    write(db, 0)
    (path,) = (Path(str(db.cache)) / "turns").iterdir()
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write(db, 1)
    assert db.data.find({"dataset": "d"}).count() == 2 * COMMITS


def test_nowhere_to_lock(db: TensorDB) -> None:
    folder = Path(str(db.cache))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "turns").write_text("in the way")
    write(db, 0)
    assert db.data.find({"dataset": "d"}).count() == COMMITS

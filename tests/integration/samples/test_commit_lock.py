"""Writers of one host take turns to commit, and none waits for ever."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from tensordb_data import TensorDB
from tensordb_data.samples import commit_lock as commit_lock_module
from tensordb_data.samples.write_batch import LIVE_SAMPLES

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
    return int(db.database.client.admin.command("serverStatus")["transactions"]["totalAborted"])


def test_no_two_meet_at_the_counter(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_lock_module, "PATIENCE", 120.0)
    write(db, WRITERS)
    before = aborted(db)
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda number: write(db, number), range(WRITERS)))
    assert aborted(db) == before
    assert db.data.find({"dataset": "d"}).count() == (WRITERS + 1) * COMMITS


def test_one_that_holds_on_is_passed(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_lock_module, "PATIENCE", 0.01)
    write(db, 0)
    (path,) = (Path(str(db.cache)) / "turns").iterdir()
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write(db, 1)
    assert db.data.find({"dataset": "d"}).count() == 2 * COMMITS


def test_a_live_writer_takes_more_while_it_waits(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_lock_module, "PATIENCE", 120.0)
    write(db, 0)
    (path,) = (Path(str(db.cache)) / "turns").iterdir()
    count, before = COMMITS, commits(db)
    with db.data.writer("d", live=True) as writer:
        for number in (LIVE_SAMPLES - 1, 3 * LIVE_SAMPLES):
            with path.open() as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                writer.add_many(number=0, i=range(number))
                assert (writer.written, writer.pending) == (count - COMMITS, number)
            writer.flush()
            count += number
            assert (writer.written, db.data.find({"dataset": "d"}).count()) == (count - COMMITS, count)
    assert commits(db) - before == 2


def commits(db: TensorDB) -> int:
    return int(db.database.client.admin.command("serverStatus")["transactions"]["totalCommitted"])


def test_patience_is_with_one_and_begins_anew_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_lock_module, "PATIENCE", 0.25)
    clock = iter(x / 10 for x in range(1000))
    path, looks = tmp_path / "lock", 0
    path.touch()
    with path.open("r+b", buffering=0) as held, path.open("r+b") as waiting:

        def look(seconds: float) -> None:
            nonlocal looks
            looks += 1
            if looks <= 5:
                held.seek(0)
                held.write(bytes([looks]) * 8)

        monkeypatch.setattr(commit_lock_module, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=look))
        fcntl.flock(held, fcntl.LOCK_EX)
        commit_lock_module._wait(waiting.fileno())
    assert looks == 8  # it changed hands five times, and then no more


def test_nowhere_to_lock(db: TensorDB) -> None:
    folder = Path(str(db.cache))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "turns").write_text("in the way")
    write(db, 0)
    assert db.data.find({"dataset": "d"}).count() == COMMITS

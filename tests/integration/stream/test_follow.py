"""Following a dataset: every committed sample once, in the order of commits, through restarts of either side."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mongomock
import numpy as np
import pytest
from pymongo.collection import Collection
from pymongo.errors import AutoReconnect, OperationFailure

from tensordb_data import TensorDB
from tensordb_data.errors import ConnectError, QueryError, StateError, UnsupportedError
from tensordb_data.stream.deliver import tail
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.stream.deliver.tail import CommitWatcher
from tensordb_data.stream.passes.planner import Planner
from tensordb_data.stream.stats import Stats
from tests.mongod import running


def write(db: TensorDB, numbers: Any, dataset: str = "pong", **values: Any) -> None:
    with db.data.writer(dataset) as writer:
        writer.add_many(x=np.asarray(list(numbers), np.int64).reshape(-1, 1), label=list(numbers), **values)


def follow(db: TensorDB, batch_size: int = 10, **filter_: Any) -> Stream:
    return db.data.find({"dataset": "pong", **filter_}).stream(batch_size=batch_size, follow=True)


def taken(batches: Any, count: int) -> list[int]:
    """The next `count` samples; whole batches are taken."""
    labels: list[int] = []
    while len(labels) < count:
        labels += next(batches)["label"].tolist()
    return labels


def test_what_exists_and_then_what_comes(db: TensorDB) -> None:
    write(db, range(25))
    batches = iter(follow(db))
    assert [len(next(batches)["label"]) for _ in range(3)] == [10, 10, 5]
    write(db, range(25, 29))
    assert next(batches)["label"].tolist() == [25, 26, 27, 28]
    waiting: list[int] = []
    reader = threading.Thread(target=lambda: waiting.extend(taken(batches, 3)))
    reader.start()
    write(db, range(29, 32))
    reader.join(20)
    assert waiting == [29, 30, 31]
    batches.close()  # type: ignore[attr-defined]


def test_a_dataset_that_does_not_exist_yet_is_waited_for(db: TensorDB, caplog: pytest.LogCaptureFixture) -> None:
    waits = threading.Event()
    told = logging.Handler()
    told.emit = lambda record: waits.set()  # type: ignore[method-assign]
    logging.getLogger("tensordb_data.stream").addHandler(told)
    batches = iter(follow(db))
    received: list[int] = []
    reader = threading.Thread(target=lambda: received.extend(taken(batches, 3)))
    try:
        reader.start()
        assert waits.wait(20)
        write(db, range(2), "other")
        write(db, range(3))
        reader.join(20)
    finally:
        logging.getLogger("tensordb_data.stream").removeHandler(told)
    assert received == [0, 1, 2]
    assert caplog.messages == ["dataset 'pong' does not exist yet; the stream waits for its first samples"]
    batches.close()  # type: ignore[attr-defined]


def test_only_what_matches_and_edits_are_no_news(db: TensorDB) -> None:
    write(db, range(20), split="train")
    batches = iter(follow(db, label={"$gte": 15}))
    assert taken(batches, 5) == list(range(15, 20))
    db.data.find({"dataset": "pong", "label": 3}).update({"$set": {"label": 99}})
    write(db, range(20), split="train")
    assert taken(batches, 5) == list(range(15, 20))
    batches.close()  # type: ignore[attr-defined]


def test_resume_holds_the_sequence(db: TensorDB) -> None:
    write(db, range(35))
    first = follow(db)
    head = [number for batch in itertools.islice(first, 2) for number in batch["label"].tolist()]
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    write(db, range(35, 40))
    second = follow(db, batch_size=7)
    second.load_state_dict(state)
    assert head + taken(iter(second), 20) == list(range(40))
    third = follow(db)
    third.load_state_dict(second.state_dict())
    write(db, [40])
    assert taken(iter(third), 1) == [40]
    for stream in (second, third):
        stream.close()


def test_several_datasets(db: TensorDB) -> None:
    write(db, range(5), "a")
    stream = db.data.find({}).stream(batch_size=4, follow=True, fields=["label", "dataset"])
    batches = iter(stream)
    assert taken(batches, 5) == list(range(5))
    write(db, range(5, 8), "b")
    batch = next(batches)
    assert batch["label"].tolist() == [5, 6, 7] and batch["dataset"] == ["b"] * 3
    state = stream.state_dict()
    stream.close()
    again = db.data.find({}).stream(batch_size=4, follow=True, fields=["label"])
    again.load_state_dict(state)
    write(db, [8], "a")
    assert taken(iter(again), 1) == [8]
    again.close()


def agent(db: TensorDB, number: int, each: int) -> None:
    with db.data.writer("pong") as writer:
        for i in range(each):
            writer.add(x=np.array([i], np.int64), label=number * each + i)
            if i % 50 == 49:
                writer.flush()
    db.close()


def test_four_writers_lose_nothing_and_repeat_nothing(db: TensorDB) -> None:
    write(db, [-1])
    stream = follow(db, batch_size=64)
    batches = iter(stream)
    assert taken(batches, 1) == [-1]
    each = 500
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=agent, args=(db, number, each)) for number in range(4)]
    for process in writers:
        process.start()
    labels: list[int] = []
    while len(labels) < 4 * each:
        labels += taken(batches, 1)
        if len(labels) > each:  # a restart of the reader in the middle
            state = stream.state_dict()
            stream.close()
            stream = follow(db, batch_size=64)
            stream.load_state_dict(state)
            batches = iter(stream)
    for process in writers:
        process.join()
    assert sorted(labels) == list(range(4 * each))
    stream.close()


def test_a_killed_server_is_survived(warehouse_dir: Path) -> None:
    with TensorDB(warehouse_dir) as db:
        write(db, range(10))
        stream = follow(db)
        batches = iter(stream)
        assert taken(batches, 10) == list(range(10))
        os.kill(db.database.command("serverStatus")["pid"], signal.SIGKILL)
        write(db, range(10, 15))
        assert taken(batches, 5) == list(range(10, 15))
        stream.close()


def test_a_dropped_dataset_is_said(db: TensorDB) -> None:
    write(db, range(10))
    stream = follow(db)
    batches = iter(stream)
    taken(batches, 10)
    db.database["datasets"].delete_many({})
    db.database["data"].delete_many({})
    write(db, range(3))
    with pytest.raises(StateError, match="was dropped while it was followed: 10 samples"):
        next(batches)


def test_a_lost_change_stream_is_opened_anew(db: TensorDB) -> None:
    write(db, range(10))
    batches = iter(follow(db))
    taken(batches, 10)
    db.database["datasets"].rename("elsewhere")
    db.database["elsewhere"].rename("datasets")
    write(db, range(10, 12))
    assert taken(batches, 2) == [10, 11]
    batches.close()  # type: ignore[attr-defined]


def test_closing_from_another_thread_ends_the_wait(db: TensorDB) -> None:
    write(db, range(3))
    stream = follow(db)
    batches = iter(stream)
    taken(batches, 3)
    left: list[Any] = []
    reader = threading.Thread(target=lambda: left.extend(batches))
    reader.start()
    stream.close()
    reader.join(20)
    assert not reader.is_alive() and left == []


def test_options_that_do_not_go_with_it(db: TensorDB) -> None:
    write(db, range(3))
    selection = db.data.find({"dataset": "pong"})
    for options in ({"shuffle": True}, {"passes": 2}, {"replacement": True}, {"rank": 0, "world_size": 2}):
        with pytest.raises(QueryError, match="follow=True"):
            selection.stream(batch_size=2, follow=True, **options)
    with pytest.raises(QueryError, match="follow=True"):
        db.data.find({}, limit=3).stream(batch_size=2, follow=True)
    mock = TensorDB(client=mongomock.MongoClient(), blobs="memory://")
    write(mock, range(3))
    with pytest.raises(UnsupportedError, match="mongomock"):
        next(iter(follow(mock)))
    mock.close()


def test_a_dataset_made_anew_is_another_one(db: TensorDB) -> None:
    write(db, range(10))
    stream = follow(db)
    taken(iter(stream), 10)
    state = stream.state_dict()
    stream.close()
    db.database["datasets"].delete_many({})
    db.database["data"].delete_many({})
    write(db, range(25))
    again = follow(db)
    again.load_state_dict(state)
    with pytest.raises(StateError, match=r"was dropped .* 10 samples .* was made 20"):
        next(iter(again))


def test_a_dropped_database_ends_the_wait(db: TensorDB) -> None:
    write(db, range(10))
    batches = iter(follow(db))
    taken(batches, 10)
    failed: list[Exception] = []

    def read() -> None:
        try:
            next(batches)
        except StateError as error:
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    db.database["datasets"].drop()
    reader.join(20)
    assert not reader.is_alive() and "was dropped while it was followed" in str(failed[0])


def test_samples_that_are_gone_before_they_came_do_not_come(db: TensorDB) -> None:
    """Dropping the collection of samples is the same as deleting all of them."""
    write(db, range(30))
    stream = follow(db)
    assert taken(iter(stream), 10) == list(range(10))
    state = stream.state_dict()
    stream.close()
    db.database["data"].drop()
    again = follow(db)
    again.load_state_dict(state)
    batches = iter(again)
    write(db, range(30, 33))
    assert taken(batches, 3) == [30, 31, 32]
    again.close()


def test_the_collection_goes_while_it_is_read(db: TensorDB) -> None:
    write(db, range(5000))
    batches = iter(follow(db))
    assert taken(batches, 10) == list(range(10))
    db.database["data"].drop()
    write(db, [5000])
    labels = [9]
    while labels[-1] != 5000:
        labels += next(batches)["label"].tolist()
    assert labels == sorted(set(labels)), "in order, none twice"
    batches.close()  # type: ignore[attr-defined]


def test_labels_are_those_of_the_moment_of_delivery(db: TensorDB) -> None:
    write(db, range(40), split="train")
    stream = follow(db, split="train")
    assert taken(iter(stream), 10) == list(range(10))
    state = stream.state_dict()
    stream.close()
    dataset = db.data.find({"dataset": "pong"})
    (dataset & {"label": {"$in": [3, 12]}}).update({"$set": {"label": 1000}})  # 3 was delivered, as 3
    (dataset & {"label": 15}).update({"$set": {"split": "valid"}})
    (dataset & {"label": 17}).delete()
    again = follow(db, split="train")
    again.load_state_dict(state)
    expected = [1000 if n == 12 else n for n in range(10, 40) if n not in (15, 17)]
    assert taken(iter(again), 28) == expected
    again.close()


def test_datasets_that_do_not_match_are_passed_over(db: TensorDB) -> None:
    write(db, range(5), "a", kind="x")
    write(db, range(5), "b", kind="y")
    stream = db.data.find({"kind": "x"}).stream(batch_size=4, follow=True, fields=["label"])
    batches = iter(stream)
    assert taken(batches, 5) == list(range(5))
    write(db, range(5, 10), "b", kind="y")
    write(db, [5], "a", kind="x")
    assert taken(batches, 1) == [5]
    stream.close()


def test_the_oplog_rolls_over_under_a_follower_far_behind(tmp_path: Path) -> None:
    """The log of a MongoDB of 1 MB forgets all that came since; the samples are still there."""
    # It forgets no more than its last checkpoint allows.
    options = ("--oplogSize", "1", "--syncdelay", "1", "--setParameter", "minSnapshotHistoryWindowInSeconds=0")
    with running(tmp_path, *options) as mongod, TensorDB(mongod.uri, blobs=f"file://{tmp_path}/blobs") as db:
        write(db, range(10), note=[""] * 10)
        waiting, behind = follow(db), follow(db)
        batches = iter(waiting)
        assert taken(batches, 10) == list(range(10)) == taken(iter(behind), 10)
        state = behind.state_dict()
        behind.close()
        oplog = db.database.client["local"]["oplog.rs"]
        first = oplog.find_one(sort=[("$natural", 1)])
        assert first is not None
        written = 10
        while (oplog.find_one(sort=[("$natural", 1)]) or first)["ts"] == first["ts"]:
            write(db, range(written, written + 2000), note=["x" * 200] * 2000)
            written += 2000
        assert taken(batches, written - 10) == list(range(10, written))
        again = follow(db, batch_size=64)
        again.load_state_dict(state)
        assert taken(iter(again), written - 10) == list(range(10, written))
        for stream in (waiting, again):
            stream.close()


def test_a_lost_place_in_the_oplog_only_costs_time(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    write(db, range(10))
    batches = iter(follow(db))
    assert taken(batches, 10) == list(range(10))
    lost = OperationFailure("Resume of change stream was not possible", 286)
    opened: list[Any] = []

    class Lost:
        alive = True

        def try_next(self) -> None:
            raise lost

        def close(self) -> None:
            opened.append(self)
            if len(opened) == 2:
                write(db, [10])

    monkeypatch.setattr(Collection, "watch", lambda *args, **options: Lost())
    assert taken(batches, 1) == [10] and len(opened) >= 2
    batches.close()  # type: ignore[attr-defined]


def test_a_look_that_took_long_is_not_waited_for_ten_times_as_long(
    db: TensorDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have waited for a new primary, behind which there is something to be had."""
    now, naps = [0.0], []

    def slow() -> int:
        now[0] += 0.4
        return len(naps)

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=naps.append)
    monkeypatch.setattr("tensordb_data.stream.deliver.tail.time", clock)
    with CommitWatcher(db.warehouse) as watcher:
        watcher.wait({}, slow, busy=True)
    assert len(naps) == 1 and naps[0] <= 0.5


def test_a_loop_that_takes_its_time_is_no_server_that_is_away(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was lost meanwhile is made anew, as at any other time."""
    write(db, range(10))
    now, lost = [0.0], [AutoReconnect("reset by peer")]
    real = CommitWatcher.wait

    def wait(*args: Any) -> None:
        if now[0] >= 1000 and lost:
            raise lost.pop()
        real(*args)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(tail, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(CommitWatcher, "wait", wait)
    pages = tail.follow(Planner(db.warehouse, follow(db).spec), {}, 100, 100, lambda: False, Stats(1))
    page = next(pages)
    assert page is not None and len(page[2]) == 10 and next(pages) is None
    now[0] += 1000  # a validation, say
    assert next(pages) is None and not lost
    pages.close()  # type: ignore[attr-defined]


def test_a_server_that_comes_back_is_followed_on(tmp_path: Path) -> None:
    with running(tmp_path) as mongod, TensorDB(mongod.uri, blobs=f"file://{tmp_path}/blobs") as db:
        write(db, range(25))
        stream = follow(db)
        batches = iter(stream)
        assert taken(batches, 10) == list(range(10))
        found: list[int] = []
        reader = threading.Thread(target=lambda: found.extend(taken(batches, 20)))
        mongod.kill()
        reader.start()
        mongod.start()
        write(db, range(25, 30))
        reader.join(60)
        assert found == list(range(10, 30))
        stream.close()


def test_a_server_that_stays_away_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensordb_data.stream.deliver.tail._PATIENCE", 0.0)
    with running(tmp_path) as mongod:
        db = TensorDB(f"{mongod.uri}&serverSelectionTimeoutMS=200", blobs=f"file://{tmp_path}/blobs")
        write(db, range(10))
        stream = follow(db)
        batches = iter(stream)
        assert taken(batches, 10) == list(range(10))
        mongod.kill()
        with pytest.raises(ConnectError, match=r"away for 0 s.*begin again with the state"):
            next(batches)
        assert stream.state_dict()["position"] == 10
        db.close()


def test_only_the_stream_knows_how_far_it_is(db: TensorDB) -> None:
    write(db, range(10))
    stream = follow(db)
    with pytest.raises(StateError, match="iterate over it directly"):
        stream.advance(stream.state_dict(), 1)

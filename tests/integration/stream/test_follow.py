"""Following a dataset: every committed sample once, in the order of commits, through restarts of either side."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import mongomock
import numpy as np
import pytest

from tensordb_data import TensorDB
from tensordb_data.errors import QueryError, StateError, UnsupportedError
from tensordb_data.stream import Stream


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
        os.kill(db._mongo().command("serverStatus")["pid"], signal.SIGKILL)
        write(db, range(10, 15))
        assert taken(batches, 5) == list(range(10, 15))
        stream.close()


def test_a_dropped_dataset_is_said(db: TensorDB) -> None:
    write(db, range(10))
    stream = follow(db)
    batches = iter(stream)
    taken(batches, 10)
    db._mongo()["datasets"].delete_many({})
    db._mongo()["data"].delete_many({})
    write(db, range(3))
    with pytest.raises(StateError, match="was dropped while it was followed: 10 samples"):
        next(batches)


def test_a_lost_change_stream_is_opened_anew(db: TensorDB) -> None:
    write(db, range(10))
    batches = iter(follow(db))
    taken(batches, 10)
    db._mongo()["datasets"].rename("elsewhere")
    db._mongo()["elsewhere"].rename("datasets")
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

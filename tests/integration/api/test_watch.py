"""Watching a Selection."""

from __future__ import annotations

import threading

import pytest

from tensordb_data import QueryError, TensorDB


def test_yields_what_is_inserted_and_what_begins_to_match(db: TensorDB) -> None:
    with db.data.writer("d") as writer:
        writer.add(label=0)
    with db.data.find({"dataset": "d", "label": 3}).watch() as watch:
        with db.data.writer("d") as writer:
            writer.add_many(label=[1, 3, 2])
        first = next(watch)
        assert first["label"] == 3
        db.data.find({"label": 0}).tag("noise")
        db.data.find({"label": 0}).update({"$set": {"label": 3}})
        second = next(watch)
        assert second["label"] == 3 and second.id != first.id and second.tags == ["noise"]
        db.data.find({"_id": first.id}).tag("noise")  # not a field of the filter
        db.data.find({"label": 2}).update({"$set": {"label": 3}})
        assert next(watch).id not in (first.id, second.id)


def test_any_filter_works(db: TensorDB) -> None:
    watch = db.data.find({"$expr": {"$gt": ["$a", "$b"]}, "name": {"$regex": "^x"}}).watch()
    with db.data.writer("d") as writer:
        writer.add_many(a=[1, 2, 3], b=[2, 1, 1], name=["x", "y", "xz"])
    assert next(watch)["name"] == "xz"
    watch.close()


def test_an_edit_of_tags_counts_when_the_filter_names_them(db: TensorDB) -> None:
    with db.data.writer("d") as writer:
        writer.add_many(x=[1, 2])
    with db.data.find({"tags": "clean"}).watch() as watch:
        db.data.find({"x": 2}).tag("raw")
        db.data.find({"x": 2}).tag("clean")
        assert next(watch)["x"] == 2


def test_large_commits_arrive_whole_and_in_order(db: TensorDB) -> None:
    with db.data.find({"dataset": "d"}).watch() as watch:
        with db.data.writer("d") as writer:
            writer.add_many(x=range(3000))
        assert [next(watch)["x"] for _ in range(3000)] == list(range(3000))


def test_close_ends_a_waiting_iterator(db: TensorDB) -> None:
    for _ in range(20):  # at one moment or another of what it does
        watch, ended = db.data.find().watch(), list[object]()
        waiting = threading.Thread(target=lambda watch=watch, ended=ended: ended.append(list(watch)))
        waiting.start()
        watch.close()
        waiting.join(20)
        assert ended == [[]]
        assert list(watch) == []


def test_other_projects_are_not_seen(mongo_uri: str) -> None:
    with TensorDB(mongo_uri, project="a") as a, TensorDB(mongo_uri, project="b") as b, a.data.find().watch() as watch:
        for db in (b, a):
            with db.data.writer("d") as writer:
                writer.add(x=db.project)
        assert next(watch)["x"] == "a"


def test_survives_a_lost_cursor(db: TensorDB) -> None:
    with db.data.find().watch() as watch, db.data.writer("d") as writer:
        writer.add(x=1)
        writer.flush()
        assert next(watch)["x"] == 1
        cursor = watch._stream._cursor
        db.database.command("killCursors", "data", cursors=[cursor.cursor_id])
        writer.add(x=2)
        writer.flush()
        assert next(watch)["x"] == 2


def test_what_came_before_a_cursor_was_lost_that_had_told_no_position(db: TensorDB) -> None:
    with db.data.writer("d") as writer:
        writer.add(label=0)  # before the watch
    with db.data.find({"dataset": "d"}).watch() as watch:
        watch._stream.close()
        watch._stream = None
        with db.data.writer("d") as writer:
            writer.add(label=1)
        assert next(watch)["label"] == 1


def test_sort_and_limit_are_refused(db: TensorDB) -> None:
    with pytest.raises(QueryError, match="without sort and limit"):
        db.data.find(limit=3).watch()
    with pytest.raises(QueryError, match="without sort and limit"):
        db.data.find(sort="a").watch()

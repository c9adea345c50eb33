"""Entries of the search index are written alongside a commit, and are there when it ends, whatever fails."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tensordb_data import TensorDB, TensorDBError
from tensordb_data.samples import commit as commit_module
from tensordb_data.search.index import SearchIndex

N = 500  # more than a live writer commits at a time


def captions(low: int, n: int = N) -> list[str]:
    return [f"a picture of thing{i} and tree{i % 7}" for i in range(low, low + n)]


def test_no_sample_is_seen_before_its_entry(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the entries take longer than a transaction can wait, so that it begins again."""
    began, go = threading.Event(), threading.Event()
    write, attempts = SearchIndex._write, []

    def slow(self: SearchIndex, entries: Any) -> None:
        began.set()
        go.wait(60)
        write(self, entries)

    checked = commit_module._Body._check_counter

    def counted(self: Any, *args: Any) -> None:
        attempts.append(threading.current_thread().name)
        checked(self, *args)

    with db.data.writer("d") as writer:
        writer.add(caption="the first one")
        writer.flush()
        monkeypatch.setattr(SearchIndex, "_write", slow)
        monkeypatch.setattr(commit_module, "_PATIENCE", 0.01)
        monkeypatch.setattr(commit_module._Body, "_check_counter", counted)
        writer.add_many(caption=captions(0))
        thread = threading.Thread(target=writer.flush)
        thread.start()
        assert began.wait(60)
        assert db.data.find().count() == 1
        go.set()
        thread.join()
        assert db.data.find().count() == 1 + N and 1 <= len(attempts) <= 2
    assert [hit.query.filter["dataset"] for hit in db.search("thing499")] == ["d"]
    numbers = [doc["_tdb"]["s"] for doc in db.database["data"].find().sort("_tdb.s", 1)]
    assert numbers == list(range(1, N + 2))


@pytest.mark.parametrize("few", [True, False])
def test_where_the_entries_fail_nothing_is_committed(db: TensorDB, monkeypatch: pytest.MonkeyPatch, few: bool) -> None:
    def fails(self: SearchIndex, entries: Any) -> None:
        raise TensorDBError("no entries today")

    n = 5 if few else N
    with db.data.writer("d", live=few) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(SearchIndex, "_write", fails)
            with pytest.raises(TensorDBError, match="no entries today"):
                writer.add_many(caption=captions(0, n))
                writer.flush()
        assert db.data.find().count() == 0 and db.search("picture") == []
        writer.add_many(caption=captions(0, n))
        writer.flush()
        assert db.data.find().count() == n and len(db.search("thing3")) >= 1
    assert not [thread for thread in threading.enumerate() if thread.name == "tensordb-alongside"]


def test_samples_without_new_words_need_no_thread(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    with db.data.writer("d") as writer:
        writer.add(split="train", tags=["a"], note=" ")
        writer.flush()
        written: list[Any] = []
        monkeypatch.setattr(SearchIndex, "add_groups", lambda self, *args: written.append(args))
        writer.add(split="train", tags=["a"], note="")
        writer.flush()
        assert written == []
        for more in ({"split": "test", "tags": ["a"]}, {"split": "train", "tags": ["b"]}):
            writer.add(note="", **more)
            writer.flush()
    assert len(written) == 2

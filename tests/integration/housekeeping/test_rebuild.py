"""Rebuild: an index from segments alone, and what it says it could not know."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tensordb_data import TensorDB, UnsupportedError
from tensordb_data.cli.main import app


def image(n):
    return np.full(500, n, "u1")


@pytest.fixture
def written(db, mongo_uri):
    """Two flushes, a later optional field, a deletion, a label that changed, a compaction of live samples."""
    for part in (range(10), range(10, 20)):
        with db.data.writer("a") as writer:
            ids = writer.add_many(x=np.stack([image(n) for n in part]), n=list(part), label=[0] * 10)
    db.data.find({"n": 19}).update({"$set": {"label": 5}})
    db.data.find({"_id": ids[0]}).delete()
    with db.data.writer("live", live=True) as writer:
        writer.add_many(x=np.stack([image(n) for n in range(5)]), n=list(range(5)))
    db.data.compact("live")
    with TensorDB(mongo_uri, project="other") as other, other.data.writer("b") as writer:
        writer.add(x=image(1))
    return db


def lose(db):
    """The index is gone; the store is not."""
    for name in ("data", "datasets", "segments", "search"):
        db._mongo()[name].delete_many({})


def read(db, dataset):
    return {row["n"]: row["x"][0] for row in db.data.find({"dataset": dataset})}


def test_samples_come_back(written):
    lose(written)
    report = written.rebuild()
    assert report.datasets == {"a": 20, "live": 5} and report.segments == 3 and report.skipped == []
    assert report.projects == ["other"] and any("deleted" in text for text in report.unknown)
    assert read(written, "a") == {n: n for n in range(20)}  # the deleted one too
    assert read(written, "live") == {n: n for n in range(5)}
    assert [row["n"] for row in written.data.find({"dataset": "a"})] == list(range(20))
    assert {row["label"] for row in written.data.find({"dataset": "a"})} == {0}
    assert [finding for finding in written.fsck().findings if finding.kind != "unknown object"] == []
    with written.data.writer("a") as writer:
        writer.add(x=image(99), n=99, label=1)
    batches = list(written.data.find({"dataset": "a"}).stream(batch_size=50, passes=1))
    assert sum(len(batch["n"]) for batch in batches) == 21


def test_stopped_and_called_again(written, monkeypatch):
    from tensordb_data.housekeeping import rebuild as module

    lose(written)
    real, calls = module.read_segment, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "read_segment", dies)
        written.rebuild()
    assert written.rebuild().samples == 25
    assert read(written, "a") == {n: n for n in range(20)}
    with pytest.raises(UnsupportedError, match="index is not lost"):
        written.rebuild()


def test_a_damaged_segment_is_named(written):
    lose(written)
    store = written._store(written._root)
    first = min(key for key, _ in store.list("segments/"))
    path = store.local_path(first)
    path.write_bytes(path.read_bytes()[:-3])
    report = written.rebuild()
    assert report.datasets == {"a": 10, "live": 5} and first in report.skipped[0]


def test_the_command(written, mongo_uri):
    def run(*more):
        return CliRunner().invoke(app, ["fsck", "--rebuild", *more], env={"TENSORDB": mongo_uri})

    refused = run()
    assert refused.exit_code == 1 and "index is not lost" in refused.stderr
    lose(written)
    done = run("--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["samples"] == 25, done.output

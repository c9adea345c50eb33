"""One saver a run: its lease, who is told, and who may take it over."""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import os
import socket
import subprocess
import sys
import textwrap
import threading
from typing import Any

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import CheckpointError, RunHeldError, TensorDB
from tensordb_data.checkpoint.checkpointer import Checkpointer
from tensordb_data.checkpoint.options import SaveOptions
from tensordb_data.checkpoint.run_saver import newest_set
from tensordb_data.runs import lease
from tests.steady.processes import Popen

HOLDS = """
import sys
import numpy as np
from tensordb_data import TensorDB
from tensordb_data.checkpoint.checkpointer import Checkpointer

db = TensorDB(sys.argv[1], blobs=sys.argv[2])
saver = Checkpointer(db.warehouse, "r", lambda step: {"model": {"w": np.ones(3)}, "training": {"step": step}}, every=1)
saver.end_step(1, {"loss": 1.0})
saver.wait()
print("saved", flush=True)
sys.stdin.read()
"""


def saver(db: TensorDB, **options: Any) -> Checkpointer:
    def state(step: int) -> dict[str, Any]:
        return {"model": {"w": np.full(3, step)}, "training": {"step": step}}

    return Checkpointer(db.warehouse, "r", state, every=1, options=SaveOptions(signals=False, **options))


def run(db: TensorDB) -> dict[str, Any]:
    return db.database["runs"].find_one({"name": "r"})  # type: ignore[return-value]


def elsewhere(db: TensorDB, seconds: float) -> ObjectId:
    """Give the lease to a process on another machine."""
    with contextlib.closing(saver(db)):
        pass
    token = ObjectId()
    claim = {
        "owner": "there-7", "token": token, "since": dt.datetime(2026, 1, 2, 3, 4, 5), "host": "there", "pid": 7,
        "process": "another-boot 1 7 99", "until": {"$add": ["$$NOW", int(seconds * 1000)]},
    }  # fmt: skip
    attempt = {"id": ObjectId(), "began": "$$NOW", "ended": None, "state": "running", "host": "there", "pid": 7}
    change = {"_tdb.saver": claim, "attempts": {"$concatArrays": ["$attempts", [attempt]]}}
    db.database["runs"].update_one({"name": "r"}, [{"$set": change}])
    return token


def test_the_document_tells_who_saves_and_what_became_of_it(db):
    with contextlib.closing(saver(db, config={"lr": 0.1, "model": {"width": 8}})):
        found = run(db)
        (attempt,) = found["attempts"]
        assert (attempt["state"], attempt["host"], attempt["pid"]) == ("running", socket.gethostname(), os.getpid())
        assert attempt["ended"] is None and attempt["code"] is not None
        assert found["config"] == {"lr": 0.1, "model": {"width": 8}} and found["_tdb"]["saver"]["pid"] == os.getpid()
    (attempt,) = run(db)["attempts"]
    assert attempt["state"] == "ended" and attempt["ended"] >= attempt["began"]


def test_a_training_that_raises_has_failed_and_an_interrupted_one_has_not(db):
    for error in (ValueError("nan"), KeyboardInterrupt()):
        with contextlib.suppress(type(error)), contextlib.closing(saver(db)) as one:
            one.end_step(1, {})
            raise error
    assert [each["state"] for each in run(db)["attempts"]] == ["failed", "ended"]


def test_a_second_process_is_refused_and_takes_over_at_once_when_the_first_is_killed(db, mongo_uri, warehouse_dir):
    command = [sys.executable, "-c", textwrap.dedent(HOLDS), mongo_uri, f"file://{warehouse_dir}/blobs"]
    with Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "saved\n"
            since = run(db)["_tdb"]["saver"]["since"]
            with pytest.raises(RunHeldError) as refused:
                saver(db)
            for part in ("'r'", str(process.pid), repr(socket.gethostname()), f"{since:%Y-%m-%d %H:%M:%S} UTC"):
                assert part in str(refused.value)
            # loading without saving is nobody's business
            assert db.params.find({"run": "r"}).first().step == 1
            with TensorDB(mongo_uri, read_only=True) as reader:
                looks = saver(reader)
                assert looks.load(None)[0]["step"] == 1
                looks.close()
        finally:
            process.kill()
            process.wait()
        with contextlib.closing(saver(db)) as one:
            assert one.load(None)[0]["step"] == 1
        assert [each["state"] for each in run(db)["attempts"]] == ["lost", "ended"]


def test_within_a_process_the_one_that_trains_has_the_run(db):
    first, second = saver(db), saver(db)
    first.end_step(1, {})  # neither had trained: the first to do so has it
    with pytest.raises(RunHeldError, match="another saver of this process"):
        second.end_step(1, {})
    with pytest.raises(RunHeldError, match="another saver of this process"):
        saver(db)
    first.close()
    second.end_step(1, {})
    second.close()
    gone = saver(db)
    gone.end_step(2, {})
    del gone
    gc.collect()
    with contextlib.closing(saver(db)) as last:
        assert last.load(None)[0]["step"] == 2  # what the one that is gone had taken is durable


def test_the_lease_of_another_machine_is_waited_for_with_one_line(db, capsys, monkeypatch):
    elsewhere(db, 1000)
    over = [{"$set": {"_tdb.saver.until": "$$NOW"}}]
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: db.database["runs"].update_one({"name": "r"}, over))
    with contextlib.closing(saver(db)):
        assert [each["state"] for each in run(db)["attempts"]] == ["ended", "lost", "running"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "'r' is held by process 7 on host 'there'" in said[0]


def test_a_lease_that_another_machine_renews_is_refused(db, monkeypatch):
    elsewhere(db, 30)
    later = [{"$set": {"_tdb.saver.until": {"$add": ["$_tdb.saver.until", 5000]}}}]
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: db.database["runs"].update_one({"name": "r"}, later))
    with pytest.raises(RunHeldError, match="process 7 on host 'there' since 2026-01-02 03:04:05 UTC"):
        saver(db)


def test_a_saver_that_was_silent_for_too_long_saves_nothing_more(db):
    one = saver(db)
    one.end_step(1, {})
    one.wait()
    one._run.lease._heartbeat.stop()  # type: ignore[union-attr]  # as if the process had been stopped
    db.database["runs"].update_one({"name": "r"}, {"$set": {"_tdb.saver.token": ObjectId(), "_tdb.saver.host": "b"}})
    one.end_step(2, {})
    with pytest.raises(CheckpointError, match="on host 'b' has taken the run over"):
        one.close()
    assert newest_set(db.warehouse, "r")["step"] == 1
    assert run(db)["attempts"][-1]["state"] == "running"  # that of the other is not ended by this one


def test_a_run_that_was_deleted_while_it_is_saved(db):
    one = saver(db)
    one.end_step(1, {})
    one.wait()
    db.database["runs"].delete_many({})
    one.end_step(2, {})
    with pytest.raises(CheckpointError, match="'r' was deleted while it was saved here"):
        one.close()


def test_a_client_that_only_reads_restores_and_is_told_when_it_saves(db, mongo_uri):
    with contextlib.closing(saver(db)) as one:
        one.end_step(4, {})
    before = run(db)
    with TensorDB(mongo_uri, read_only=True) as reader:
        looks = saver(reader)
        assert looks.load(None)[0]["step"] == 4
        with pytest.raises(CheckpointError, match="'r' cannot be saved: this client may not write"):
            looks.end_step(5, {})
        looks.close()
    assert run(db) == before


def test_of_many_who_begin_at_once_one_has_the_run(db):
    got: list[object] = []

    def take() -> None:
        with contextlib.suppress(RunHeldError):
            held = lease.RunLease.take(db.warehouse, "r")
            held.begun = True
            got.append(held)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    standing = [each for each in got if not each.gone]  # type: ignore[attr-defined]
    assert len(standing) == 1
    for each in got:
        each.end()  # type: ignore[attr-defined]


@pytest.mark.parametrize("config", ["lr=0.1", {"a.b": 1}, {"$a": 1}, {1: 2}, {"f": print}, {"deep": {"": 1}}])
def test_a_malformed_configuration_is_refused(db, config):
    with pytest.raises(CheckpointError, match="config"):
        saver(db, config=config)

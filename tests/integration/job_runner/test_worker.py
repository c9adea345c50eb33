"""Workers: what jobs are given, what becomes of each way to end, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tensordb_data import JobLimits, Permissions, TensorDB
from tensordb_data.cli.main import app
from tensordb_data.errors import NotAllowedError, QueryError, UnsupportedError
from tensordb_data.job_runner.worker import Worker

ALLOW = ["tests.integration.workload"]
ALLOWED = Permissions(allow=ALLOW)


def push(db, name, **more):
    given = {name: more.pop(name) for name in ("time_limit", "max_attempts") if name in more}
    limits = JobLimits(**{"backoff": 0, **given})
    return db.jobs.push("t", entry=f"tests.integration.workload:{name}", limits=limits, **more)


def work(db, **more):
    return Worker(db, **{"may": ALLOWED, "grace": 0.2, **more}).run(until_empty=True)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Background:
    """A worker in a thread."""

    def __init__(self, db, **more):
        self.worker = Worker(db, **{"may": ALLOWED, "grace": 0.2, **more})
        self._thread = threading.Thread(target=self.worker.run)

    def __enter__(self):
        self._thread.start()
        return self.worker

    def __exit__(self, *exc):
        self.worker.stop()
        self._thread.join()


def test_a_job_gets_its_arguments_and_queries_and_the_same_with_another_query_is_another_experiment(db):
    with db.data.writer("d") as writer:
        writer.add_many(x=np.arange(10), label=np.arange(10), split=["a", "b"] * 5)
    jobs = [push(db, "mean", args={"scale": 2.0}, data=db.data.find({"split": s}), tags=["x"]) for s in "ab"]
    last = push(db, "add", args={"a": 1, "b": 2}, after=jobs)
    assert work(db) == 3
    assert [job.refresh()["result"] for job in (*jobs, last)] == [{"mean": 8.0}, {"mean": 10.0}, 3]
    rows = jobs[0].output.all()
    assert rows[0]["text"] == "mean of 5 labels" and rows[0].tags == ["x"] and len(rows) == 2
    assert db.database["workers"].count_documents({}) == 0


def test_ways_to_end_badly_at_once(db, tmp_path, monkeypatch):
    """Each of them in one run, since a process takes a second to start."""
    db.jobs.push("t", entry="tests.integration.nowhere:f")  # not allowed: stays where it is
    again = push(db, "fail", args={"path": str(tmp_path / "f")})
    (tmp_path / "no_python.py").write_text("def f(:\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    cases = [
        (push(db, "nothing"), "there is no 'nothing' in the module"),
        (push(db, "os.system", args={"command": "true"}), "leads through another module, os"),
        (push(db, "add", args={"a": 1}), "does not take a: missing a required argument: 'b'"),
        (db.jobs.push("t", entry="no_python:f"), "cannot be imported: invalid syntax"),
        (push(db, "killed", max_attempts=1), "ended by SIGKILL without a result; its last output:\nabout to go"),
        (push(db, "leaves", args={"path": ""}, max_attempts=1), "ended with exit status 0 without a result"),
    ]
    assert work(db, may=Permissions(allow=[*ALLOW, "no_python"])) == 2 + len(cases)
    for job, reason in cases:
        assert job.status == "dead" and reason in job["reason"] and job["attempts"] == 1, job["reason"]
    assert again.status == "done" and again["attempts"] == 2 and again["result"] == "second time"
    failure = again["events"][2]
    assert failure["event"] == "failed" and failure["reason"].endswith("ValueError: not yet")
    assert "child.py" not in failure["reason"]
    left = db.jobs.find({"status": "ready"}).first()
    assert left["entry"] == "tests.integration.nowhere:f"


def test_ways_to_end_well_at_once(db, tmp_path):
    results, exits = push(db, "results"), push(db, "exits")
    leaves = push(db, "leaves_a_stranger", args={"path": str(tmp_path / "pid")})
    last = push(db, "add", args={"a": 1, "b": 2})
    assert work(db) == 4
    assert results.status == "done" and results["result"] == {
        "acc": 0.5, "confusion": [[1.0, 0.0], [0.0, 1.0]], "0": "zero",
    }  # fmt: skip
    assert results["left_out"][0].startswith("left: a object cannot") and "left out of the result" in results.explain()
    assert (exits.status, exits["result"], exits["attempts"]) == ("done", None, 1)
    assert exits.output.first()["text"] == "all is done"
    stranger = int((tmp_path / "pid").read_text())
    assert alive(stranger) and leaves.status == "done" and leaves.output.first()["text"] == "left"
    assert last.status == "done"
    os.kill(stranger, signal.SIGKILL)


def test_a_job_that_exits_because_it_was_told_to_is_not_done(db, tmp_path):
    job = push(db, "exits_when_told", args={"path": str(tmp_path / "a")})
    with Background(db, grace=60):
        until(lambda: (tmp_path / "a").exists() and (tmp_path / "a").read_text())
    assert (job.status, job["attempts"]) == ("ready", 0)


def test_two_workers_of_a_machine_give_each_job_a_gpu_of_its_own(db, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    jobs = [push(db, "devices", args={"path": str(tmp_path)}, requires={"gpu": 1}) for _ in range(2)]
    with Background(db, resources={"gpu": 2}), Background(db, resources={"gpu": 2}):
        until(lambda: all(job.status == "done" for job in jobs))
    assert sorted(job["result"] for job in jobs) == ["4", "7"]


def test_what_a_job_leaves_behind_is_ended(db, tmp_path):
    job = push(db, "forks", args={"path": str(tmp_path / "pids")})
    work(db)
    assert job.status == "done" and job["result"]["pid"] > 0
    until(lambda: not any(alive(pid) for pid in (tmp_path / "pids").read_text().split()))


def test_a_process_that_goes_on_after_its_result_is_ended_and_the_next_job_has_its_turn(db, tmp_path):
    first = push(db, "lingers", args={"path": str(tmp_path / "a")}, priority=1)
    second = push(db, "add", args={"a": 1, "b": 2})
    assert work(db, lease=0.9) == 2
    assert (first.status, first["result"], first["attempts"]) == ("done", "long done", 1)
    assert second.status == "done" and not alive((tmp_path / "a").read_text())


def test_cancel_cooperative_and_by_force(db, tmp_path):
    obeys = push(db, "obeys", args={"path": str(tmp_path / "a")}, priority=1)
    stubborn = push(db, "stubborn", args={"path": str(tmp_path / "b")})
    with Background(db, lease=1.5):
        for job, path in ((obeys, tmp_path / "a"), (stubborn, tmp_path / "b")):
            until(lambda path=path: path.exists() and path.read_text())
            job.cancel("enough")
            until(lambda job=job: job.status == "cancelled")
            assert job["reason"] == "enough"
            until(lambda path=path: not alive(path.read_text()))
    assert (tmp_path / "a.end").exists()


def test_time_limit(db, tmp_path):
    job = push(db, "stubborn", args={"path": str(tmp_path / "a")}, time_limit=2, max_attempts=1)
    work(db)
    assert job.status == "dead" and job["reason"] == "stopped after its time limit of 2 s"


def test_output_of_any_size_and_bytes(db):
    job = push(db, "prints", args={"n": 5000})
    work(db)
    rows = [row["text"] for row in job.output]
    assert rows[:5000] == [str(i) for i in range(5000)] and "".join(rows[5000:]) == "x" * 20_000 + "\ufffd"


def test_stored_scripts_need_leave(db):
    script = "print(a)\nresult = {'n': data.count(), 'twice': 2 * a, 'id': str(job.id)}"
    job = db.jobs.push_script("t", script, args={"a": 4}, data=db.data.find({"x": 1}))
    broken = db.jobs.push_script("t", "this is no program")
    assert work(db) == 0 and job.status == "ready"
    assert work(db, may=Permissions(scripts=True)) == 2
    assert job.refresh()["result"] == {"n": 0, "twice": 8, "id": str(job.id)}
    assert broken.status == "dead" and "the script is no Python" in broken["reason"]


def test_a_deleted_job_is_stopped(db, tmp_path):
    job = push(db, "stubborn", args={"path": str(tmp_path / "a")})
    with Background(db, lease=0.6):
        until(lambda: (tmp_path / "a").exists() and (tmp_path / "a").read_text())
        db.jobs.find({"_id": job.id}).delete()
        until(lambda: not alive((tmp_path / "a").read_text()))


def test_what_a_worker_is_given(db):
    for may, error in (({"allow": "x"}, NotAllowedError), ({"allow": []}, QueryError), ({}, QueryError)):
        with pytest.raises(error):
            Permissions(**may)
    odd = [{"may": None}, {"may": ALLOW}, {"kinds": "x"}, {"name": ""}, {"name": "a\0"}, {"grace": -1}, {"lease": 0}]
    for more in odd:
        with pytest.raises(QueryError):
            Worker(db, **{"may": ALLOWED, **more})
    with pytest.raises(UnsupportedError, match="an address"):
        Worker(TensorDB(client=db.database.client), may=ALLOWED)


def start(folder, *more):
    command = [sys.executable, "-m", "tensordb_data.cli.main", "worker", "--db", str(folder), "--allow", ALLOW[0]]
    return subprocess.Popen([*command, "--lease", "3", "--grace", "0.3", *more], stderr=subprocess.PIPE, text=True)


def test_killed_worker_takes_its_job_along_and_another_does_it(warehouse_dir):
    go = warehouse_dir / "go"
    begun = go.with_suffix(".begun")
    with TensorDB(warehouse_dir / "w") as db:
        job = push(db, "waits", args={"path": str(go)})
        first = start(warehouse_dir / "w", "--name", "same")
        until(lambda: begun.exists() and begun.read_text())
        pid = begun.read_text()
        first.kill()
        first.communicate()
        until(lambda: not alive(pid))
        begun.unlink()
        second = start(warehouse_dir / "w", "--name", "same", "--until-empty")
        until(begun.exists)
        go.touch()
        _, said = second.communicate(timeout=60)
        assert second.returncode == 0 and "has run 1 jobs" in said, said
        assert job.status == "done" and [e["event"] for e in job["events"]][1:3] == ["claimed", "lost"]


def test_sigterm_drains_and_a_second_hands_back(warehouse_dir):
    with TensorDB(warehouse_dir / "w") as db:
        for twice in (False, True):
            go = warehouse_dir / f"go{twice}"
            job, other = push(db, "waits", args={"path": str(go)}), push(db, "add", args={"a": 1, "b": 2})
            process = start(warehouse_dir / "w")
            until(go.with_suffix(".begun").exists)
            process.send_signal(signal.SIGTERM)
            if twice:
                until(lambda: db.database["workers"].find_one({"fields.draining": True}))
                process.send_signal(signal.SIGTERM)
            else:
                go.touch()
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0 and "ends after the job that runs" in said, said
            assert job.status == ("ready" if twice else "done") and other.status == "ready", said
            assert job["attempts"] == (0 if twice else 1)
            db.jobs.find({}).delete(all=True)


def test_the_database_is_killed_under_a_running_job(warehouse_dir):
    go = warehouse_dir / "go"
    with TensorDB(warehouse_dir / "w") as db:
        job = push(db, "waits", args={"path": str(go)})
        process = start(warehouse_dir / "w", "--until-empty")
        until(go.with_suffix(".begun").exists)
        from tensordb_data.embedded import control

        os.kill(control.status(warehouse_dir / "w").mongod, signal.SIGKILL)
        go.touch()
        _, said = process.communicate(timeout=100)
        assert process.returncode == 0, said
        assert job.status == "done" and job["result"] == "waited"


def test_from_the_command_line(mongo_uri, tmp_path):
    def tensordb(*args, status=0):
        done = CliRunner().invoke(app, [*args, "--db", mongo_uri])
        assert done.exit_code == status, done.output
        return done.stdout if status == 0 else done.stderr

    entry = ("--entry", "tests.integration.workload:add", "--args")
    id = tensordb("jobs", "push", "t", *entry, '{"a": 1, "b": 2}', "--tag", "x y").strip()
    later = json.loads(tensordb("jobs", "push", "t", *entry, '{"a": 1}', "--after", id, "--json"))
    assert later["status"] == "waiting" and later["after"] == [{"$oid": id}]
    assert "no worker is alive" in tensordb("jobs", "show", id)
    program = tmp_path / "program.py"
    program.write_text("result = a + 1")
    more = ("--start", "2030-01-31T08:00Z", "--backoff", "0.5", "--time-limit", "60", "--tag", "scripted", "--json")
    pushed = json.loads(tensordb("jobs", "push", "other", "--script", str(program), "--args", '{"a": 1}', *more))
    assert (pushed["script"], pushed["backoff"], pushed["time_limit"]) == ("result = a + 1", 0.5, 60)
    assert pushed["due"] == {"$date": "2030-01-31T08:00:00Z"}
    tensordb("jobs", "cancel", pushed["_id"]["$oid"])
    assert "cannot be read" in tensordb("jobs", "push", "t", "--script", str(tmp_path / "no.py"), status=1)
    assert "--start is a number of seconds" in tensordb("jobs", "push", "t", *entry, "{}", "--start", "soon", status=1)
    assert json.loads(tensordb("jobs", "show", id, "--json"))["explanation"].startswith("ready")
    worker = ["worker", "--allow", ALLOW[0], "--until-empty", "--has", "gpu=0", "--db", mongo_uri]
    subprocess.run([sys.executable, "-m", "tensordb_data.cli.main", *worker], check=True, timeout=100)
    of_t = ("jobs", "list", '{"kind": "t"}')
    shown = [json.loads(line) for line in tensordb(*of_t, "--json").splitlines()]
    assert [job["status"] for job in shown] == ["dead", "done"] and shown[1]["result"] == 3
    assert "done" in tensordb("jobs", "list", '{"tags": "x y"}') and "dead" in tensordb("jobs", "list")
    assert "ready" in tensordb("jobs", "retry", later["_id"]["$oid"])
    assert "cancelled by hand" in tensordb("jobs", "cancel", later["_id"]["$oid"])
    assert "only one that is dead" in tensordb("jobs", "retry", id, status=1)
    assert "--args is not JSON" in tensordb("jobs", "push", "t", *entry, "{a: 1}", status=1)
    assert "--requires is a JSON object" in tensordb("jobs", "push", "t", *entry, "{}", "--requires", "[1]", status=1)
    assert "there is no job 6b05" in tensordb("jobs", "show", "6b05afd5e3eb8e80cc24b60d", status=1)
    assert "'cancelled'" in tensordb("jobs", "list", "--status", "lost", status=2)
    assert "24 hexadecimal digits; found 'x'" in tensordb("jobs", "show", "x", status=1)
    assert "--allow mypkg." in tensordb("worker", status=1)
    assert "such as gpu=1; found 'gpu'" in tensordb("worker", "--allow", "a.", "--has", "gpu", status=1)

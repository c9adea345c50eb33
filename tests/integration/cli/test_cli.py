"""The commands that look at a warehouse: search and logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from tensordb_data.cli.main import app
from tests import warm
from tests.steady.processes import Popen


@pytest.fixture
def tensordb(db, mongo_uri):
    with db.data.writer("ct") as w:
        w.add_many(label=[1, 2], tags=["chest", "2024"])
    with db.logs.run("cnn-1", tags=["cnn"]) as log:
        for step in range(30):
            log.write(step, loss=1 / (1 + step))

    def run(*args):
        command = [sys.executable, "-m", "tensordb_data.cli.main", *args, "--db", mongo_uri]
        return warm.run(command, capture_output=True, text=True, timeout=100)

    return run


def test_search(tensordb):
    done = tensordb("search", "chest", "2024")
    assert done.returncode == 0 and "ct" in done.stdout and "1 found" in done.stdout, done
    (line,) = tensordb("search", "chest", "--json", "--kind", "data").stdout.splitlines()
    found = json.loads(line)
    assert (found["kind"], found["name"], found["tags"]) == ("data", "ct", ["2024", "chest"])
    assert found["query"]["filter"] == {"dataset": "ct", "tags": {"$all": ["2024", "chest"]}}
    done = tensordb("search", "chest", "--kind", "datas")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


def test_logs(tensordb, tmp_path, db, mongo_uri):
    rows = [json.loads(line) for line in tensordb("logs", "tail", "cnn-1", "-n", "3", "--json").stdout.splitlines()]
    assert [row["step"] for row in rows] == [27, 28, 29]
    assert "loss" in tensordb("logs", "tail").stdout
    done = tensordb("logs", "plot", "loss", "--filter", '{"tags": "cnn"}', "--out", str(tmp_path / "loss.png"))
    assert done.returncode == 0 and (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG"), done
    assert "30 rows" in tensordb("logs", "export", str(tmp_path / "cnn.csv")).stdout
    assert len((tmp_path / "cnn.csv").read_text().splitlines()) == 31
    nowhere = str(tmp_path / "no" / "x.csv")
    for bad in (("tail", "cnn-2"), ("plot", "los"), ("plot", "loss", "--filter", "{"), ("export", nowhere),
                ("export", str(tmp_path / "none.csv"), "--filter", '{"run": "none"}')):  # fmt: skip
        done = tensordb("logs", *bad)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr, done
    assert tensordb("logs", "export", "x", "--format", "pickle").returncode == 2


def test_runs(tensordb, db):
    db.params.save({"w": np.ones(2)}, run="cnn-2", step=3, acc=0.5)
    (row,) = map(json.loads, tensordb("runs", "--sort", "-best.acc", "--limit", "1", "--json").stdout.splitlines())
    assert row["name"] == "cnn-2" and row["best"] == {"acc": 0.5} and row["sets"] == 1
    assert "cnn-1" in tensordb("runs").stdout and "no runs" in tensordb("runs", '{"sets": 7}').stdout


def test_logs_as_they_are_written(tensordb, db, mongo_uri):
    command = [sys.executable, "-m", "tensordb_data.cli.main", "logs", "tail", "cnn-1", "-f", "-n", "1", "--json"]
    with Popen([*command, "--db", mongo_uri], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())["step"] == 29  # by now it watches
        with db.logs.run("cnn-1") as log:
            log.write(30, loss=0.5)
        assert json.loads(running.stdout.readline())["step"] == 30
        running.kill()


def test_stored_text_does_not_reach_the_terminal_as_commands_to_it(db, mongo_uri):
    hostile = "\x1b]0;t\x07\x1b[2J\u202ex"
    with db.data.writer("d") as writer:
        writer.add(label=1, text=hostile, tags=[hostile])
    with db.logs.run(hostile, tags=[hostile]) as log:
        log.write(1, note=hostile, **{hostile: 1.0})
    job = db.jobs.push(hostile, entry="a:b", args={"x": hostile}, tags=[hostile])
    db.params.save({"w": np.ones(2)}, run=hostile, step=1, note=hostile)
    db.architectures.save("net", factory="json:loads", tags=[hostile])
    job.cancel(hostile)
    commands = (
        "find data", "find logs", "find jobs", "find params", "find architectures", "logs tail", "jobs list",
        f"jobs show {job.id}", "search x", "params", "find data --json", "logs tail --json", "jobs list --json",
        "search x --json",
    )  # fmt: skip
    for command in commands:
        done = CliRunner().invoke(app, [*command.split(), "--db", mongo_uri])
        assert done.exit_code == 0, (command, done.output)
        assert not {"\x1b", "\x07", "\u202e"} & set(done.output), (command, done.output)
        if "--json" in command:
            assert hostile in _texts(json.loads(done.stdout.splitlines()[0])), command
        elif "architectures" not in command:
            assert "\\x1b]0;t" in done.output, (command, done.output)
    done = CliRunner().invoke(app, ["logs", "plot", hostile + "y", "--db", mongo_uri])
    assert done.exit_code == 1 and "\x1b" not in done.output and "\\x1b" in done.stderr


def _texts(value):
    """All texts in a value, and those of its names."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("words", ["status", "uri", "find data", "jobs list"])
def test_the_warehouse_of_another_user_is_one_line(words, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "/no/config")  # this user has none
    folder = tmp_path / "w"
    folder.mkdir(mode=0o700)
    (folder / "tensordb.json").write_text("{}")
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # whom a mode stops
    else:
        folder.chmod(0o000)
    try:
        done = CliRunner().invoke(app, [*words.split(), "--db", str(folder)])
    finally:
        os.seteuid(user)
        folder.chmod(0o700)
    assert done.exit_code == 1 and done.stdout == "", done
    assert len(done.stderr.splitlines()) == 1 and "belongs to another user" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "words",
    ["find data", "search cat", "stream", "logs tail", "params", "gc", "fsck", "compact d", "jobs list"],
)
def test_what_only_reads_makes_no_warehouse_of_a_mistyped_folder(words, tmp_path):
    done = CliRunner().invoke(app, [*words.split(), "--db", str(tmp_path / "typo")])
    assert done.exit_code == 1 and "there is no warehouse in" in done.stderr, done.output
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_at_the_end_shows_no_traceback():
    script = """
import os, signal, sys
from tensordb_data.cli.main import main
sys.argv = ["tensordb", "--version"]
try:
    main()
except SystemExit:
    os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("tensordb-data ")

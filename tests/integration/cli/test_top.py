"""`tensordb top` on a terminal, in a pipe and for programs."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tensordb_data import TensorDB
from tensordb_data.cli.main import app
from tests.steady.processes import Popen

EVIL = "evil\x1b[2J\x07\u202erun"
COMMAND = [sys.executable, "-m", "tensordb_data.cli.main", "top"]


@pytest.fixture
def busy(db: TensorDB) -> TensorDB:
    with db.data.writer(f"data {EVIL}") as writer:
        writer.add_many(label=[1, 2, 3])
    with db.logs.run(EVIL) as log:
        log.write(5, loss=1.0)
    db.params.save({}, run=f"{EVIL} [bold]", step=3)
    db.jobs.push(EVIL, entry="json:loads")
    return db


def test_once_for_people_and_for_programs(busy: TensorDB, mongo_uri: str) -> None:
    words = ["top", "--once", "--interval", "0.1", "--db", mongo_uri]
    before = {name: busy.database[name].count_documents({}) for name in busy.database.list_collection_names()}
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert re.search(r"^data evil\\x1b\[2J\\x07\\u202erun +3 ", done.output, re.MULTILINE)
    assert "jobs: 1 ready" in done.output and "[bold]" in done.output and "not shown: streams" in done.output
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", done.output)
    done = CliRunner().invoke(app, [*words, "--json"])
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert [run["name"] for run in found["runs"]] == [EVIL] and found["runs"][0]["step"] == 5
    assert found["jobs"]["ready"] == 1 and found["missing"] == {} and found["per_second"]["samples"] == 0
    after = {name: busy.database[name].count_documents({}) for name in busy.database.list_collection_names()}
    assert after == before
    assert CliRunner().invoke(app, [*words, "--interval", "0"]).exit_code == 2


def test_no_warehouse_is_made(tmp_path: Path, mongo_uri: str) -> None:
    done = CliRunner().invoke(app, ["top", "--once", "--db", str(tmp_path / "none")])
    assert done.exit_code == 1 and "there is no warehouse" in done.output and not (tmp_path / "none").exists()
    done = CliRunner().invoke(app, ["top", "--once", "--db", mongo_uri])
    assert done.exit_code == 1 and "there is no warehouse" in done.output


def test_a_pipe_that_was_read_far_enough_is_no_failure(busy: TensorDB, mongo_uri: str) -> None:
    words = [*COMMAND, "--interval", "0.1", "--json", "--db", mongo_uri]
    with Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["project"] == "default"
        process.stdout.close()
        assert process.wait(timeout=60) == 0 and process.stderr.read() == ""


def test_ctrl_c_leaves_a_clean_terminal(busy: TensorDB, mongo_uri: str) -> None:
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    words = [*COMMAND, "--interval", "0.1", "--db", mongo_uri]
    process = subprocess.Popen(words, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown, asked = b"", False
    while select.select([screen], [], [], 60)[0]:
        try:
            some = os.read(screen, 65_536)
        except OSError:  # nobody has the terminal any more
            some = b""
        if not some:
            break
        shown += some
        if not asked and b"not shown: streams" in shown and b"evil\\x1b[2J" in shown:
            process.send_signal(signal.SIGINT)
            asked = True
    os.close(screen)
    assert process.wait(timeout=60) == 0
    assert b"\x1b[?1049h" in shown and b"\x1b[?1049l" in shown[-40:] and b"\x1b[?25h" in shown[-40:]
    assert b"\x1b[2J" not in shown.replace(b"\x1b[2J\x1b[H", b"") and b"evil\\x1b[2J" in shown
    assert b"Traceback" not in shown

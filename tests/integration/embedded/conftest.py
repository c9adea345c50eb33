"""A folder of its own for each test, client processes to kill, and proof that nothing is left running."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tensordb_data.common.system import file_locks
from tests.steady.ports import free_port

CLIENT = """
import json, os, signal, sys
from tensordb_data.mongo.client import open_client
from tensordb_data.mongo.address import parse
client = open_client(parse(sys.argv[1]))
things = client.test.things
print(json.dumps({"pid": os.getpid()}), flush=True)
for line in sys.stdin:
    try:
        print(json.dumps(eval(line)), flush=True)
    except KeyboardInterrupt:
        print(json.dumps("interrupted"), flush=True)
client.close()
"""


class Client:
    """A process that is connected to the server of a folder and evaluates what it is told."""

    def __init__(self, folder: Path, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the client ended with status {self.process.wait()}"
        return json.loads(line)

    def __call__(self, expression: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return self.read()

    def insert(self, number: int) -> None:
        assert self(f"things.insert_one({{'_id': {number}}}).inserted_id") == number

    def count(self) -> int:
        return int(self("things.count_documents({})"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait() == 0


def processes_of(folder: Path) -> list[str]:
    """The command lines of all processes that were started for the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(folder) in command and ("mongod" in command.split(" ")[0] or "supervisor.py" in command):
                found.append(command)
    return found


def wait_ended(folder: Path) -> None:
    """Block until the folder's server has ended, and prove that no process is left."""
    if not (folder / "mongo").exists():
        return
    file_locks.wait_released(folder / "supervisor.lock")
    with open(folder / "mongo" / "mongod.lock", "a") as file:  # a killed one lives for some more milliseconds
        fcntl.flock(file, fcntl.LOCK_EX)
    for entry in processes_of(folder):
        assert "mongod" not in entry.split(" ")[0], entry


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a warehouse; at the end nothing may run for it any more."""
    root = Path(tempfile.mkdtemp(prefix="tdb-"))
    path = root / "w"
    yield path
    wait_ended(path)
    shutil.rmtree(root)


@pytest.fixture
def spawn(folder: Path) -> Iterator[Callable[..., Client]]:
    """Start client processes, each connected when it is returned unless `wait=False`."""
    clients: list[Client] = []

    def start(where: Path | None = None, *, wait: bool = True, env: dict[str, str] | None = None) -> Client:
        client = Client(where or folder, env)
        clients.append(client)
        if wait:
            client.read()
        return client

    yield start
    for client in clients:
        if client.process.poll() is None:
            client.process.send_signal(signal.SIGCONT)
            client.kill()
        for stream in (client.process.stdin, client.process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass


@pytest.fixture(name="free_port")
def _free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    return free_port()


@pytest.fixture
def ended() -> Callable[[Path], None]:
    """Block until the server of a folder has ended, and prove that no process is left."""
    return wait_ended


@pytest.fixture
def running() -> Callable[[Path], list[str]]:
    """The command lines of the processes that serve a folder."""
    return processes_of


@pytest.fixture
def pids(folder: Path) -> Callable[[], tuple[int, int]]:
    """The pids of supervisor and mongod."""

    def read() -> tuple[int, int]:
        state = json.loads((folder / "server.json").read_text())
        return state["supervisor"], state["mongod"]

    return read

"""The server lives exactly as long as somebody uses it, and no death of any process loses what was acknowledged."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tensordb_data.common.system import file_locks
from tensordb_data.embedded import join
from tensordb_data.mongo.address import parse
from tensordb_data.mongo.client import open_client

Spawn = Callable[..., Any]
Ended = Callable[[Path], None]


def test_join_gives_a_primary_with_transactions_and_change_streams(folder: Path) -> None:
    with join(folder) as session, MongoClient[dict[str, Any]](session.uri) as client:
        assert session.folder == folder
        client.db.create_collection("things")
        with client.start_session() as s, client.db.things.watch(max_await_time_ms=10_000) as stream:
            s.with_transaction(lambda s: client.db.things.insert_one({"_id": 1}, session=s))
            assert next(stream)["fullDocument"] == {"_id": 1}


def test_last_client_stops_the_server(folder: Path, spawn: Spawn, ended: Ended, running: Callable[..., Any]) -> None:
    one, two = spawn(), spawn()
    one.insert(1)
    one.leave()
    assert two.count() == 1
    assert len(running(folder)) == 2
    two.leave()
    ended(folder)
    assert not (folder / "server.json").exists()
    assert not (folder / "run").exists()


def test_all_clients_killed(folder: Path, spawn: Spawn, ended: Ended) -> None:
    one, two = spawn(), spawn()
    one.insert(1)
    one.kill()
    two.insert(2)
    two.kill()
    ended(folder)
    assert spawn().count() == 2


def test_interrupt_reaches_one_client_only(spawn: Spawn, pids: Callable[[], tuple[int, int]]) -> None:
    one, two = spawn(), spawn()
    before = pids()
    # The server was started by `one`; a terminal sends Ctrl-C to the whole process group.
    os.killpg(one.process.pid, signal.SIGINT)
    assert one.process.wait() != 0
    two.insert(1)
    assert two.count() == 1
    assert pids() == before


@pytest.mark.parametrize("victim", ["supervisor", "mongod"])
def test_killed_server_comes_back_with_everything(
    victim: str, spawn: Spawn, pids: Callable[[], tuple[int, int]], folder: Path
) -> None:
    one, two = spawn(), spawn()
    for round_ in range(3):
        one.insert(2 * round_)
        supervisor, mongod = pids()
        dying = os.pidfd_open(mongod)
        os.kill(supervisor if victim == "supervisor" else mongod, signal.SIGKILL)
        one.insert(2 * round_ + 1)  # the next operation works, be it of the old server, which may live a little longer
        select.select([dying], [], [])
        os.close(dying)
        assert two.count() == 2 * round_ + 2
        assert pids()[1] != mongod
    assert (folder / "run" / "mongod.sock").exists()


def test_kills_under_load_lose_nothing_acknowledged(spawn: Spawn, pids: Callable[[], tuple[int, int]]) -> None:
    writer, reader = spawn(), spawn()
    done = threading.Event()
    acknowledged: list[int] = []

    def write() -> None:
        number = 0
        while not done.is_set():
            writer.insert(number)
            acknowledged.append(number)
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for round_ in range(4):
            reader.count()
            target = len(acknowledged) + 7 * round_ + 1
            while len(acknowledged) < target:
                assert thread.is_alive()
                reader.count()
            both = pids()
            dying = os.pidfd_open(both[1])
            os.kill(both[round_ % 2], signal.SIGKILL)
            select.select([dying], [], [])  # that of a killed supervisor may answer a little longer
            os.close(dying)
    finally:
        done.set()
        thread.join()
    stored = set(reader("things.distinct('_id')"))
    assert stored >= set(acknowledged)


def test_two_processes_start_at_the_same_instant(spawn: Spawn, running: Callable[..., Any], folder: Path) -> None:
    clients = [spawn(wait=False) for _ in range(4)]
    for client in clients:
        client.read()
    for number, client in enumerate(clients):
        client.insert(number)
    assert clients[0].count() == 4
    assert len(running(folder)) == 2


def test_starts_and_stops_crossing(spawn: Spawn, folder: Path) -> None:
    """A client that comes while the server is being stopped gets a server."""
    for number in range(3):
        client = spawn()
        client.insert(number)
        client.leave()
    assert spawn().count() == 3


def test_close_leaves_nothing_behind(folder: Path, ended: Ended) -> None:
    join(folder).close()
    ended(folder)  # everything that is imported or cached on first use is there
    files, threads = os.listdir("/proc/self/fd"), threading.enumerate()
    for _ in range(2):
        session = join(folder)
        client = open_client(parse(folder))
        client.test.things.find_one()
        client.close()
        session.close()
        session.close()
        ended(folder)
        # Not exactly those: what earlier tests left to the garbage collector may go.
        assert len(os.listdir("/proc/self/fd")) <= len(files)
        assert set(threading.enumerate()) <= set(threads)


def test_fork_has_no_part_in_the_session(folder: Path, ended: Ended) -> None:
    session = join(folder)
    reader, writer = os.pipe()
    release, hold = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hold)
        session.close()  # does nothing here
        with join(folder) as own, MongoClient[dict[str, Any]](own.uri) as client:
            client.test.things.insert_one({"_id": "child"})
        os.write(writer, b"x")
        os.read(release, 1)
        os._exit(0)
    os.read(reader, 1)
    with MongoClient[dict[str, Any]](session.uri) as client:
        assert client.test.things.count_documents({}) == 1
    session.close()
    ended(folder)  # the child still lives, and holds nothing
    os.close(hold)
    assert os.waitpid(child, 0)[1] == 0
    for fd in (reader, writer, release):
        os.close(fd)


def test_forked_child_keeps_a_server_of_its_own(folder: Path) -> None:
    session = join(folder)
    reader, writer = os.pipe()
    release, hold = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(hold)
            own = join(folder)
            os.write(writer, b"x")
            os.read(release, 1)  # the parent has left by now
            with MongoClient[dict[str, Any]](own.uri) as client:
                client.test.things.insert_one({})
            own.close()
            status = 0
        finally:
            os._exit(status)
    os.read(reader, 1)
    session.close()
    assert file_locks.is_held(folder / "supervisor.lock")
    os.close(hold)
    assert os.waitpid(child, 0)[1] == 0
    for fd in (reader, writer, release):
        os.close(fd)


def test_exit_without_close(folder: Path, spawn: Spawn, ended: Ended) -> None:
    client = spawn()
    client.insert(1)
    # An exception that nobody catches: exit handlers run.
    client.process.stdin.write("sys.exit(3)\n")
    client.process.stdin.flush()
    assert client.process.wait() == 3
    ended(folder)


def test_exit_of_a_forked_child_disturbs_nothing(spawn: Spawn, pids: Callable[[], tuple[int, int]]) -> None:
    client, other = spawn(), spawn()
    before = pids()
    assert client("(lambda pid: sys.exit(0) if pid == 0 else os.waitpid(pid, 0)[1])(os.fork())") == 0
    client.insert(1)
    assert other.count() == 1
    assert pids() == before


def test_supervisor_told_to_stop(folder: Path, spawn: Spawn, pids: Callable[[], tuple[int, int]]) -> None:
    client = spawn()
    client.insert(1)
    os.kill(pids()[0], signal.SIGTERM)
    client.insert(2)  # a client is there, so it comes back
    assert client.count() == 2


FEW_FILES = """
import resource, sys
from tensordb_data import TensorDB
from tensordb_data.errors import EmbeddedServerError
for limit in (255, 128, 64, 40):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        TensorDB(sys.argv[1])
    except EmbeddedServerError as error:
        print(error)
"""


def test_few_open_files_are_told_at_once(folder: Path, ended: Ended) -> None:
    done = subprocess.run([sys.executable, "-c", FEW_FILES, str(folder)], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert [line.split("limit here is ")[1].split()[0] for line in lines] == ["255", "128", "64", "40"], done.stderr
    assert all("needs at least 256 open files" in line and "ulimit" in line for line in lines)
    ended(folder)


def test_as_many_open_files_as_are_asked_for_are_enough(folder: Path, ended: Ended) -> None:
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 256)); "
    script += "from tensordb_data import TensorDB; db = TensorDB(sys.argv[1]); w = db.data.writer('d'); w.add(x=1)\n"
    script += "w.close(); print([len(b['x']) for b in db.data.find().stream(5, shuffle=True, passes=1)]); db.close()"
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=100)
    assert done.stdout == "[1]\n", done.stderr
    ended(folder)

"""Folders that were moved, copied or have strange names; and those that cannot be used, with the reason."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.monitoring import ConnectionPoolListener

from tensordb_data.common.system import file_locks
from tensordb_data.embedded import join
from tensordb_data.embedded.binary import find_mongod
from tensordb_data.embedded.client import FolderClient
from tensordb_data.errors import EmbeddedServerError
from tensordb_data.mongo.address import parse
from tensordb_data.mongo.client import open_client

Ended = Callable[[Path], None]


def insert(folder: Path, number: int) -> int:
    """Insert a document; returns how many there are."""
    client = open_client(parse(folder))
    try:
        client.test.things.insert_one({"_id": number})
        return client.test.things.count_documents({})
    finally:
        client.close()


def test_moved_folder_opens(folder: Path, ended: Ended) -> None:
    insert(folder, 1)
    ended(folder)
    moved = folder.with_name("moved")
    folder.rename(moved)
    assert insert(moved, 2) == 2
    ended(moved)
    moved.rename(folder)
    assert insert(folder, 3) == 3


@pytest.mark.parametrize("symlinks", [True, False])
def test_copy_lives_apart(symlinks: bool, folder: Path, ended: Ended) -> None:
    insert(folder, 1)
    ended(folder)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy, symlinks=symlinks)
    with join(folder), join(copy):
        assert insert(folder, 2) == 2
        assert insert(copy, 3) == 2
        assert insert(copy, 4) == 3
    ended(folder)
    ended(copy)


def test_copy_of_a_crashed_folder_ignores_its_state(folder: Path, ended: Ended) -> None:
    """The state that a killed server left names sockets of another folder: a copy must not use them."""
    copy = folder.with_name("copy")
    with join(folder):
        insert(folder, 1)
        state = (folder / "server.json").read_text()
    ended(folder)
    shutil.copytree(folder, copy)
    (copy / "server.json").write_text(state)
    with join(copy) as session:
        assert str(copy) in session.uri.replace("%2F", "/")
    ended(copy)


@pytest.mark.parametrize("name", ["x" * 120, "Ünï cödé, with:colon%20and 'quotes'"])
def test_long_and_strange_paths(name: str, folder: Path, ended: Ended) -> None:
    path = folder / name / "W"
    with join(path):
        run = Path(json.loads((path / "server.json").read_text())["run"])
        assert path not in run.parents
        assert stat.S_IMODE(run.stat().st_mode) == 0o700
        assert insert(path, 1) == 1
        assert insert(path, 2) == 2
    ended(path)
    assert not run.exists()
    assert insert(path, 3) == 3
    ended(path)


def test_private(folder: Path) -> None:
    with join(folder):
        assert stat.S_IMODE((folder / "run").stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "run" / "server.sock").stat().st_mode) == 0o600
        mongod = json.loads((folder / "server.json").read_text())["mongod"]
        sockets = set()
        for path in Path(f"/proc/{mongod}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                sockets.add(os.readlink(path))
        inodes = {name[8:-1] for name in sockets if name.startswith("socket:")}
        for table in ("tcp", "tcp6"):
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            assert not inodes & {line.split()[9] for line in lines}, "mongod has a TCP socket"


def test_relative_folder_and_link_are_the_same_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = folder.with_name("link")
    with join(folder) as session:
        link.symlink_to(folder)
        monkeypatch.chdir(folder.parent)
        for other in ("w", "./link", link):
            with join(other) as same:
                assert same.uri == session.uri


def test_a_file_in_the_way(folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(EmbeddedServerError, match=f"{folder} is a file: a folder was expected"):
        join(folder)
    with pytest.raises(EmbeddedServerError, match="is a file"):
        join(folder / "below")


def test_read_only_folder(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o500)
    immutable = os.geteuid() == 0
    if immutable and subprocess.run(["chattr", "+i", str(folder)], capture_output=True).returncode:
        pytest.skip("root may write everywhere, and this file system has no immutable folders")
    try:
        with pytest.raises(EmbeddedServerError, match="is not writable"):
            join(folder)
    finally:
        if immutable:
            subprocess.run(["chattr", "-i", str(folder)], check=True)
        folder.chmod(0o700)


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 96 MB."""
    folder.parent.joinpath("disk").mkdir()
    disk = folder.parent / "disk"
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disk(small_disk: Path, ended: Ended) -> None:
    folder, ballast = small_disk / "w", small_disk / "ballast"
    client = open_client(parse(folder))
    client.test.things.insert_one({"_id": 0})
    with pytest.raises(EmbeddedServerError, match=f"the disk that holds {folder} is full: free some space"):
        for number in range(1, 1000):
            client.test.things.insert_one({"_id": number, "x": os.urandom(2_000_000)})
    client.close()
    ended(folder)
    ballast.write_bytes(b"")
    with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    for path in (folder, small_disk / "new"):
        with pytest.raises(EmbeddedServerError, match=r"full|No space left|not writable"):
            join(path)
    subprocess.run(["mount", "-o", "remount,size=512m", str(small_disk)], check=True)
    client = open_client(parse(folder))
    assert client.test.things.find_one({"_id": 0}) == {"_id": 0}
    client.close()
    ended(folder)


def test_incompatible_version(folder: Path, ended: Ended) -> None:
    insert(folder, 1)
    ended(folder)
    manifest = folder / "tensordb.json"
    found = json.loads(manifest.read_text())
    version = found["mongod"]
    manifest.write_text(json.dumps(found | {"release": "4.4"}))
    with pytest.raises(EmbeddedServerError, match=rf"written by MongoDB 4\.4, and .* is {version}.*TENSORDB_MONGOD"):
        join(folder)
    manifest.write_text(json.dumps(found | {"format": 99}))
    with pytest.raises(EmbeddedServerError, match="has format 99"):
        join(folder)


def test_another_mongod_uses_the_data(folder: Path) -> None:
    (folder / "mongo").mkdir(parents=True)
    socket = str(folder / "own.sock")
    mongod = subprocess.Popen(
        [str(find_mongod()), "--dbpath", str(folder / "mongo"), "--bind_ip", socket, "--nounixsocket"],
        stdout=subprocess.PIPE,
    )
    try:
        assert mongod.stdout is not None
        for line in mongod.stdout:
            if b"Waiting for connections" in line:
                break
        with pytest.raises(EmbeddedServerError, match="in use by another mongod"):
            join(folder)
    finally:
        mongod.kill()
        mongod.communicate()


VERSION = "import sys\nif '--version' in sys.argv:\n    print('db version v6.0.5'); sys.exit()\n"


def mongod_that(folder: Path, script: str) -> str:
    """A program that stands for a mongod which cannot run here."""
    path = folder.with_name("mongod")
    path.write_text(f"#!{sys.executable}\n{VERSION}{script}")
    path.chmod(0o700)
    return str(path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("sys.exit('mongod: error while loading shared libraries: libcurl.so.4: cannot open')", "library libcurl.so.4"),
        ('print(\'{"s":"F","msg":"Boom","attr":{"x":1}}\'); sys.exit(14)', r"status 14; .*Boom .*\"x\": 1"),
        ("import os; os.kill(os.getpid(), 4)", "AVX"),
        ("sys.exit(62)", "incompatible MongoDB version"),
        ("sys.exit('Permission denied')", "may not write"),
    ],
)
def test_mongod_that_does_not_start(script: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORDB_MONGOD", mongod_that(folder, script))
    with pytest.raises(EmbeddedServerError, match=message) as caught:
        join(folder)
    assert "\n" not in str(caught.value)


def kill(pid: int) -> None:
    """kill -9; until it has ended, it may still answer."""
    os.kill(pid, signal.SIGKILL)
    gone(pid)


def gone(pid: int) -> None:
    """Block until a process that is not our child has ended."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        select.select([fd], [], [])
        os.close(fd)


def test_folder_removed_while_in_use(folder: Path, pids: Callable[[], tuple[int, int]]) -> None:
    """An error with a reason, nothing left running, and a new folder of the same name has a new server."""
    client: Any = open_client(parse(folder))
    supervisor, mongod = pids()
    folder.rename(folder.with_name("gone"))
    kill(mongod)
    with pytest.raises(EmbeddedServerError, match=f"cannot start the server of {folder} again"):
        client.test.things.insert_one({})
    gone(supervisor)
    assert insert(folder, 1) == 1
    client.close()


def test_a_death_that_the_driver_learns_late(
    folder: Path, pids: Callable[[], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused connection comes before the news that the server is dead. The operation waits for that."""
    refused = []

    class Refused(ConnectionPoolListener):  # type: ignore[misc]
        def connection_closed(self, event: Any) -> None:
            refused.append(event)
            if len(refused) == 3:
                os.kill(mongod, signal.SIGKILL)

        def nothing(self, event: Any) -> None: ...

        pool_created = pool_ready = pool_cleared = pool_closed = connection_created = connection_ready = nothing
        connection_check_out_started = connection_check_out_failed = nothing
        connection_checked_out = connection_checked_in = nothing

    make = FolderClient.__init__
    monkeypatch.setattr(FolderClient, "__init__", lambda *args, **kw: make(*args, event_listeners=[Refused()], **kw))
    client: Any = open_client(parse(folder))
    assert client.is_primary  # the driver knows the server, and has no connection for operations
    supervisor, mongod = pids()
    folder.rename(folder.with_name("gone"))
    with pytest.raises(EmbeddedServerError, match="cannot start the server"):
        client.test.things.insert_one({})
    assert len(refused) >= 3
    client.close()
    gone(supervisor)


def test_a_client_closes_though_its_server_is_gone_for_good(folder: Path, pids: Callable[[], tuple[int, int]]) -> None:
    client: Any = open_client(parse(folder))
    with client.start_session() as one, client.start_session() as other:
        for session in (one, other):
            client.test.things.insert_one({}, session=session)
    supervisor, mongod = pids()
    folder.rename(folder.with_name("gone"))
    kill(mongod)
    with pytest.raises(EmbeddedServerError, match="cannot start the server"):
        client.test.things.insert_one({})
    client.close()  # it would tell the server which sessions end
    gone(supervisor)


def test_folder_removed_and_made_anew(folder: Path, pids: Callable[[], tuple[int, int]]) -> None:
    """The old server neither writes into the new folder nor takes its socket away."""
    client: Any = open_client(parse(folder))
    supervisor, _ = pids()
    folder.rename(folder.with_name("gone"))
    with join(folder):
        assert insert(folder, 1) == 1
        client.close()
        gone(supervisor)
        assert insert(folder, 2) == 2


def test_moved_folder_is_opened_before_its_server_has_ended(
    folder: Path, pids: Callable[[], tuple[int, int]], ended: Ended
) -> None:
    session = join(folder)
    supervisor = pids()[0]
    os.kill(supervisor, signal.SIGSTOP)
    session.close()
    moved = folder.with_name("moved")
    folder.rename(moved)
    numbers: list[int] = []
    opener = threading.Thread(target=lambda: numbers.append(insert(moved, 1)))
    opener.start()
    while not file_locks.is_held(moved / "start.lock") and opener.is_alive():
        time.sleep(0.01)
    os.kill(supervisor, signal.SIGCONT)
    opener.join()
    assert numbers == [1]
    ended(moved)
    moved.rename(folder)


def test_folder_moved_while_in_use(folder: Path, pids: Callable[[], tuple[int, int]], ended: Ended) -> None:
    client: Any = open_client(parse(folder))
    client.test.things.insert_one({"_id": 1})
    supervisor, _ = pids()
    moved = folder.with_name("moved")
    folder.rename(moved)
    client.test.things.insert_one({"_id": 2})
    with pytest.raises(EmbeddedServerError, match=f"{moved} was moved from {folder} while its server ran"):
        join(moved)
    client.close()
    gone(supervisor)
    assert insert(moved, 3) == 3
    ended(moved)

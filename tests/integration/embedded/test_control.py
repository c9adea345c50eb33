"""`tensordb up`, `down`, `uri` and `status`."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from typer.testing import CliRunner, Result

from tensordb_data.cli.server import register
from tensordb_data.common.system import file_locks
from tensordb_data.embedded import control, join
from tensordb_data.embedded.binary import known_holes
from tensordb_data.errors import EmbeddedServerError
from tensordb_data.mongo.address import parse
from tensordb_data.mongo.client import open_client

Ended = Callable[[Path], None]
Spawn = Callable[..., Any]


@pytest.fixture
def run(folder: Path) -> Callable[..., Result]:
    """Run a command on the folder."""
    app = typer.Typer()
    register(app)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--db", str(folder)])

    return invoke


def test_up_keeps_it_running_until_down(run: Callable[..., Result], folder: Path, spawn: Spawn) -> None:
    assert run("status").exit_code == 1
    assert not folder.exists()  # asking makes nothing
    done = run("up")
    assert done.exit_code == 0, done.output
    state = json.loads(run("status", "--json").output)
    assert (state["running"], state["kept"], state["port"], state["clients"]) == (True, True, None, [])
    client = spawn()
    client.insert(1)
    assert json.loads(run("status", "--json").output)["clients"] == [client.process.pid]
    client.leave()
    again = json.loads(run("status", "--json").output)
    assert again["mongod"] == state["mongod"]
    with MongoClient[dict[str, Any]](run("uri").output.strip()) as other:
        assert other.test.things.count_documents({}) == 1
    assert run("up").exit_code == 0
    done = run("down")
    assert (done.exit_code, "has ended" in done.output) == (0, True), done.output
    assert not file_locks.is_held(folder / "supervisor.lock")
    assert not (folder / "run").exists()
    assert "was not running" in run("down").output
    done = run("uri")
    assert (done.exit_code, "tensordb up" in done.output) == (1, True)


def test_down_says_who_is_there(run: Callable[..., Result], spawn: Spawn, ended: Ended, folder: Path) -> None:
    assert run("up").exit_code == 0
    one, two = spawn(), spawn()
    done = run("down")
    assert done.exit_code == 0
    assert "2 processes still connected" in done.output
    assert str(one.process.pid) in done.output
    two.insert(1)
    one.leave()
    two.kill()
    ended(folder)


def test_kept_server_outlives_kills(
    run: Callable[..., Result], pids: Callable[[], tuple[int, int]], folder: Path, spawn: Spawn
) -> None:
    client = spawn()
    assert run("up").exit_code == 0
    both = pids()
    dying = [os.pidfd_open(pid) for pid in both]
    os.kill(both[0], signal.SIGKILL)
    for fd in dying:  # until both have ended, the server may answer, and need not come back
        select.select([fd], [], [])
        os.close(fd)
    client.insert(1)
    client.leave()
    assert json.loads(run("status", "--json").output)["kept"]
    assert run("down").exit_code == 0


def test_port_has_credentials(run: Callable[..., Result], folder: Path, free_port: int, spawn: Spawn) -> None:
    spawned = spawn()
    spawned.insert(1)
    done = run("up", "--port", str(free_port))
    assert done.exit_code == 1
    assert f"1 other process is (pid {spawned.process.pid})" in done.output.replace("\n", " ")
    spawned.leave()
    done = run("up", "--port", str(free_port))
    assert done.exit_code == 0, done.output
    version = control.status(folder).version
    assert version is not None and (known_holes(version) or "") in done.output.replace("\n", " ")
    secret = json.loads((folder / "credentials.json").read_text())["password"]
    for name in ("credentials.json", "keyfile"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    for command in (["status"], ["status", "--json"], ["up"], ["up", "--port", str(free_port)]):
        assert secret not in run(*command).output
    assert secret not in Path(f"/proc/{control.status(folder).mongod}/cmdline").read_text()
    assert secret not in (folder / "mongod.log").read_text()

    uri = run("uri").output.strip()
    assert uri.startswith("mongodb://tensordb:") and f"@127.0.0.1:{free_port}/" in uri
    with MongoClient[dict[str, Any]](uri) as tool:
        assert tool.test.things.count_documents({}) == 1
    with MongoClient[dict[str, Any]](f"mongodb://127.0.0.1:{free_port}/?directConnection=true") as stranger:
        offered = {"hello": 1, "compression": ["zlib", "snappy", "zstd"]}
        assert not stranger.admin.command(offered).get("compression")
        with pytest.raises(OperationFailure, match="requires authentication"):
            stranger.test.things.find_one()
    client = spawn()  # joins over the socket, with the credentials
    client.insert(2)
    with join(folder) as session:
        assert secret not in repr(session)
        with pytest.raises(EmbeddedServerError, match="other process"):
            control.up(folder, free_port + 1)
        os.kill(json.loads((folder / "server.json").read_text())["supervisor"], signal.SIGKILL)
        client.insert(3)  # it comes back as it was
        with MongoClient[dict[str, Any]](session.uri) as own:
            assert own.test.things.count_documents({}) == 3
    client.leave()
    with MongoClient[dict[str, Any]](uri) as tool:
        assert tool.test.things.count_documents({}) == 3
    assert run("down").exit_code == 0

    client = spawn()  # without `up`, the socket alone protects it
    assert client.count() == 3
    assert control.status(folder).port is None
    client.leave()
    assert run("up", "--port", str(free_port)).exit_code == 0
    assert run("uri").output.strip() == uri
    assert run("down").exit_code == 0


def test_lost_credentials_are_made_anew(folder: Path, free_port: int, ended: Ended) -> None:
    control.up(folder, free_port)
    (folder / "credentials.json").unlink()
    with pytest.raises(EmbeddedServerError, match="that file is gone"):
        join(folder)
    assert control.down(folder) == ()
    control.up(folder, free_port)
    with MongoClient[dict[str, Any]](control.uri(folder)) as client:
        client.test.things.insert_one({})
    control.down(folder)
    ended(folder)


def test_port_that_is_taken(run: Callable[..., Result], folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run("up", "--port", str(port))
        assert done.exit_code == 1
        assert f"port {port} on 127.0.0.1 is taken" in done.output.replace("\n", " ")
        client = open_client(parse(folder))  # the folder itself is none the worse
        client.test.things.insert_one({})
        client.close()


def test_moved_while_kept_is_forgotten(folder: Path, free_port: int, ended: Ended) -> None:
    """`up` holds for the folder that it was said of: a copy or a moved one starts on its socket alone."""
    control.up(folder, free_port)
    keep = (folder / "keep.json").read_text()
    control.down(folder)
    moved = folder.with_name("moved")
    folder.rename(moved)
    (moved / "keep.json").write_text(keep)
    with join(moved):
        assert control.status(moved).port is None
        assert not control.status(moved).kept
    ended(moved)
    moved.rename(folder)


def test_mistakes_in_the_command_line() -> None:
    app = typer.Typer()
    register(app)
    for line in ("up", "up --db mongodb://u:secret@h/", "up --db w --port 0", "status --db s3://x"):
        done = CliRunner().invoke(app, line.split(), env={"TENSORDB": ""})
        assert done.exit_code == 2, done.output
        assert "secret" not in done.output
    for command in ("up", "down", "uri", "status"):
        done = CliRunner().invoke(app, [command, "--help"])
        assert done.exit_code == 0
        assert "--db" in done.output

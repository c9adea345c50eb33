"""Keep a folder's server running without clients, open it on TCP, and say how it is."""

from __future__ import annotations

import base64
import os
import secrets
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pymongo import MongoClient
from pymongo.errors import OperationFailure

from tensordb_data.common.system import file_locks
from tensordb_data.embedded.paths import Layout, locate, read_json, socket_uri, write_json
from tensordb_data.embedded.session import join
from tensordb_data.embedded.start import credentials
from tensordb_data.errors import EmbeddedServerError

USER = "tensordb"
USER_EXISTS = 51003


@dataclass(frozen=True)
class Status:
    """How the server of a folder is."""

    folder: Path
    running: bool
    kept: bool
    """Whether it runs on without clients, by `tensordb up`."""
    port: int | None
    """The port on 127.0.0.1, when opened on TCP."""
    version: str | None
    """Version of mongod."""
    clients: tuple[int, ...]
    """The processes that are connected, by pid."""
    mongod: int | None
    """The pid of mongod."""
    error: str | None
    """Why it ended, when it did not end well."""


def status(folder: str | os.PathLike[str]) -> Status:
    """How the server of `folder` is. Starts nothing and makes nothing."""
    layout = locate(folder)
    running = layout.supervisor_lock.exists() and file_locks.is_held(layout.supervisor_lock)
    state = (layout.state() if layout.folder.is_dir() else None) or {}
    return Status(
        folder=layout.folder,
        running=running,
        kept=running and layout.kept() is not None,
        port=state.get("port") if running else None,
        version=state.get("version") or (read_json(layout.manifest) or {}).get("mongod"),
        clients=tuple(sorted(set(file_locks.holders(layout.server_lock)))) if running else (),
        mongod=state.get("mongod") if running else None,
        error=state.get("error"),
    )


def up(folder: str | os.PathLike[str], port: int | None = None) -> None:
    """Start the server of `folder` and keep it running without clients, until `down` or the machine's end.

    Args:
        folder: The warehouse folder; made when it does not exist.
        port: Listen on this port of 127.0.0.1 as well, for tools that cannot use a Unix socket; from then on the server
            asks for the credentials that `uri` shows. None leaves a port as it is.

    Raises:
        EmbeddedServerError: It cannot start, the port is taken, or other processes are connected and the port changes.
    """
    layout = locate(folder)
    if port is not None:
        layout.prepare()
        _open_port(layout, port)
    with join(layout.folder):
        with file_locks.exclusive(layout.start_lock):
            _keep(layout, (layout.state() or {}).get("port"))


def _open_port(layout: Layout, port: int) -> None:
    """Stop the server unless it listens on `port` already, and leave word that it must when it starts."""
    with file_locks.exclusive(layout.start_lock):
        if _port_is_open(layout, port):
            return
        _refuse_clients(layout, port)
    with join(layout.folder) as session:
        _make_user(layout, session.uri)
    with file_locks.exclusive(layout.start_lock):
        if _port_is_open(layout, port):
            return
        _refuse_clients(layout, port)
        _stop(layout)
        _keep(layout, port)


def _port_is_open(layout: Layout, port: int) -> bool:
    return file_locks.is_held(layout.supervisor_lock) and (layout.state() or {}).get("port") == port


def _refuse_clients(layout: Layout, port: int) -> None:
    clients = file_locks.holders(layout.server_lock)
    if clients:
        raise EmbeddedServerError(
            f"opening port {port} restarts the server of {layout.folder}, which {_processes(clients)} using: close "
            "what uses it first"
        )


def _processes(pids: list[int]) -> str:
    several = sorted(set(pids))
    number = "1 other process is" if len(several) == 1 else f"{len(several)} other processes are"
    return f"{number} (pid {', '.join(map(str, several))})"


def _keep(layout: Layout, port: int | None) -> None:
    write_json(layout.keep, {"identity": layout.identity(), "port": port})


def _make_user(layout: Layout, uri: str) -> None:
    """Make the one user of the folder, with a password that nobody chose, and the key that makes mongod ask for it."""
    found = read_json(layout.credentials) or {"user": USER, "password": secrets.token_urlsafe(24)}
    user, password = str(found["user"]), str(found["password"])
    with MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=30_000) as client:
        try:
            client.admin.command("createUser", user, pwd=password, roles=["root"])
        except OperationFailure as error:
            if error.code != USER_EXISTS:
                raise
            client.admin.command("updateUser", user, pwd=password)
    write_json(layout.credentials, {"user": user, "password": password})
    if not layout.keyfile.exists():
        fd = os.open(layout.keyfile, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(fd, "wb") as file:
            file.write(base64.b64encode(secrets.token_bytes(700)))


def down(folder: str | os.PathLike[str]) -> tuple[int, ...]:
    """No longer keep the server running without clients.

    Returns:
        The processes that still use it, by pid: it ends with the last of them. When there are none, it has ended.
    """
    layout = locate(folder)
    if not layout.supervisor_lock.exists():
        return ()
    with file_locks.exclusive(layout.start_lock):
        layout.keep.unlink(missing_ok=True)
        if not file_locks.is_held(layout.supervisor_lock):
            return ()
        clients = file_locks.holders(layout.server_lock)
        if clients:
            _signal(layout, signal.SIGUSR1)
            return tuple(sorted(set(clients)))
        _stop(layout)
    return ()


def _stop(layout: Layout) -> None:
    """Stop the server, and wait until it has ended. The caller holds start.lock, so that nobody joins meanwhile."""
    if file_locks.is_held(layout.supervisor_lock):
        _signal(layout, signal.SIGTERM)
        file_locks.wait_released(layout.supervisor_lock)


def _signal(layout: Layout, number: signal.Signals) -> None:
    pid = (layout.state() or {}).get("supervisor")
    try:
        # One that is ending has taken its state away, or is a process without memory by now.
        if pid is None or not (command := Path(f"/proc/{pid}/cmdline").read_bytes()):
            return
        if b"supervisor.py" not in command:
            raise EmbeddedServerError(f"the server of {layout.folder} is of another machine or container: do it there")
        os.kill(int(pid), number)
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has just ended
    except PermissionError:
        raise EmbeddedServerError(f"the server of {layout.folder} is another user's (pid {pid}): ask them") from None


def uri(folder: str | os.PathLike[str]) -> str:
    """The address for another tool: on TCP with the password when the port is open, else the Unix socket.

    Raises:
        EmbeddedServerError: The server does not run.
    """
    layout = locate(folder)
    now = status(folder)
    state = layout.state() if now.running else None
    if not state:
        raise EmbeddedServerError(f"the server of {layout.folder} is not running: start it with `tensordb up`")
    login = credentials(layout, state)
    if login is None:
        return socket_uri(layout.socket(str(state["run"])), None)
    user, password = quote(login["user"], safe=""), quote(login["password"], safe="")
    return f"mongodb://{user}:{password}@127.0.0.1:{state['port']}/?directConnection=true"

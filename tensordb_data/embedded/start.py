"""Bring up the server of a folder: spawn its supervisor, make its replica set, and wait until it takes writes."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, NotPrimaryError, OperationFailure

from tensordb_data.common.system import file_locks
from tensordb_data.common.system.machine import memory
from tensordb_data.common.system.modules import optional
from tensordb_data.embedded.binary import check_compatible, find_mongod, mongod_version, release
from tensordb_data.embedded.paths import FORMAT, Layout, read_json, socket_uri, write_json
from tensordb_data.errors import EmbeddedServerError

START_SECONDS = 300.0  # recovery after a crash replays the journal, which may take minutes
OPEN_FILES = 256  # the server of a new warehouse has 165 open
REPLICA_SET = "tensordb"
ALREADY_INITIALIZED = 23
SUPERVISOR = os.path.abspath(Path(__file__).with_name("supervisor.py"))


def bring_up(layout: Layout, mongod: Path | None = None) -> dict[str, Any]:
    """Start the folder's server unless it runs; returns its state.

    The caller holds start.lock and a share of server.lock. With `mongod`, that program is started, if one has to be.
    """
    started = time.monotonic()
    while True:
        if not file_locks.is_held(layout.supervisor_lock):
            spawn(layout, mongod)
        state = layout.state()
        if state is None:
            _refuse_foreign(layout, waited=time.monotonic() - started)
        elif take_writes(layout, state):
            _write_manifest(layout, str(state["version"]))
            return state
        if time.monotonic() - started > START_SECONDS:
            raise EmbeddedServerError(f"no writes on {layout.folder} after {START_SECONDS:.0f} s; see {layout.log}")
        time.sleep(0.05)  # its supervisor is starting mongod again, or about to end


def wait_for_moved(layout: Layout) -> None:
    """Give the server of a folder that was moved time to end: a share of server.lock would keep it.

    The caller holds start.lock, so that nobody starts another.
    """
    deadline = time.monotonic() + 5
    while (
        time.monotonic() < deadline
        and layout.state() is None
        and (layout.folder / "server.json").exists()
        and file_locks.is_held(layout.supervisor_lock)
    ):
        time.sleep(0.02)


def _refuse_foreign(layout: Layout, waited: float) -> None:
    """Say who serves the folder when it is not for us; a supervisor has a moment to write its state."""
    found = read_json(layout.folder / "server.json")
    if waited < 5 or not found or not file_locks.is_held(layout.supervisor_lock):
        return
    was, here = found["identity"], layout.identity()
    if was.get("boot") != here["boot"]:
        raise EmbeddedServerError(
            f"{layout.folder} is being served by another machine or container ({found.get('host')}): use it there, or "
            "give both a MongoDB with an address (mongodb://…)"
        )
    raise EmbeddedServerError(
        f"{layout.folder} was moved from {was.get('path')} while its server ran: close the programs that use it, then "
        "connect again"
    )


def spawn(layout: Layout, mongod: Path | None = None) -> None:
    """Start the supervisor and wait until its mongod listens.

    Raises:
        EmbeddedServerError: With the reason that mongod gave, in one line; or it may open too few files.
    """
    _check_open_files(layout)
    manifest = read_json(layout.manifest)
    mongod = mongod or find_mongod(str(manifest["release"]) if manifest else None)
    version = mongod_version(mongod)
    if manifest:
        check_compatible(layout.folder, str(manifest["release"]), mongod, version)
    kept = layout.kept() or {}
    port = kept.get("port")
    run = layout.choose_run()
    config = {
        "folder": str(layout.folder),
        "run": run,
        "identity": layout.identity(),
        "host": platform.node(),
        "version": version,
        "port": port,
        "command": _command(layout, mongod, run, port),
    }
    answer: dict[str, Any] = {}
    for _ in range(5):
        answer = _run_supervisor(config)
        if answer:  # else it was killed before it could say anything
            break
    if not answer.get("ok") and not answer.get("busy"):
        if port is not None:
            layout.keep.unlink(missing_ok=True)  # or nobody could open the folder until the port is free
        reason = answer.get("error") or f"the supervisor of {layout.folder} ended; see {layout.log}"
        raise EmbeddedServerError(str(reason))


def _check_open_files(layout: Layout) -> None:
    """Refuse a limit with which mongod would end, or hang, at some later file. The supervisor takes the hard limit."""
    resource = optional("resource")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        raise EmbeddedServerError(
            f"the server of {layout.folder} needs at least {OPEN_FILES} open files, and the limit here is {hard}"
            " (ulimit -Hn): raise it, to 4096 or more, where this program is started"
        )


def _run_supervisor(config: dict[str, Any]) -> dict[str, Any]:
    """Run the supervisor in a session of its own; returns its one line of JSON."""
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable or "python3", "-I", "-S", SUPERVISOR, json.dumps(config | {"ready": writer})],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=(writer,), start_new_session=True, cwd="/",
        )  # fmt: skip
        os.close(writer)
        writer = -1
        process.wait()  # it forks at once, so that init is the supervisor's parent
        with open(reader, "rb", closefd=False) as file:
            line = file.readline()
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    with contextlib.suppress(ValueError):
        answer = json.loads(line)
        if isinstance(answer, dict):
            return answer
    return {}


def _command(layout: Layout, mongod: Path, run: str, port: int | None) -> list[str]:
    gigabytes = (memory() or 0) / 2**30
    socket = os.path.join(run, "server.sock")
    command = [
        str(mongod),
        # Relative to its working directory, the folder: when that is removed and made anew, the old server cannot write
        # into the new one.
        *("--dbpath", layout.mongo.name),
        *("--bind_ip", socket if port is None else f"{socket},127.0.0.1"),
        *("--port", str(port or 27017)),  # without an address to bind to, no port is opened
        *("--nounixsocket", "--filePermissions", "0600"),
        *("--replSet", REPLICA_SET, "--oplogSize", "512"),
        *("--wiredTigerCacheSizeGB", f"{min(2.0, max(0.25, gigabytes / 8)):.2f}"),
        # Else each folder starts with 300 MB of empty journal.
        *("--wiredTigerEngineConfigString", "log=(file_max=16MB,prealloc=false)"),
        *("--noscripting", "--quiet"),
        # Nobody gains by it on one machine, and zlib had a hole that needs no password.
        *("--networkMessageCompressors", "disabled"),
        *("--setParameter", "diagnosticDataCollectionEnabled=false"),
        *("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=0"),
        # What a killed writer left open holds up the writes of others until it ends.
        *("--setParameter", "transactionLifetimeLimitSeconds=15"),
    ]
    return [*command, "--keyFile", str(layout.keyfile)] if port is not None else command


def credentials(layout: Layout, state: dict[str, Any]) -> dict[str, str] | None:
    """User and password for the running server, or None when it asks for none.

    Raises:
        EmbeddedServerError: It asks for some, and their file is gone.
    """
    if state.get("port") is None:
        return None
    found = read_json(layout.credentials)
    if not found:
        raise EmbeddedServerError(
            f"the server of {layout.folder} asks for the credentials that were in {layout.credentials}, and that file "
            "is gone: run `tensordb down`, then `tensordb up --port N`, which makes new ones"
        )
    return {"user": str(found["user"]), "password": str(found["password"])}


def take_writes(layout: Layout, state: dict[str, Any]) -> bool:
    """Whether the server takes writes, after making or repairing its replica set. False when it does not answer."""
    member = Path(str(state["run"])) / "server.sock"
    uri = socket_uri(member, credentials(layout, state))
    with MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=1000) as client:
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                hello = client.admin.command("hello")
                if hello.get("isWritablePrimary"):
                    _publish(layout, state)
                    return True
                if "setName" not in hello and hello.get("isreplicaset"):
                    _make_member(client, str(member))
                time.sleep(0.01)
        except (ConnectionFailure, NotPrimaryError):
            pass
    return False


def _make_member(client: MongoClient[dict[str, Any]], socket: str) -> None:
    """Make the server the one member of its replica set.

    A folder that was moved or copied has a set whose member has the old path, so nobody may change it: hence `force`.
    """
    members = [{"_id": 0, "host": socket}]
    try:
        client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": members})
    except OperationFailure as error:
        if error.code != ALREADY_INITIALIZED:
            raise
        config = client.admin.command("replSetGetConfig")["config"]
        if config["members"][0]["host"] != socket:
            config |= {"members": members, "version": config["version"] + 1}
            client.admin.command("replSetReconfig", config, force=True)


def _publish(layout: Layout, state: dict[str, Any]) -> None:
    """The supervisor does this on mongod's word; a later mongod may word it differently."""
    with contextlib.suppress(FileExistsError):
        layout.socket(str(state["run"])).symlink_to("server.sock")


def note_release(layout: Layout, version: str, release: str) -> None:
    """Record who writes the folder, and the release whose file format it has."""
    write_json(layout.manifest, {"format": FORMAT, "mongod": version, "release": release})


def _write_manifest(layout: Layout, version: str) -> None:
    """Record who writes the folder. The release stays that of the first server: its file format is not upgraded."""
    found = read_json(layout.manifest)
    if not found or found.get("mongod") != version:
        first = found["release"] if found else release(version)
        note_release(layout, version, str(first))

"""Servers of a test's own: with the limits that it asks for, killed, stopped and started again as it likes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pymongo

from tensordb_data.embedded.binary import find_mongod
from tests.steady.ports import free_port


class Mongod:
    """A replica set of one on a port of 127.0.0.1."""

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        self.folder, self.options = folder, options
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        """Under which clients reach it; another one if there is something between."""
        self.uri = f"mongodb://127.0.0.1:{self.port}/tdb?replicaSet=rs"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether it was started, and not killed since."""
        return self._process is not None

    def launch(self) -> None:
        """Start it, and return at once."""
        (self.folder / "db").mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [
                str(find_mongod()), "--dbpath", str(self.folder / "db"), "--bind_ip", "127.0.0.1",
                "--port", str(self.port), "--replSet", "rs", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25",
                *self.options,
            ],
            stdout=(self.folder / "log").open("ab"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def start(self) -> None:
        """Start it, and return once it takes writes."""
        self.launch()
        with pymongo.MongoClient(f"mongodb://127.0.0.1:{self.port}", directConnection=True) as client:
            with contextlib.suppress(pymongo.errors.OperationFailure):  # it has been one before
                member = {"_id": 0, "host": self.host}
                client.admin.command("replSetInitiate", {"_id": "rs", "members": [member]})
            while not client.admin.command("hello")["isWritablePrimary"]:
                time.sleep(0.02)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def send(self, number: signal.Signals) -> None:
        """SIGSTOP: it holds its connections and answers nobody, until SIGCONT."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGSTOP:  # until all of its threads have stopped, it may answer
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def await_secondary(self) -> None:
        """Return once it follows a primary."""
        while not self.says("secondary"):
            time.sleep(0.05)

    def says(self, role: str) -> bool:
        """Whether it says that it has a role. One that undoes its last writes closes its connections first."""
        try:
            return bool(self.ask("hello")[role])
        except pymongo.errors.AutoReconnect:
            assert self._process is not None and self._process.poll() is None, "it has ended by itself"
            return False

    def ask(self, command: str, value: Any = 1, **fields: Any) -> dict[str, Any]:
        """What this member itself answers."""
        address = f"mongodb://127.0.0.1:{self.port}"
        with pymongo.MongoClient(address, directConnection=True) as client:
            return client.admin.command(command, value, **fields)


class ReplicaSet:
    """Three members, of which each can lead. They elect a new primary about a second after the old one is gone."""

    _SETTINGS: ClassVar = {"electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 300}

    def __init__(self, folder: Path) -> None:
        self.members = []
        for i in range(3):
            (folder / str(i)).mkdir()
            self.members.append(Mongod(folder / str(i)))
        hosts = ",".join(f"127.0.0.1:{member.port}" for member in self.members)
        self.uri = f"mongodb://{hosts}/tdb?replicaSet=rs&heartbeatFrequencyMS=500&connectTimeoutMS=1000"

    def start(self) -> None:
        """Start all, and return once there is a primary, and the others follow it."""
        for member in self.members:
            member.launch()
        for member in self.members:
            member.ask("ping")  # one that is not there yet would be no member
        named = [{"_id": i, "host": f"127.0.0.1:{member.port}"} for i, member in enumerate(self.members)]
        self.members[0].ask("replSetInitiate", {"_id": "rs", "members": named, "settings": self._SETTINGS})
        leader = self.primary()
        for member in self.members:
            if member is not leader:
                member.await_secondary()

    def primary(self, besides: Mongod | None = None) -> Mongod:
        """The member that takes writes, once there is one; not one that may still believe that it does."""
        while True:
            for member in self.members:
                if member is not besides and member.runs and member.says("isWritablePrimary"):
                    return member
            time.sleep(0.05)

    def forbid_elections(self) -> None:
        """From now on a primary stays one though it hears of no other, and none is elected but by `elect`."""
        config = self.primary().ask("replSetGetConfig")["config"]
        config["settings"]["electionTimeoutMillis"] = 3_600_000
        self.primary().ask("replSetReconfig", config | {"version": config["version"] + 1})

    def elect(self, member: Mongod) -> None:
        """Make a member primary, as soon as it can be."""
        while not member.says("isWritablePrimary"):
            with contextlib.suppress(pymongo.errors.PyMongoError):  # not yet
                member.ask("replSetStepUp")
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9, all."""
        for member in self.members:
            member.kill()


T = TypeVar("T", Mongod, ReplicaSet)


@contextlib.contextmanager
def started(servers: T) -> Iterator[T]:
    """Started, and killed in the end."""
    try:
        servers.start()
        yield servers
    finally:
        servers.kill()


def running(folder: Path, *options: str) -> contextlib.AbstractContextManager[Mongod]:
    """One alone, started and killed in the end."""
    return started(Mongod(folder, options))

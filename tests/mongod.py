"""A mongod of a test's own: with the limits that it asks for, killed and started again as it likes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pymongo

from tensordb_data.embedded.binary import find_mongod


class Mongod:
    """A replica set of one on a port of 127.0.0.1."""

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        self.folder, self.options = folder, options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"mongodb://127.0.0.1:{self.port}/tdb?replicaSet=rs"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return once it takes writes."""
        (self.folder / "db").mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [
                str(find_mongod()), "--dbpath", str(self.folder / "db"), "--bind_ip", "127.0.0.1",
                "--port", str(self.port), "--replSet", "rs", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25",
                *self.options,
            ],
            stdout=(self.folder / "log").open("ab"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        with pymongo.MongoClient(f"mongodb://127.0.0.1:{self.port}", directConnection=True) as client:
            with contextlib.suppress(pymongo.errors.OperationFailure):  # it has been one before
                member = {"_id": 0, "host": f"127.0.0.1:{self.port}"}
                client.admin.command("replSetInitiate", {"_id": "rs", "members": [member]})
            while not client.admin.command("hello")["isWritablePrimary"]:
                time.sleep(0.02)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[Mongod]:
    """A running one, killed in the end."""
    mongod = Mongod(folder, options)
    try:
        mongod.start()
        yield mongod
    finally:
        mongod.kill()

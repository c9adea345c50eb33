"""Servers that TensorDB did not start: which are accepted, and what is said of the others."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tensordb_data.embedded import control
from tensordb_data.embedded.binary import find_mongod
from tensordb_data.errors import ConnectError
from tensordb_data.mongo.address import parse
from tensordb_data.mongo.client import open_client


@contextmanager
def mongod(*options: str) -> Iterator[str]:
    """A server of another kind; yields its socket's URI."""
    with tempfile.TemporaryDirectory(prefix="tdb-") as folder:
        path = f"{folder}/m.sock"
        process = subprocess.Popen(
            [str(find_mongod()), "--dbpath", folder, "--bind_ip", path, "--nounixsocket", *options],
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if b"Waiting for connections" in line:
                    break
            yield f"mongodb://{path.replace('/', '%2F')}/"
        finally:
            process.kill()
            process.communicate()


def test_standalone_is_refused_with_the_way_to_convert_it() -> None:
    with mongod() as uri:
        with pytest.raises(ConnectError, match=r"standalone.*--replSet rs0.*rs\.initiate\(\)") as caught:
            open_client(parse(uri))
        message = "the given MongoClient is a standalone"
        with MongoClient[dict[str, Any]](uri) as client, pytest.raises(ConnectError, match=message):
            open_client(parse(client=client))
    assert "\n" not in str(caught.value)


def test_replica_set_that_was_never_initiated() -> None:
    with mongod("--replSet", "rs0") as uri:
        with pytest.raises(ConnectError, match=r"never initiated.*rs\.initiate\(\)"):
            open_client(parse(uri + "?directConnection=true"))


def test_credentials(folder: Path, free_port: int, ended: Callable[[Path], None]) -> None:
    control.up(folder, free_port)
    try:
        address = parse(control.uri(folder))
        client = open_client(address)
        client.x.y.insert_one({})
        assert client.write_concern.document == {"w": "majority"}
        client.close()
        place: dict[str, Any] = {"ip": "127.0.0.1", "port": free_port}
        for wrong, message in (
            (parse(**place, user_name="tensordb", password="topsecret"), "refused the user name"),
            (parse(**place, user_name="nobody", password="topsecret"), "refused the user name"),
            (parse(**place), "does not let this user read the database 'tensordb'"),
        ):
            with pytest.raises(ConnectError, match=message) as caught:
                open_client(wrong)
            assert "topsecret" not in str(caught.value)
            assert "\n" not in str(caught.value)
            assert f"127.0.0.1:{free_port}" in str(caught.value)
    finally:
        control.down(folder)
    ended(folder)


def test_not_a_mongodb(free_port: int) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port))
        other.listen()
        with pytest.raises(ConnectError, match=f"no MongoDB answers at 127.0.0.1:{free_port} within 4 s"):
            open_client(parse(ip="127.0.0.1", port=free_port))


def test_a_client_of_the_user_stays_open(mongo_uri: str) -> None:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        assert open_client(parse(client=client)) is client
        client.x.y.find_one()


def test_old_server_is_refused() -> None:
    from tensordb_data.mongo.server_check import _check_kind

    class Admin:
        def command(self, _: str) -> dict[str, str]:
            return {"version": "4.4.29"}

    class Old:
        admin = Admin()

    with pytest.raises(ConnectError, match=r"h:27017 is MongoDB 4\.4\.29, and 5\.0 or newer is needed"):
        _check_kind(Old(), {"maxWireVersion": 9, "setName": "rs"}, parse(ip="h"))  # type: ignore[arg-type]

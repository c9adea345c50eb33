"""`db.address`: where a warehouse is, without secrets, for other processes and machines."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import mongomock
import pymongo
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data import ConnectError, NotFoundError, PortableAddress, QueryError, TensorDB, UnsupportedError
from tensordb_data.embedded import control
from tensordb_data.mongo.address import Address, without_login
from tensordb_data.warehouse.context import Warehouse
from tests.steady.ports import free_port

SECRET = "p@ss/word?#é"


@pytest.fixture
def secured(warehouse_dir: Path) -> Iterator[str]:
    """The address of a server that asks for a login."""
    folder = warehouse_dir / "server"
    port = free_port()
    control.up(folder, port)
    try:
        with pymongo.MongoClient(control.uri(folder)) as client:
            client["ware"].command("createUser", "whoever", pwd=SECRET, roles=["readWrite"])
        yield f"mongodb://whoever:{quote_plus(SECRET)}@127.0.0.1:{port}/ware?directConnection=true"
    finally:
        control.down(folder)


def copied(address: PortableAddress) -> PortableAddress:
    found: PortableAddress = pickle.loads(pickle.dumps(address))  # noqa: S301
    return found


def test_it_opens_the_same_project_blobs_and_cache(db: TensorDB, mongo_uri: str, tmp_path: Path) -> None:
    blobs, cache = tmp_path / "other", tmp_path / "c"
    given: dict[str, Any] = {"blobs": blobs, "roots": [tmp_path], "cache": cache, "cache_bytes": "1GB"}
    with TensorDB(mongo_uri, project="shoes", **given) as first:
        with first.data.writer("d") as writer:
            writer.add(x=b"1" * 5000)
        address = copied(first.address)
        assert address == first.address and hash(address) == hash(first.address) and address != db.address
        with TensorDB(address) as there:
            assert there.project == "shoes" and there.cache == cache and there.cache_bytes == first.cache_bytes
            with there.data.writer("d") as writer:
                writer.add(x=b"2" * 5000)
            assert sorted(bytes(sample["x"])[:1] for sample in first.data.find()) == [b"1", b"2"]
            assert there.warehouse.blobs.write_root == first.warehouse.blobs.write_root and there == first
            assert there.address == address
        assert len(list(blobs.glob("segments/*"))) == 2
        with TensorDB(address, project="hats", cache=tmp_path / "d", read_only=True) as hats:
            assert hats.project == "hats" and hats.cache == tmp_path / "d" and hats.data.find().count() == 0
            with TensorDB(hats.address) as again:
                assert again.warehouse.address.read_only and again == hats


def test_what_it_says_already_is_refused(db: TensorDB) -> None:
    said: dict[str, Any] = {"blobs": "gridfs://", "client": mongomock.MongoClient(), "password": "x", "db_name": "y"}
    for name, value in said.items():
        with pytest.raises(QueryError, match=f"{name}=.*says that already"):
            TensorDB(db.address, **{name: value})
    with pytest.raises(QueryError, match=r"credentials= goes with db\.address"):
        TensorDB("mongodb://localhost", credentials="env:X")
    with pytest.raises(UnsupportedError, match="client="):
        TensorDB(client=mongomock.MongoClient()).address  # noqa: B018


def test_a_warehouse_that_was_removed_is_not_made_again(db: TensorDB, mongo_uri: str) -> None:
    with TensorDB(mongo_uri, blobs="gridfs://") as here:
        address = here.address
    with pymongo.MongoClient(mongo_uri) as client:
        client.drop_database(client.get_default_database().name)
    with pytest.raises(NotFoundError, match="there is no warehouse any more"):
        TensorDB(address)


def test_a_folder_is_opened_on_its_own_machine_only(warehouse_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = warehouse_dir / "w"
    with TensorDB(folder, project="shoes") as db:
        with db.data.writer("d") as writer:
            writer.add(label=3)
        packed = pickle.dumps(db.address)
        code = "import pickle, sys, tensordb_data as t; db = t.TensorDB(pickle.load(sys.stdin.buffer)); " \
               "print(db.data.find().first()['label'], db.project); db.close()"  # fmt: skip
        found = subprocess.run([sys.executable, "-c", code], input=packed, capture_output=True, check=True)
        assert found.stdout.split() == [b"3", b"shoes"]
        address = db.address
    assert str(folder) in repr(address)
    for credentials in (3, "mongodb://me:s3cret@db1/ware"):
        with pytest.raises(ConnectError, match="credentials") as caught:
            TensorDB(address, credentials=credentials)  # type: ignore[arg-type]
        assert "s3cret" not in str(caught.value)
    elsewhere = dataclasses.replace(address, machine="another-boot another-host")
    assert elsewhere == address
    with pytest.raises(ConnectError, match=r"folder .* of the machine another-host: one in a folder serves one"):
        TensorDB(elsewhere)
    restarted = dataclasses.replace(address, machine=f"another-boot {address.machine.split()[1]}")
    with TensorDB(restarted) as db:
        assert db.data.find().count() == 1
    text = json.dumps({**json.loads(address.text), "folder": str(warehouse_dir / "gone")})
    with pytest.raises(ConnectError, match=r"this machine has no folder .*gone"):
        TensorDB(dataclasses.replace(address, text=text))
    (warehouse_dir / "gone").mkdir()
    with pytest.raises(ConnectError, match="is no warehouse"):
        TensorDB(dataclasses.replace(address, text=text))
    assert not list((warehouse_dir / "gone").iterdir())


def test_the_login_comes_from_the_environment(secured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORDB", raising=False)
    with TensorDB(secured, blobs="gridfs://") as db:
        with db.data.writer("d") as writer:
            writer.add(label=3)
        address = copied(db.address)
        hidden = f"{pickle.dumps(address)!r} {address!r} {address} {address.text}"
        assert "whoever" not in hidden and "p%40ss" not in hidden and SECRET not in hidden
        for credentials, variable in ((None, "TENSORDB"), ("env:WAREHOUSE", "WAREHOUSE")):
            with pytest.raises(ConnectError, match=rf"do not travel, and \${variable} is not set"):
                TensorDB(address, credentials=credentials)
            monkeypatch.setenv(variable, secured)
            with TensorDB(address, credentials=credentials) as there:
                assert there.data.find().first()["label"] == 3 and there.address == address
            monkeypatch.setenv(variable, "mongodb://admin:secret-2@elsewhere/db")
            with pytest.raises(ConnectError, match=rf"expected in \${variable} the address .* found") as caught:
                TensorDB(address, credentials=credentials)
            assert "secret-2" not in str(caught.value)
            monkeypatch.setenv(variable, "mongodb://admin:sec:ret-3@@elsewhere/db")
            with pytest.raises(ConnectError, match=rf"expected in \${variable}") as caught:
                TensorDB(address, credentials=credentials)
            assert "ret-3" not in str(caught.value)
        with TensorDB(address, credentials=secured) as there:
            assert there.data.find().count() == 1
        # A pickled TensorDB holds the password, as the page about security says; a partition does not.
        assert b"p%40ss" in pickle.dumps(db) and b"p%40ss" in pickle.dumps(db.data.find())
        assert b"p%40ss" not in pickle.dumps(db.data.find().partitions(1))


OPTIONS = {
    "replicaSet=rs0": True, "tls=true": True, "authSource=admin": True, "tlsCertificateKeyFile=/pki/me.pem": True,
    "tlsCertificateKeyFilePassword=s3cret": False, "TLSCERTIFICATEKEYFILEPASSWORD=s3cret": False,
    "authMechanismProperties=AWS_SESSION_TOKEN:s3cret": False, "proxyPassword=s3cret": False,
}  # fmt: skip


@given(
    st.sampled_from(["", "me@", "me:s3cret@", "me:s3%40cret@", "CN=me,O=x:s3cret@"]),
    st.sampled_from(["db1", "db1:27018,db2", "[::1]:27017"]), st.sampled_from(["", "/", "/ware"]),
    st.lists(st.sampled_from(sorted(OPTIONS)), unique=True),
)  # fmt: skip
def test_a_uri_without_its_login(login: str, hosts: str, path: str, options: list[str]) -> None:
    query = "?" + "&".join(options) if options else ""
    found = without_login(f"mongodb://{login}{hosts}{path}{query}")
    kept = [option for option in options if OPTIONS[option]]
    assert found == f"mongodb://{hosts}{path}{'?' + '&'.join(kept) if kept else ''}"
    address = PortableAddress.of(Warehouse(Address(uri=f"mongodb://{login}{hosts}{path}{query}"), []))
    assert address.needs_login == bool(login or len(kept) < len(options))
    assert "s3" not in repr(pickle.dumps(address))


def test_servers_are_the_same_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensordb_data.export.portable import _with_login

    wanted = Address(uri="mongodb://DB1,db2:27018/ware")
    given = "mongodb://me:pw@db2:27018,db1:27017/other"
    assert _with_login(wanted, given) == given
    for other in ("mongodb://me:pw@db1/", "mongodb://me:pw@db1,db2/", "mongodb+srv://me:pw@db1/", "/folder"):
        with pytest.raises(ConnectError, match="expected in credentials="):
            _with_login(wanted, other)

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mongomock
import pymongo
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.errors import ConnectError
from tensordb_data.mongo.address import Address, parse, redact
from tensordb_data.mongo.client import open_client

SECRET = "p@ss/w:rd?x"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORDB", raising=False)


def test_folder() -> None:
    assert parse("./warehouse").folder == Path.cwd() / "warehouse"
    assert parse(Path("/data/w"), project="shoes") == Address(folder=Path("/data/w"), project="shoes")
    assert parse("~/w").folder == Path.home() / "w"
    assert parse("w").database == "tensordb"
    assert parse("w", db_name="other").database == "other"


def test_uri() -> None:
    address = parse("mongodb://user:pw@db1,db2/tdb?replicaSet=rs")
    assert address.uri == "mongodb://user:pw@db1,db2/tdb?replicaSet=rs"
    assert (address.database, address.hosts, address.project) == ("tdb", "db1,db2", "default")
    assert parse("mongodb://db1").database == "tensordb"
    assert parse("mongodb://db1/?w=1", db_name="x").database == "x"
    assert parse("mongodb+srv://u:pw@cluster.example.net/tdb").database == "tdb"
    assert parse("mongodb://%2Ftmp%2Fa.sock/tdb").database == "tdb"


def test_folders_that_look_odd_and_are_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("/data/a:1@b", "it's/w", "a b", "/x/host:27017", "~", "C:/data"):
        assert parse(text).folder == Path(text).expanduser().absolute()
    monkeypatch.setenv("TENSORDB", '"mongodb://u:topsecret@h/db"')
    with pytest.raises(ConnectError, match=r"in \$TENSORDB begins or ends with a quote") as caught:
        parse()
    assert "topsecret" not in str(caught.value)


def test_a_mechanism_that_cannot_log_in_is_one_line() -> None:
    with pytest.raises(ConnectError, match=r"cannot connect to 127.0.0.1:1: .*OIDC"):
        open_client(parse("mongodb://127.0.0.1:1/?authMechanism=MONGODB-OIDC"))


def test_original_signature() -> None:
    address = parse(
        ip="146.169.15.140", port=27017, db_name="your_db", user_name=None, password=None, studyID="1"
    )  # fmt: skip
    assert address.uri == "mongodb://146.169.15.140:27017/?directConnection=true"
    assert (address.database, address.project) == ("your_db", "1")
    assert parse(ip="h", studyID=7).project == "7"
    assert parse(port=5).hosts == "localhost:5"
    assert parse(db_name="x").hosts == "localhost:27017"
    assert parse(ip="::1").hosts == "[::1]:27017"


def test_credentials_are_encoded() -> None:
    from pymongo.uri_parser import parse_uri

    uri = parse(ip="h", user_name="me@x", password=SECRET).uri
    assert uri is not None
    found = parse_uri(uri)
    assert (found["username"], found["password"], found["nodelist"]) == ("me@x", SECRET, [("h", 27017)])


def test_client() -> None:
    client = mongomock.MongoClient()
    address = parse(client=client, project="p")
    assert address.client is client
    assert open_client(address) is client
    assert "MongoClient" in repr(address)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORDB", "/data/w")
    assert parse().folder == Path("/data/w")
    assert parse(project="p").project == "p"
    assert parse(ip="h").folder is None
    assert parse("/data/v").folder == Path("/data/v")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"no warehouse is named.*TENSORDB"),
        ({"location": ""}, "empty"),
        ({"location": "w", "ip": "h"}, "a location and ip/port/user_name are given"),
        ({"location": "w", "client": object()}, "a location and client are given"),
        ({"location": "s3://bucket/prefix"}, "s3:// is not an address of a MongoDB; where blobs go is said by blobs="),
        ({"location": "http://host"}, "http:// is not an address"),
        ({"location": b"w"}, "bytes"),
        ({"location": "mongodb://"}, "is not a MongoDB address"),
        ({"location": "mongodb://h:99999/"}, "is not a MongoDB address"),
        ({"location": "mongodb://h/a b"}, "is not a MongoDB address|database name"),
        ({"location": "mongodb://h/?nonsense=1"}, "nonsense"),
        ({"location": "mongodb://u:topsecret@h/?nonsense=1"}, "nonsense"),
        ({"location": "mongodb://u:topsecret@h/?connectTimeoutMS=soon"}, "connectTimeoutMS|connecttimeoutms"),
        ({"location": 3}, "the location is int"),
        ({"location": ["w"]}, "the location is list"),
        ({"location": "w\0"}, "NUL"),
        ({"location": '"mongodb://u:topsecret@h/db"'}, "the location begins or ends with a quote"),
        ({"location": " mongodb://u:topsecret@h/db"}, "begins or ends with a quote, a blank"),
        ({"location": "\ufeffmongodb://u:topsecret@h/db"}, "begins or ends with a quote"),
        ({"location": "./wh\n"}, "begins or ends with a quote, a blank or a line break"),
        ({"location": Path("mongodb://u:topsecret@h/db")}, "looks like an address, which is written as text"),
        ({"location": Path("mongodb+srv://u:topsecret@h/db")}, "looks like an address"),
        ({"location": "u:topsecret@h/db"}, "looks like an address"),
        ({"location": "see mongodb://u:topsecret@h/db"}, "looks like an address"),
        ({"location": "localhost:27017"}, "looks like a host and a port.*mongodb://host:port"),
        ({"location": "db-1.example.net:27017/shoes"}, "looks like a host and a port"),
        ({"location": "[::1]:27017"}, "looks like a host and a port"),
        ({"location": "~nobody-of-that-name/w"}, "home of a user that is not known here, '~nobody-of-that-name'"),
        ({"location": "mongodb://u:topsecret@h/?tls=true&tlsCAFile=/nope.pem"}, "cannot be read /nope.pem"),
        ({"client": "mongodb://h"}, "client is a str"),
        ({"location": "w", "db_name": "admin"}, "the server's own"),
        ({"ip": "h", "db_name": "local"}, "the server's own"),
        ({"location": "mongodb://h/a", "db_name": "b"}, "names the database 'a', and db_name is 'b'"),
        ({"ip": "h", "password": "x"}, "password is given without user_name"),
        ({"ip": "h", "user_name": "x"}, "user_name is given without password"),
        ({"ip": "h:27018"}, "port=27018"),
        ({"ip": "mongodb://u:topsecret@h"}, "host name or number is expected"),
        ({"ip": "h", "port": 0}, "port is 0: expected"),
        ({"ip": "h", "port": "27017"}, "port is '27017': expected"),
        ({"ip": "h", "port": True}, "port is True: expected"),
        ({"ip": "h", "db_name": "a/b"}, "database name is 'a/b'"),
        ({"ip": "h", "db_name": "x" * 64}, "1 to 63 bytes"),
        ({"ip": "h", "studyID": "1", "project": "2"}, "project is '2' and studyID is '1'"),
        ({"ip": "h", "project": ""}, "the project is ''"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConnectError, match=message) as caught:
        parse(**arguments)
    assert "topsecret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_repr_and_text_hide_the_password() -> None:
    address = parse(ip="h", user_name="me", password=SECRET)
    for text in (repr(address), str(address), f"{address}", address.hosts, repr([address]), redact(str(address.uri))):
        assert SECRET not in text
        assert quote(SECRET, safe="") not in text
    assert "me" in repr(address)
    assert address.redact(f"login with {SECRET} or {quote(SECRET, safe='')}") == "login with *** or ***"
    copy = pickle.loads(pickle.dumps(address))  # noqa: S301  our own
    assert copy == address
    assert copy.uri == address.uri


def test_redact_options_and_text() -> None:
    text = "at mongodb://a:b@h1/x?tlsCertificateKeyFilePassword=hush&w=1, mongodb+srv://c:d@h2, s3://k:se@h3"
    assert redact(text) == (
        "at mongodb://a:***@h1/x?tlsCertificateKeyFilePassword=***&w=1, mongodb+srv://c:***@h2, s3://k:***@h3"
    )
    assert redact("nothing to hide: a@b.c") == "nothing to hide: a@b.c"


@given(st.text().filter(str.isprintable))
def test_no_password_in_any_message(middle: str) -> None:
    """An unencoded password makes a URI of any shape: no part of it is shown."""
    uri = f"mongodb://user:Zq7{middle}Zq7@host/db"
    try:
        texts = [repr(parse(uri)), str(parse(uri))]
    except ConnectError as error:
        texts = [str(error)]
    for text in texts:
        assert "Zq7" not in text


def test_megabytes_are_looked_through_for_secrets() -> None:
    """In a time that grows with them, and not with their square: hours."""
    text = f"{'x' * 5_000_000}1mongodb://user:Zq7Zq7@host/db"
    assert redact(text) == text.replace("Zq7Zq7", "***")


def test_a_server_that_is_not_there() -> None:
    address = parse("mongodb://user:topsecret@127.0.0.1:1/x")
    with pytest.raises(ConnectError, match=r"no MongoDB answers at 127\.0\.0\.1:1 within 4 s") as caught:
        open_client(address)
    assert "topsecret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    assert caught.value.__cause__ is None


def test_an_address_says_how_long_a_server_is_looked_for() -> None:
    with pytest.raises(ConnectError, match=r"within 0\.2 s"):
        open_client(parse("mongodb://127.0.0.1:1/x?serverSelectionTimeoutMS=200"))
    with (
        pymongo.MongoClient[dict[str, Any]]("127.0.0.1:1", serverSelectionTimeoutMS=300) as client,
        pytest.raises(ConnectError, match=r"within 0\.3 s"),
    ):
        open_client(parse(client=client))


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(ConnectError, match=r"(cannot connect to|no MongoDB answers at) nowhere\.invalid"):
        open_client(parse("mongodb+srv://user:topsecret@nowhere.invalid/x"))

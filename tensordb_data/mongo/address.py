"""Where a warehouse is: every way to say it becomes one `Address`, and an address becomes a connected client."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import quote, unquote

from tensordb_data.common.folder_names import folder_fault
from tensordb_data.errors import ConnectError

DATABASE = "tensordb"
PROJECT = "default"
CONNECT_SECONDS = 4.0  # until a server that is not there is reported
PATIENCE_MS = 60_000  # how long operations wait for a server that is being started again
OLDEST_WIRE_VERSION = 13  # MongoDB 5.0
FORMS = (
    'TensorDB("./folder"), TensorDB("mongodb://user:password@host:27017/database?replicaSet=rs0"), '
    'TensorDB("mongodb+srv://…"), TensorDB(ip="host", port=27017, db_name="name", user_name=…, password=…) '
    "or TensorDB(client=MongoClient(…))"
)
_SCHEMES = ("mongodb://", "mongodb+srv://")
_BLOB_SCHEMES = ("s3", "gs", "az", "gridfs", "memory", "file")
# Up to the last @ of the word: in a malformed URI the password itself may hold @, / and :. A scheme is looked for where
# a word begins, not at each of its letters: that would take the square of its length.
_CREDENTIALS = re.compile(r"(?<![\w+.-])(?P<scheme>[\w+.-]*://)(?P<user>[^\s:/@]*):\S*@")
_SECRET_OPTION = re.compile(
    r"(?P<name>[?&;][\w.-]*(?:password|passwd|secret|token|credential|signature|authMechanismProperties|access_?key)[\w.-]*=)[^&\s'\"]*",
    re.IGNORECASE,
)
_OF_THE_SERVER = ("admin", "config", "local")
_FORBIDDEN_IN_NAME = set('/\\. "$*<>:|?\0')


def redact(text: str) -> str:
    """`text` without the passwords and secret options of the URIs in it."""
    return _SECRET_OPTION.sub(r"\g<name>***", _CREDENTIALS.sub(r"\g<scheme>\g<user>:***@", text))


def _redact_uri(uri: str) -> str:
    """A whole URI without its secrets, be it malformed: up to the last @, anything may belong to a password."""
    scheme, _, rest = uri.partition("://")
    login, at, hosts = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    return redact(f"{scheme}://{user}{colon and ':***'}{at}{hosts}")


def without_login(uri: str) -> str:
    """A URI without user, password and secret options: it names the same servers and database."""
    scheme, rest = uri.split("://", 1)
    place, _, options = rest[rest.split("/", 1)[0].rfind("@") + 1 :].partition("?")
    kept = [one for one in re.split("[&;]", options) if one and not _SECRET_OPTION.match(f"?{one}")]
    return f"{scheme}://{place}{'?' + '&'.join(kept) if kept else ''}"


@dataclass(frozen=True, repr=False)
class Address:
    """Where a warehouse is: a folder, a URI, or a client that the user made. Never shows a password."""

    folder: Path | None = None
    """The warehouse folder of an embedded server, absolute."""
    uri: str | None = None
    """The full URI, with its password."""
    client: Any = None
    """A client that the user made, and closes."""
    database: str = DATABASE
    """Name of the MongoDB database."""
    project: str = PROJECT
    """The project that scopes every entity."""
    read_only: bool = False
    """Whether nothing is to be written."""

    def __str__(self) -> str:
        if self.folder is not None:
            return str(self.folder)
        if self.uri is not None:
            return _redact_uri(self.uri)
        return f"the given {type(self.client).__name__}"

    def __repr__(self) -> str:
        return f"Address({str(self)!r}, database={self.database!r}, project={self.project!r})"

    def redact(self, text: str) -> str:
        """`text` without this address's password, however it got there."""
        text = redact(text)
        for secret in _passwords(self.uri or ""):
            text = text.replace(secret, "***")
        return text

    @property
    def hosts(self) -> str:
        """The servers' names, without credentials or options."""
        if self.uri is None:
            return str(self)
        return unquote(_authority(self.uri).rpartition("@")[2])


class HostOptions(TypedDict, total=False):
    """A server by its name, in place of an address, and the database in it."""

    ip: str | None
    port: int | None
    db_name: str | None
    user_name: str | None
    password: str | None
    studyID: str | int | None


def parse(
    location: str | os.PathLike[str] | None = None,
    *,
    ip: str | None = None,
    port: int | None = None,
    db_name: str | None = None,
    user_name: str | None = None,
    password: str | None = None,
    studyID: str | int | None = None,
    client: Any = None,
    project: str | None = None,
) -> Address:
    """Turn any of the ways to name a warehouse into an address. Nothing is opened.

    Args:
        location: A folder, or a ``mongodb://`` or ``mongodb+srv://`` URI. When nothing at all is given: $TENSORDB.
        ip: Name or number of a MongoDB server.
        port: Its port; 27017 by default.
        db_name: Name of the database; "tensordb" by default.
        user_name: User of the server.
        password: Its password.
        studyID: Another name for the project.
        client: A client that was made already (pymongo's or mongomock's).
        project: The project that scopes every entity; "default" by default.

    Returns:
        The address.

    Raises:
        ConnectError: The parts contradict each other or are malformed; the message says what to write.
    """
    server_given = any(part is not None for part in (ip, port, user_name, password))
    given_here = location is not None
    if location is None and client is None and not server_given and db_name is None and os.environ.get("TENSORDB"):
        location = os.environ["TENSORDB"]
    ways = {"a location": location is not None, "ip/port/user_name": server_given, "client": client is not None}
    given = [name for name, there in ways.items() if there]
    if len(given) > 1:
        raise ConnectError(f"{' and '.join(given)} are given, and one of them says where the warehouse is: {FORMS}")
    project = _project(project, studyID)
    if client is not None:
        if not callable(getattr(client, "get_database", None)):
            raise ConnectError(f"client is a {type(client).__name__}, and a pymongo or mongomock client was expected")
        return Address(client=client, database=_database(db_name or DATABASE), project=project)
    if location is None:
        if not given and db_name is None:
            raise ConnectError(f"no warehouse is named: {FORMS}; or set TENSORDB to a folder or URI")
        uri = _server_uri(ip, port, user_name, password)
        return Address(uri=uri, database=_database(db_name or DATABASE), project=project)
    text = os.fspath(location) if isinstance(location, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise ConnectError(f"the location is {type(location).__name__}, and a folder or URI (str or Path) was expected")
    if "\0" in text:
        raise ConnectError(f"the location {redact(text)!r} holds a NUL character: a folder or URI was expected")
    if not text.strip():
        raise ConnectError(f"the location is empty: {FORMS}")
    if isinstance(location, str) and text.startswith(_SCHEMES):
        named = _check_uri(text)
        if named and db_name and named != db_name:
            raise ConnectError(f"the URI names the database {named!r}, and db_name is {db_name!r}: give one of them")
        return Address(uri=text, database=_database(named or db_name or DATABASE), project=project)
    scheme = re.match(r"([A-Za-z][\w+.-]*)://", text)
    if isinstance(location, str) and scheme:
        hint = "; where blobs go is said by blobs=" if scheme[1] in _BLOB_SCHEMES else ""
        raise ConnectError(f"{scheme[1]}:// is not an address of a MongoDB{hint}. Expected: {FORMS}")
    if (fault := folder_fault(text)) is not None:
        source = "the location" if given_here else "the location in $TENSORDB"
        raise ConnectError(f"{source} {fault}. Expected: {FORMS}")
    folder = Path(os.path.abspath(os.path.expanduser(text)))
    return Address(folder=folder, database=_database(db_name or DATABASE), project=project)


def _project(project: str | None, study: str | int | None) -> str:
    if project is not None and study is not None and str(study) != project:
        raise ConnectError(f"project is {project!r} and studyID is {study!r}: two names of one thing, give one")
    name = project if project is not None else PROJECT if study is None else str(study)
    if not isinstance(name, str) or not name or "\0" in name:
        raise ConnectError(f"the project is {name!r}, and a name was expected")
    return name


def _database(name: str) -> str:
    if not isinstance(name, str) or not name or len(name.encode()) > 63 or _FORBIDDEN_IN_NAME & set(name):
        raise ConnectError(
            f'the database name is {name!r}: expected 1 to 63 bytes, without space or any of / \\ . " $ * < > : | ?'
        )
    if name in _OF_THE_SERVER:
        raise ConnectError(f"the database {name!r} is the server's own: name another, such as {DATABASE!r}")
    return name


def _server_uri(ip: str | None, port: int | None, user: str | None, password: str | None) -> str:
    host = "localhost" if ip is None else ip
    if not isinstance(host, str) or not host or re.search(r"[/@?#\s]", host):
        raise ConnectError(f"ip is {redact(str(host))!r}: a host name or number is expected; otherwise: {FORMS}")
    if port is None:
        port = 27017
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        raise ConnectError(f"port is {port!r}: expected a number from 1 to 65535")
    if (user is None) != (password is None):
        missing, there = ("user_name", "password") if user is None else ("password", "user_name")
        raise ConnectError(f"{there} is given without {missing}: give both or neither")
    if ":" in host and not host.startswith("["):
        name, _, number = host.rpartition(":")
        if ":" not in name and number.isdigit():
            raise ConnectError(f"ip is {host!r}: give the port apart, as port={number}")
        host = f"[{host}]"
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user is not None and password is not None else ""
    # directConnection unset: pymongo would find the members of the set; the original signature names one server.
    return f"mongodb://{login}{host}:{port}/?directConnection=true"


def _authority(uri: str) -> str:
    """What is between :// and the path."""
    rest = uri.split("://", 1)[1].split("?", 1)[0]
    login, at, hosts = rest.rpartition("@")
    return login + at + hosts.split("/", 1)[0]


def _check_uri(uri: str) -> str | None:
    """Check a URI without looking anything up; returns the database it names."""
    from pymongo.errors import PyMongoError
    from pymongo.uri_parser import parse_uri

    # A name for mongodb+srv:// is resolved when connecting; everything else about it is checked here.
    plain = "mongodb://" + uri.split("://", 1)[1]
    try:
        found = parse_uri(plain, validate=True, warn=False)
    except OSError as error:  # of a file that an option names
        name = f" {error.filename}" if error.filename else ""
        raise ConnectError(f"{_redact_uri(uri)} names a file that cannot be read{name}: {error.strerror}") from None
    except (PyMongoError, ValueError):
        raise ConnectError(
            f"{_redact_uri(uri)} is not a MongoDB address{_fault(plain)}. Expected "
            "mongodb://user:password@host:port/database?options, with user and password percent-encoded "
            "(urllib.parse.quote_plus)"
        ) from None
    database = found["database"]
    return str(database) if database else None


def _fault(uri: str) -> str:
    """What the parser says of a URI without its login and secrets: it quotes what it does not understand."""
    from pymongo.errors import PyMongoError
    from pymongo.uri_parser import parse_uri

    rest = uri.split("://", 1)[1].rpartition("@")[2]
    try:
        parse_uri(redact(f"mongodb://{rest}"), validate=True, warn=False)
    except (PyMongoError, ValueError) as error:
        return f" ({str(error).rstrip('.')})"
    return ""  # so the login is at fault


def _passwords(uri: str) -> Iterable[str]:
    """The password in a URI, as written and decoded."""
    if "://" not in uri:
        return []
    login = uri.split("://", 1)[1].rpartition("@")[0]
    secret = login.partition(":")[2]
    return sorted({part for part in (secret, unquote(secret)) if len(part) > 2}, key=len, reverse=True)

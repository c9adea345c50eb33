"""PortableAddress: where a warehouse is, as a value without secrets that goes to other processes and machines."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import weakref
from pathlib import Path
from typing import Any

from tensordb_data.blobs.stores.base import without_secrets
from tensordb_data.common.sizes import parse_size
from tensordb_data.embedded.paths import Layout
from tensordb_data.errors import ConnectError, NotFoundError, QueryError
from tensordb_data.mongo.address import Address, parse, redact, without_login
from tensordb_data.warehouse.context import Warehouse
from tensordb_data.warehouse.roots import OpenedRoots, Roots

_ENVIRONMENT = "env:"
_VARIABLE = "TENSORDB"

_living: weakref.WeakValueDictionary[PortableAddress, Warehouse] = weakref.WeakValueDictionary()
"""Warehouses that this process has opened itself, from which addresses were made."""
_kept: dict[tuple[PortableAddress, str | None], Warehouse] = {}
"""Warehouses that were opened from addresses: one connection a process, which stays."""


@dataclasses.dataclass(frozen=True, repr=False)
class PortableAddress:
    """Where a warehouse is, without the login of its server: `TensorDB.address`, which `TensorDB(address)` opens.

    Unlike a `TensorDB`, it may be pickled into object stores and logs. It compares by value. Project, blobs, the roots
    that were opened, the cache and `read_only` are part of it. User name, password and secret options are not: who
    opens it takes them from `$TENSORDB`, or from where `credentials=` says.
    """

    text: str
    """What `Warehouse.to_json` gives, as JSON, without secrets."""
    needs_login: bool
    """Whether there were secrets."""
    machine: str = dataclasses.field(default="", compare=False)
    """Of a warehouse in a folder: the machine that has it."""

    @classmethod
    def of(cls, warehouse: Warehouse) -> PortableAddress:
        """Where a warehouse is.

        Raises:
            UnsupportedError: It was made with `client=`, which cannot go to another process.
        """
        given = warehouse.to_json()
        uri = None if given["uri"] is None else without_login(given["uri"])
        roots = [{**root, "url": without_secrets(root["url"])} for root in given["roots"]]
        opened = {**given["opened"]}
        for kind in ("owned", "read"):
            opened[kind] = [without_secrets(url) for url in opened[kind]]
        text = json.dumps({**given, "uri": uri, "roots": roots, "opened": opened}, sort_keys=True, default=str)
        found = cls(text, uri != given["uri"], "" if given["folder"] is None else _machine())
        _living[found] = warehouse
        return found

    def __str__(self) -> str:
        given = json.loads(self.text)
        return str(given["folder"] or given["uri"])

    def __repr__(self) -> str:
        return f"PortableAddress({str(self)!r}, project={json.loads(self.text)['project']!r})"

    @property
    def in_folder(self) -> bool:
        """Whether the warehouse is in a folder, and serves one machine."""
        return json.loads(self.text)["folder"] is not None

    def open(self, credentials: str | None = None) -> Warehouse:
        """The warehouse: the one from which this was made, if this process has it; else one that this process keeps.

        Args:
            credentials: The address with its password, or `"env:NAME"` for a variable that holds it; None for
                `$TENSORDB`, if a password is needed.

        Raises:
            ConnectError: The password is needed and not given; the address that is given is another one; or the folder
                of the warehouse is not on this machine.
        """
        living = _living.get(self)
        if living is not None and credentials is None and not living.closed:
            return living
        given = self._complete(credentials)
        key = self, given["uri"]
        if key not in _kept:
            _kept.setdefault(key, Warehouse.from_json(given))
        return _kept[key]

    def connect(
        self,
        credentials: str | None = None,
        *,
        project: str | None = None,
        roots: Roots | None = None,
        cache: str | Path | None = None,
        cache_bytes: int | str | None = None,
        read_only: bool = False,
    ) -> Warehouse:
        """The warehouse, connected anew.

        Args:
            credentials: As for `open`.
            project: Another project.
            roots: More roots to read, beside those that have travelled and those of this user here.
            cache: Another folder for the cache.
            cache_bytes: Another limit for it.
            read_only: Whether only to read; an address of a connection that only reads stays one.

        Raises:
            ConnectError: As for `open`, or the server cannot be reached.
            NotFoundError: The warehouse was removed.
            StorageError: The blobs are in a place that nobody has opened.
        """
        given = self._complete(credentials)
        folder = None if given["folder"] is None else Path(given["folder"])
        own = OpenedRoots.of_user(None, roots, folder)
        given["opened"] = OpenedRoots.from_json(given["opened"]).with_own(own).to_json()
        given["read_only"] |= read_only
        if project is not None:
            given["project"] = parse("mongodb://localhost", project=project).project
        if cache is not None:
            given["cache"] = str(Path(cache).expanduser())
        if cache_bytes is not None:
            given["cache_bytes"] = parse_size(cache_bytes, "cache_bytes")
        warehouse = Warehouse.from_json(given)
        try:
            if warehouse.index["warehouse"].find_one({"_id": "warehouse"}) is None:
                raise NotFoundError(
                    f"there is no warehouse any more in the database {warehouse.address.database!r} of {self}"
                )
            warehouse.blobs.check_opened()
        except BaseException:
            warehouse.close()
            raise
        return warehouse

    def _complete(self, credentials: str | None) -> dict[str, Any]:
        """The argument of `Warehouse.from_json`, with the login."""
        given: dict[str, Any] = json.loads(self.text)
        if credentials is not None and not isinstance(credentials, str):
            raise ConnectError(
                f"credentials is an address with its password, or 'env:NAME'; found a {type(credentials).__name__}"
            )
        if given["folder"] is not None:
            if credentials is not None and not credentials.startswith(_ENVIRONMENT):
                raise ConnectError(f"credentials= is of a server, and the warehouse is in the folder {given['folder']}")
            self._check_machine(Path(given["folder"]))
        elif self.needs_login or credentials is not None:
            given["uri"] = _with_login(Address(uri=given["uri"]), credentials)
        return given

    def _check_machine(self, folder: Path) -> None:
        # A machine that was started again still has its name; a container has another one, on the same machine.
        here = _machine()
        if self.machine and not {*self.machine.split(" ", 1)} & {*here.split(" ", 1)}:
            where = f"the warehouse is in the folder {folder} of the machine {self.machine.partition(' ')[2]}"
        elif not folder.is_dir():
            where = f"this machine has no folder {folder}, in which the warehouse is"
        elif not Layout(folder).manifest.is_file():
            where = f"in the folder {folder} of this machine is no warehouse"
        else:
            return
        raise ConnectError(
            f"{where}: one in a folder serves one machine. Run this where the folder is, or use a server:"
            " TensorDB('mongodb://…')"
        )


def check_alone(**values: Any) -> None:
    """Refuse what says anew what an address says.

    Raises:
        QueryError: One of the options is given.
    """
    if given := [name for name, value in values.items() if value is not None]:
        raise QueryError(
            f"TensorDB(address, {given[0]}=...): the address of another TensorDB says that already; leave it out, or"
            " open the warehouse by its folder or URI"
        )


@functools.cache
def _machine() -> str:
    """This machine since its start, and its name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = "-" + platform.node()
    return f"{boot} {platform.node()}"


def _with_login(wanted: Address, credentials: str | None) -> str:
    """The address that is given in full; it must be of the same servers."""
    name = _VARIABLE if credentials is None else credentials.removeprefix(_ENVIRONMENT)
    if credentials is None or credentials.startswith(_ENVIRONMENT):
        full, source = os.environ.get(name), f"${name}"
    else:
        full, source = credentials, "credentials="
    if not full:
        raise ConnectError(
            f"the user and password of {wanted} do not travel, and ${name} is not set in this process: set it to the"
            " whole address, or give credentials='env:NAME' with the name of another variable"
        )
    try:
        found = parse(full)
    except ConnectError as error:
        raise ConnectError(f"expected in {source} the address {wanted} with its password: {error}") from None
    if found.uri is None or _servers(found) != _servers(wanted):
        raise ConnectError(f"expected in {source} the address {wanted} with its password, found {redact(str(found))}")
    return found.uri


def _servers(address: Address) -> set[str]:
    hosts = address.hosts.lower().split(",")
    srv = (address.uri or "").startswith("mongodb+srv://")
    return {host if srv or host.rpartition(":")[2].isdecimal() else f"{host}:27017" for host in hosts}

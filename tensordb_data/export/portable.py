"""Portable: where a warehouse is, as a value without secrets that goes to other processes and machines."""

from __future__ import annotations

import dataclasses
import json
import os
import weakref
from pathlib import Path
from typing import Any

from tensordb_data.errors import ConnectError
from tensordb_data.mongo.address import Address, parse, redact
from tensordb_data.warehouse.context import Warehouse

_ENVIRONMENT = "env:"
_VARIABLE = "TENSORDB"

_living: weakref.WeakValueDictionary[Portable, Warehouse] = weakref.WeakValueDictionary()
"""Warehouses that this process has opened itself, from which portables were made."""
_kept: dict[tuple[Portable, str | None], Warehouse] = {}
"""Warehouses that were opened from portables: one connection a process, which stays."""


@dataclasses.dataclass(frozen=True)
class Portable:
    """Where a warehouse is, without the password of its address. Unlike a `Warehouse`, it may be stored and logged."""

    text: str
    """What `Warehouse.to_json` gives, as JSON; secrets are replaced by stars."""
    needs_password: bool
    """Whether there were secrets."""

    @classmethod
    def of(cls, warehouse: Warehouse) -> Portable:
        """Where a warehouse is.

        Raises:
            UnsupportedError: It was made with `client=`, which cannot go to another process.
        """
        given = warehouse.to_json()
        uri = None if given["uri"] is None else str(Address(uri=given["uri"]))
        found = cls(json.dumps({**given, "uri": uri}, sort_keys=True), uri != given["uri"])
        _living[found] = warehouse
        return found

    def __str__(self) -> str:
        given = json.loads(self.text)
        return str(given["folder"] or given["uri"])

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
        given: dict[str, Any] = json.loads(self.text)
        if given["folder"] is not None and not Path(given["folder"]).is_dir():
            raise ConnectError(
                f"this machine has no folder {given['folder']}, in which the warehouse is: one in a folder serves one"
                " machine. Run this where the folder is, or use a server: TensorDB('mongodb://…')"
            )
        if given["uri"] is not None and (self.needs_password or credentials is not None):
            given["uri"] = _with_password(Address(uri=given["uri"]), credentials)
        key = self, given["uri"]
        if key not in _kept:
            _kept.setdefault(key, Warehouse.from_json(given))
        return _kept[key]


def _with_password(wanted: Address, credentials: str | None) -> str:
    """The address that is given in full; it must be of the same servers."""
    if credentials is not None and not isinstance(credentials, str):
        raise ConnectError(
            f"credentials is an address with its password, or 'env:NAME'; found a {type(credentials).__name__}"
        )
    name = _VARIABLE if credentials is None else credentials.removeprefix(_ENVIRONMENT)
    if credentials is None or credentials.startswith(_ENVIRONMENT):
        full, source = os.environ.get(name), f"${name}"
    else:
        full, source = credentials, "credentials="
    if not full:
        raise ConnectError(
            f"the password of {wanted} does not travel, and ${name} is not set in this process: set it to the whole "
            "address, or give credentials='env:NAME' with the name of another variable"
        )
    found = parse(full)
    if found.uri is None or found.hosts != wanted.hosts:
        raise ConnectError(f"expected in {source} the address {wanted} with its password, found {redact(str(found))}")
    return found.uri

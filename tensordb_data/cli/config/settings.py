"""Which warehouse a command line means: an option, else a variable of the environment, else the config file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensordb_data.blobs.stores.base import without_secrets
from tensordb_data.common.options import nearest
from tensordb_data.errors import ConnectError, QueryError, StorageError
from tensordb_data.mongo.address import Address, parse, redact
from tensordb_data.warehouse.catalog import resolve_blobs
from tensordb_data.warehouse.roots import VARIABLE
from tensordb_data.warehouse.user_config import files_of_user, path, read_config, roots_of_user, write_config

VARIABLES = {
    "db": "TENSORDB", "project": "TENSORDB_PROJECT", "blobs": "TENSORDB_BLOBS", "cache": "TENSORDB_CACHE",
}  # fmt: skip
"""The environment variable of each setting."""
DEFAULTS = {
    "db": "none: each command needs one", "project": "default",
    "blobs": "the place that the warehouse has noted", "cache": "a folder of the warehouse, or of this user",
}  # fmt: skip
FILE, DEFAULT = "config file", "default"
_OTHERS = ("roots", "files")  # what else stands in the file


@dataclass(frozen=True)
class Setting:
    """One setting, and where it comes from."""

    key: str
    value: str | None
    """None for the default."""
    origin: str
    """`option --db`, `variable TENSORDB`, `config file` or `default`."""

    @property
    def shown(self) -> str:
        """The value for people, without passwords."""
        return DEFAULTS[self.key] if self.value is None else without_password(self.value)


def settings(given: Mapping[str, str | None]) -> dict[str, Setting]:
    """What holds for a command, by key.

    The `blobs` of the file belong to its `db`: another warehouse, which an option or a variable names, keeps its own.

    Args:
        given: Values of options, by key; None for those that were not given.

    Raises:
        StorageError: The config file cannot be read, or holds something else than settings.
    """
    noted = noted_settings()
    found = {key: _one(key, given.get(key), noted.get(key)) for key in VARIABLES}
    own = noted.get("db")
    if found["blobs"].origin == FILE and own is not None and not _same(found["db"].value, own):
        found["blobs"] = Setting("blobs", None, DEFAULT)
    return found


def noted_settings() -> dict[str, str]:
    """The settings in the config file.

    Raises:
        StorageError: As for `settings`.
    """
    noted = read_config()
    for key, value in noted.items():
        if key in _OTHERS:
            continue
        if key not in VARIABLES:
            raise StorageError(f"{path()}: there is no setting {key!r}{nearest(key, VARIABLES)}; "
                               f"`tensordb config unset {key}` takes it out")  # fmt: skip
        if not isinstance(value, str) or not value:
            raise StorageError(f"{path()}: expected a text for {key!r}, found {type(value).__name__}; "
                               f"mend it, or take it out by `tensordb config unset {key}`")  # fmt: skip
    return {key: value for key, value in noted.items() if key in VARIABLES}


def note_setting(key: str, value: str) -> str:
    """Write a setting into the config file, and return it as it stands there. Paths are noted from the root on.

    Raises:
        QueryError: There is no such setting, or it cannot have this value.
        StorageError: The file cannot be read or written.
    """
    _check_key(key)
    try:
        clean = _cleaned(key, value)
    except (ConnectError, StorageError) as error:
        raise QueryError(f"{key} cannot be {without_password(value)!r}: {error}") from None
    write_config({**read_config(), key: clean})
    return clean


def remove_setting(key: str) -> bool:
    """Take a setting out of the config file. Returns whether it stood there.

    Raises:
        QueryError: There is no such setting, and the file has none of this name.
        StorageError: The file cannot be read or written.
    """
    noted = read_config()
    if key in _OTHERS or key not in noted:
        _check_key(key)
        return False
    write_config({name: value for name, value in noted.items() if name != key})
    return True


def rows_of_roots() -> list[tuple[str, str, str]]:
    """The places of blobs that this user has opened: key, value and where it comes from."""
    noted = [(f"roots.{name}", without_secrets(url), FILE) for name, url in sorted(roots_of_user().items())]
    noted += [(f"files.{name}", folder, FILE) for name, folder in sorted(files_of_user().items())]
    named = [each.strip() for each in os.environ.get(VARIABLE, "").split(",") if each.strip()]
    return [*noted, *(("roots", without_password(each), f"variable {VARIABLE}") for each in named)]


def without_password(text: str) -> str:
    """A value without the passwords in it: those of an address that is malformed, too."""
    try:
        address: Address | None = parse(text) if text.startswith("mongodb") else None
    except ConnectError:
        address = None
    return redact(text) if address is None else address.redact(str(address))


def _one(key: str, given: str | None, noted: str | None) -> Setting:
    variable = VARIABLES[key]
    named = os.environ.get(variable)
    if given:
        # An option that was left out has the value of its variable.
        return Setting(key, given, f"variable {variable}" if given == named else f"option --{key}")
    if named:
        return Setting(key, named, f"variable {variable}")
    return Setting(key, noted, DEFAULT if noted is None else FILE)


def _same(one: str | None, other: str) -> bool:
    try:
        return one is not None and parse(one) == parse(other)
    except ConnectError:
        return one == other


def _check_key(key: str) -> None:
    if key in _OTHERS:
        raise QueryError("places of blobs are opened by `tensordb roots add NAME PATH`, and closed by `roots remove`")
    if key not in VARIABLES:
        raise QueryError(f"there is no setting {key!r}{nearest(key, VARIABLES)}")


def _cleaned(key: str, value: str) -> str:
    if not value.strip():
        raise QueryError(f"{key} cannot be empty; `tensordb config unset {key}` takes it out")
    if key == "project":
        return parse(".", project=value).project
    if key == "blobs":
        return resolve_blobs(value, None, "blobs")
    if key == "db":
        address: Any = parse(value)
        return value if address.folder is None else str(address.folder)
    if "://" in value or "\0" in value:
        raise QueryError(f"cache is a folder on a local disk; found {without_password(value)!r}")
    return str(Path(value).expanduser().absolute())

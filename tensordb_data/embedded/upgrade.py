"""Bring the files of a folder to a newer release of MongoDB, one release after the other.

A mongod opens files of its own release and of the one before. So each step starts the mongod of the next release, asks
it for that release's feature compatibility version, notes the release, and stops it. To do a step twice changes
nothing. So a call that was killed is made again, and goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from tensordb_data.common.system import file_locks
from tensordb_data.embedded.binary import RELEASES, found_mongods, release
from tensordb_data.embedded.control import status
from tensordb_data.embedded.paths import Layout, locate
from tensordb_data.embedded.session import Session
from tensordb_data.embedded.start import note_release
from tensordb_data.errors import EmbeddedServerError

_CONFIRMED = RELEASES.index("7.0")  # from here on the command wants to be told that there is no way back


@dataclass(frozen=True)
class Step:
    """A release, and the mongod that brings a folder there from the release before."""

    release: str
    mongod: Path
    version: str


def plan(folder: str | os.PathLike[str], named: Sequence[Path] = ()) -> list[Step]:
    """The steps to the newest release that can be reached with the mongods that are there. Nothing is changed.

    Args:
        folder: The warehouse folder.
        named: Programs to look at, beside those that are found.

    Raises:
        EmbeddedServerError: There is no warehouse, its server runs, or one of `named` does not start.
    """
    layout = locate(folder)
    written_by = layout.release()
    if written_by is None:
        raise EmbeddedServerError(f"there is no warehouse in {layout.folder}")
    check_unused(layout)
    newest: dict[str, Step] = {}
    for mongod, version in found_mongods(named).items():
        known = newest.get(release(version))
        if known is None or _number(version) > _number(known.version):
            newest[release(version)] = Step(release(version), mongod, version)
    steps: list[Step] = []
    for next_release in RELEASES[RELEASES.index(written_by) + 1 :] if written_by in RELEASES else ():
        if next_release not in newest:
            break
        steps.append(newest[next_release])
    return steps


def check_unused(layout: Layout) -> None:
    """Check that no server runs for a folder: it would be of the old release.

    Raises:
        EmbeddedServerError: One does.
    """
    now = status(layout.folder)
    if now.running and not now.clients and not now.kept:
        file_locks.wait_released(layout.supervisor_lock)  # it is about to end
    elif now.running:
        pids = (
            f", which {len(now.clients)} processes use (pid {', '.join(map(str, now.clients))})" if now.clients else ""
        )
        raise EmbeddedServerError(
            f"the server of {layout.folder} runs{pids}: close what uses it, run `tensordb down`, and upgrade again"
        )


def upgrade(folder: str | os.PathLike[str], steps: Sequence[Step], say: Callable[[str], None]) -> None:
    """Take some steps, one after the other. `say` is called with a line about each.

    Raises:
        EmbeddedServerError: A mongod does not start, or refuses; the steps before it are done.
    """
    layout = locate(folder)
    for step in steps:
        check_unused(layout)
        try:
            with Session(layout, step.mongod) as session, MongoClient[dict[str, Any]](session.uri) as client:
                _take(layout, client, step)
        except PyMongoError as error:
            what = f"{step.mongod} ({step.version}) did not bring {layout.folder} to {step.release}"
            raise EmbeddedServerError(f"{what}: {error}") from None
        file_locks.wait_released(layout.supervisor_lock)
        say(f"{layout.folder} has the files of MongoDB {step.release}, by {step.mongod}")


def _take(layout: Layout, client: MongoClient[dict[str, Any]], step: Step) -> None:
    wanted: dict[str, Any] = {"setFeatureCompatibilityVersion": step.release}
    if RELEASES.index(step.release) >= _CONFIRMED:
        wanted["confirm"] = True
    client.admin.command(wanted)
    answer = client.admin.command({"getParameter": 1, "featureCompatibilityVersion": 1})
    found = answer["featureCompatibilityVersion"]
    if found.get("version") != step.release or "targetVersion" in found:
        raise EmbeddedServerError(
            f"expected the files of {layout.folder} to be of {step.release}, found {found!r:.200}"
        )
    note_release(layout, step.version, step.release)


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))

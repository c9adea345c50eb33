"""What a warehouse leaves on disk is for its user alone, unless the umask is asked to decide."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tensordb_data import TensorDB


def open_to_others(folder: Path) -> list[str]:
    """What in a folder others may read, links aside."""
    found = [folder, *folder.rglob("*")]
    return [
        f"{path} {status.st_mode:o}"
        for path in found
        if not stat.S_ISLNK((status := path.lstat()).st_mode) and status.st_mode & 0o077
    ]


def use(folder: Path) -> None:
    with TensorDB(folder) as db:
        with db.data.writer("d") as writer:
            writer.add_many(x=np.zeros((300, 40_000), np.uint8), label=np.arange(300))
        db.params.save({"w": np.zeros(2000)}, run="r")
        with db.data.find({"dataset": "d"}).stream(batch_size=4, shuffle=True) as stream:
            next(iter(stream))
        assert {path.name for path in folder.iterdir()} >= {"blobs", "cache", "mongo", "run", "mongod.log"}
        if os.environ.get("TENSORDB_SHARED") != "1":
            assert open_to_others(folder) == []


def test_private_unless_the_umask_is_asked(
    folder: Path, ended: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o022)
    try:
        use(folder)
        ended(folder)
        assert open_to_others(folder) == []
        monkeypatch.setenv("TENSORDB_SHARED", "1")
        with TensorDB(folder) as db, db.data.writer("e") as writer:
            writer.add(x=np.zeros(9, np.uint8))
        ended(folder)
        found = open_to_others(folder)
        assert found and all("/blobs/" in line for line in found), found
        assert any(line.endswith("644") for line in found)
    finally:
        os.umask(before)

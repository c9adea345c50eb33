"""A thousand files of others beside and inside a place of blobs: no deletion of any kind touches one of them."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import Keep, StorageError, TensorDB
from tensordb_data.blobs.keys import is_key
from tensordb_data.continuous import Deployer

LONG_AGO = dt.datetime(2020, 1, 1)
FOLDERS = (
    "", "segments", "params", "architectures", "tombstones", "segments/deep", "other", ".hidden", "000001", "current",
    "with space", "ünïcode", "segments/000001", "cache/segments", "mongo",
)  # fmt: skip


def names(seed: int) -> Iterator[str]:
    """Names of all kinds; most are nearly those of an object of ours."""
    dice = random.Random(seed)
    while True:
        hexadecimal = f"{dice.getrandbits(96):024x}"
        yield from (
            hexadecimal, f"{hexadecimal}.safetensors", f"{hexadecimal}.txt", hexadecimal.upper(), hexadecimal[:-1],
            f"{hexadecimal}-1.safetensors", f".put-{hexadecimal}", f".put-{dice.randrange(99)}-{hexadecimal[:11]}",
            f".put-me-{hexadecimal}", f"thesis {hexadecimal}.tex", f"-{hexadecimal}", f"{hexadecimal}\n",
            f"model-{hexadecimal}.json", f"~{hexadecimal}", f"{hexadecimal}*", f"{dice.randrange(10**6):06d}-x",
        )  # fmt: skip


def plant(folder: Path, count: int, seed: int) -> None:
    """Files that are old, so that nothing spares them for their age."""
    for place, name in zip(itertools.cycle(FOLDERS), names(seed), strict=False):
        if count == 0:
            return
        if is_key(f"{place}/{name}"):  # this would be one of ours
            continue
        path = folder / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{seed} {path}")
        os.utime(path, (1e9, 1e9))
        count -= 1


def content(*folders: Path) -> dict[str, Any]:
    """Every file and link below some folders: bytes and times, or where it leads."""
    found: dict[str, Any] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_file():
                found[str(path)] = (path.read_bytes(), path.stat().st_mtime_ns)
    return found


def hostile_documents(db: TensorDB, theirs: list[Path], blobs: Path) -> None:
    """Documents that name the files of others in every way: by a root, by a path, by a link."""
    roots = [
        theirs[0].as_uri(),
        "/",
        "file:///",
        "./../..",
        str(theirs[0]),
        f"{blobs.as_uri()}/../other",
        "file://host/x",
    ]
    db.database["warehouse"].update_one(
        {}, {"$push": {"roots": {"$each": [{"id": 10 + i, "url": url} for i, url in enumerate(roots)]}}}
    )
    files = [path for folder in (*theirs, blobs) for path in folder.rglob("*") if path.is_file()]
    keys: list[tuple[int, Any]] = []
    for path in random.Random(1).sample(files, 30):
        for root, base in ((0, blobs), (10, theirs[0]), (11, Path("/")), (15, blobs.parent / "other")):
            keys += [(root, os.path.relpath(path, base)), (root, str(path))]
    keys += [
        (0, key) for key in ("", ".", "..", "segments", "segments/", "segments/..", "\0", None, 7, {"$gt": ""}, [])
    ]
    keys += [(root, f"segments/{ObjectId()}") for root in (None, "0", -1, 99, 1.5)]  # type: ignore[misc]
    lies = {"p": "default", "dataset": "d", "bytes": 1, "index": [0, 0], "n": 1, "created": LONG_AGO, "dying": LONG_AGO}
    for state in ("dying", "gone", "writing", "live"):
        db.database["segments"].insert_many([{"root": root, "key": key, "state": state, **lies} for root, key in keys])
    db.database["tensors"].insert_many(
        [{"_id": {"p": "default", "h": os.urandom(16)}, "root": root, "key": str(key), "o": 0, "n": 1, "state": state,
          "created": LONG_AGO, "dying": LONG_AGO} for root, key in keys for state in ("dying", "live")]
    )  # fmt: skip
    db.database["tombstones"].insert_many(
        [{"p": "default", "c": "data", "dataset": "d", "root": root, "key": key, "n": 1, "state": "live",
          "created": LONG_AGO} for root, key in keys]
    )  # fmt: skip
    db.database["leases"].insert_many(
        [{"state": "ended", "objects": [{"root": root, "key": key}]} for root, key in keys]
    )


def test_files_of_others_stay(db: TensorDB, warehouse_dir: Path, tmp_path: Path) -> None:
    blobs, beside, elsewhere = warehouse_dir / "blobs", warehouse_dir / "other", tmp_path / "home"
    plant(blobs, 400, 1)
    plant(beside, 200, 2)
    plant(elsewhere, 400, 3)
    for name in ("segments/deep/link", "params/link", "link", "architectures/link"):
        (blobs / name).symlink_to(elsewhere, target_is_directory=True)
    (blobs / "segments" / ".put-1-0123456789ab").symlink_to(next(elsewhere.glob("*.tex")))
    before = content(blobs, beside, elsewhere)
    assert len(before) == 1005

    for name in ("d", "e", "f"):
        with db.data.writer(name) as writer:
            writer.add_many(x=np.arange(40, dtype=np.float32).reshape(10, 4), label=np.arange(10))
    for step in range(3):
        db.params.save({"w": np.full(100, step)}, run="r", step=step)
    hostile_documents(db, [elsewhere, beside], blobs)
    db.data.find({"dataset": "d", "label": {"$gt": 2}}).delete()
    db.data.drop("e")
    db.data.rename("f", "g")
    db.params.prune("r", Keep(last=1))
    db.data.compact("g")
    left = db.gc(grace=0).left
    assert left > 200 and db.gc(grace=0).left >= left  # the second looks at what the first has marked
    assert {key: found for key, found in content(blobs, beside, elsewhere).items() if key in before} == before
    assert len(db.data.find({"dataset": "g"}).all()) == 10 and db.params.find().first().load()["w"][0] == 2


def test_a_store_behind_a_link(db: TensorDB, warehouse_dir: Path, tmp_path: Path) -> None:
    """The segments of another warehouse stay where a link leads to them."""
    with db.data.writer("d") as writer:
        writer.add(x=np.zeros(4), label=0)
    segments = warehouse_dir / "blobs" / "segments"
    segments.rename(tmp_path / "segments")
    segments.symlink_to(tmp_path / "segments")
    before = content(tmp_path)
    db.data.find().delete(all=True)
    with pytest.raises(StorageError, match=f"{segments} is a link, and nothing is deleted behind links"):
        db.gc(grace=0)
    assert content(tmp_path) == before


def test_a_deployer_beside_files_of_others(db: TensorDB, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    plant(folder / "best", 100, 4)
    for name, _ in zip(names(5), range(100), strict=False):
        if not name.isdigit():
            (folder / name).write_text(name)
    before = content(folder)
    for step in range(4):
        db.params.save({"w": np.full(100, step)}, run="r", step=step)
        with Deployer(db, db.params.find({"run": "r"}, sort=[("step", -1)]), to=folder) as deployer:
            deployer.once()
    assert {key: found for key, found in content(folder).items() if key in before} == before
    assert sorted(path.name for path in folder.glob("00000?")) == ["000003", "000004"]

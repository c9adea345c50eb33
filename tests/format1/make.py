"""Writes tests/format1/warehouse.tar.xz with the code of version 0.1, and tries that code on a warehouse of today.

    git worktree add /tmp/tdb01 7514d3e
    .venv/bin/python tests/format1/make.py write /tmp/tdb01      # the fixture anew
    .venv/bin/python tests/format1/make.py refused /tmp/tdb01    # 0.1 that is connected while today's code upgrades

The archive holds the documents of each collection as BSON, `COLLECTION.bson`, the blobs below `blobs/`, and
`expected.json`: what 0.1 found in them, the state of a stream in the middle of a pass, and the batches that followed.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

OLD = """
import json, sys
import bson
import numpy as np
from pathlib import Path
from tensordb_data import TensorDB
folder, what = Path(sys.argv[1]), sys.argv[2]
db = TensorDB(folder)
if what == "write":
    with db.data.writer("digits") as writer:
        labels = np.arange(60) % 7
        images = np.random.default_rng(0).integers(0, 255, (60, 6, 6)).astype(np.uint8)
        writer.add_many(image=images, label=labels, name=[f"n{i}" for i in range(60)], tags=["scan"])
    with db.data.writer("live", live=True) as writer:
        writer.add_many(x=np.arange(12, dtype=np.float32).reshape(4, 3), label=np.arange(4))
    db.data.find({"dataset": "digits", "label": 6}).delete()
    db.data.find({"dataset": "digits", "label": 5}).update({"$set": {"label": 50}})
    for step in (10, 20):
        db.params.save({"w": np.full(50, step, np.float32), "same": np.ones(20)}, run="r", step=step, acc=step / 100)
    with db.logs.run("r") as log:
        log.write(10, loss=0.5)
    db.jobs.push("report", entry="json:dumps", args={"obj": 1})
    db.architectures.save("net", factory="torch.nn:Linear", kwargs={"in_features": 2, "out_features": 3})
    stream = db.data.find({"dataset": "digits"}).stream(batch_size=8, shuffle=True, seed=3)
    batches = iter(stream)
    before = [next(batches) for _ in range(3)]
    state = stream.state_dict()
    after = [next(batches) for _ in range(6)]
    shown = lambda batch: {"label": batch["label"].tolist(), "sum": int(np.asarray(batch["image"], np.int64).sum())}
    expected = {
        "state": state, "before": [shown(b) for b in before], "after": [shown(b) for b in after],
        "count": db.data.find({"dataset": "digits"}).count(),
    }
    stream.close()
    (folder / "expected.json").write_text(json.dumps(expected, default=str))
    for name in db._mongo().list_collection_names():
        if name not in ("leases", "passes"):
            (folder / f"{name}.bson").write_bytes(b"".join(bson.encode(doc) for doc in db._mongo()[name].find()))
else:
    db.data.find({"dataset": "digits", "label": 1}).delete()
    writer = db.data.writer("digits")
    writer.add(image=np.zeros((6, 6), np.uint8), label=1, name="late")
    empty = db.data.writer("empty", schema={"label": int})
    print("ready", flush=True)
    sys.stdin.readline()
    def tried(what, fn):
        try:
            print(what, "did not fail:", fn())
        except Exception as error:
            print(what, "failed:", type(error).__name__, error)
    empty.add(label=1)
    tried("commit", writer.flush)
    tried("first commit", empty.flush)
    tried("gc", lambda: db.gc(grace=0))
    tried("stream", lambda: next(iter(db.data.find({"dataset": "digits"}).stream(batch_size=4, shuffle=True, seed=0))))
    tried("open", lambda: TensorDB(folder))
db.close()
"""


def run_old(code: Path, folder: Path, what: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OLD, str(folder), what]
    return subprocess.Popen(command, cwd=code, env=environment(code), text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)  # fmt: skip


def environment(code: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(code)}


def write(code: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tdbf") as folder:
        done = run_old(code, Path(folder), "write")
        done.communicate()
        assert done.returncode == 0
        with tarfile.open(HERE / "warehouse.tar.xz", "w:xz") as archive:
            for path in sorted(Path(folder).rglob("*")):
                name = path.relative_to(folder).as_posix()
                if path.is_file() and (
                    name.startswith("blobs/")
                    or (path.parent == Path(folder) and path.suffix == ".bson")
                    or name == "expected.json"
                ):
                    content, about = path.read_bytes(), tarfile.TarInfo(name)
                    about.size = len(content)
                    archive.addfile(about, io.BytesIO(content))


def unpack(folder: Path, mongo: Any) -> dict[str, Any]:
    """Put the warehouse of 0.1 into a folder's blobs and a database; returns what 0.1 expected."""
    import bson

    expected: dict[str, Any] = {}
    with tarfile.open(HERE / "warehouse.tar.xz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            content = file.read()
            if member.name == "expected.json":
                expected = json.loads(content)
            elif member.name.endswith(".bson"):
                if content:
                    mongo[member.name.removesuffix(".bson")].insert_many(bson.decode_all(content))
            else:
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return expected


def refused(code: Path) -> None:
    """What 0.1 says that is connected while the code of today upgrades its warehouse."""
    sys.path.insert(0, str(ROOT))
    from tensordb_data import TensorDB

    with tempfile.TemporaryDirectory(prefix="tdbf") as folder:
        made = run_old(code, Path(folder), "write")
        made.communicate()
        old = run_old(code, Path(folder), "refused")
        assert old.stdout is not None and old.stdout.readline() == "ready\n"
        with TensorDB(folder) as db:
            format, before = db.database["warehouse"].find_one({})["format"], content(Path(folder))
            print("format", format)
            print(old.communicate("\n")[0])
            assert db.fsck().findings == [] and set(before) <= set(content(Path(folder)))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (folder / "blobs").rglob("*") if path.is_file()}


if __name__ == "__main__":
    {"write": write, "refused": refused}[sys.argv[1]](Path(sys.argv[2]).resolve())

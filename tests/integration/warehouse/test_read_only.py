"""`read_only=True`: what reads works, without the right to write; what writes says so; nothing changes."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mongomock
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from tensordb_data import TensorDB
from tensordb_data.cli.main import app
from tensordb_data.common.system import file_locks
from tensordb_data.embedded import control
from tensordb_data.errors import EmbeddedServerError, NotFoundError, ReadOnlyError
from tensordb_data.table.activity.facts import facts
from tensordb_data.torch import QueryDataset
from tests.steady.ports import free_port

N = 50


def fill(db: TensorDB, first: int = 0) -> None:
    with db.data.writer("d") as writer:
        numbers = np.arange(first, first + N)
        writer.add_many(x=np.repeat(numbers[:, None], 4, 1), label=numbers, caption=[f"cat {n}" for n in numbers])
    db.params.save({"w": np.full(3, float(first))}, run="r", step=first, acc=0.5)
    with db.logs.run("r") as log:
        log.write(first, loss=1.0)
    db.jobs.push("t", entry="a:b")


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and content of each file."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


def reads(db: TensorDB, n: int = N) -> None:
    """What a user does with data that he may not change."""
    sel = db.data.find({"dataset": "d"})
    assert sel.count() == n and len(db.data.find({"label": {"$lt": 5}}).all()) == 5
    assert [*np.concatenate([batch["label"] for batch in sel.stream(batch_size=8, passes=1)])] == [*range(n)]
    stream = sel.stream(batch_size=8, shuffle=True, seed=0)
    for _, batch in zip(range(2 * n // 8), stream, strict=False):
        assert (batch["x"][:, 0] == batch["label"]).all()
    again = sel.stream(batch_size=8, shuffle=True, seed=0)
    again.load_state_dict(stream.state_dict())
    assert next(iter(again))["label"].tolist() == next(iter(stream))["label"].tolist()
    stream.close()
    again.close()
    loader = DataLoader(QueryDataset(sel, batch_size=8, passes=1), batch_size=None, num_workers=2)
    assert torch.cat([batch["label"] for batch in loader]).sort().values.tolist() == [*range(n)]
    found = db.params.find({"run": "r"}, sort=[("step", -1)]).first()
    assert found.load()["w"].tolist() == [found.step] * 3
    assert db.logs.find({"run": "r"}).count() == n // N and db.jobs.find({"kind": "t"}).first().explain()
    assert {hit.kind for hit in db.search("cat")} == {"data"}
    assert db.gc(dry_run=True).objects == 0 and not db.fsck().findings
    sel.explain()


WRITES: dict[str, Callable[[TensorDB], Any]] = {
    "writer": lambda db: _write(db),
    "update": lambda db: db.data.find({"label": 1}).update({"$set": {"label": 2}}),
    "delete": lambda db: db.data.find({"label": 1}).delete(),
    "tag": lambda db: db.data.find({"label": 1}).tag("t"),
    "annotate": lambda db: db.data.annotate({db.data.find().first().id: {"label": 3}}, source="me"),
    "touch": lambda db: db.touch("d"),
    "compact": lambda db: db.data.compact("d"),
    "create_index": lambda db: db.data.create_index("label"),
    "save": lambda db: db.params.save({"w": np.zeros(2)}, run="r", step=9),
    "architecture": lambda db: db.architectures.save("a", factory="a:b"),
    "push": lambda db: db.jobs.push("t", entry="a:b"),
    "claim": lambda db: db.jobs.claim(worker="w"),
    "cancel": lambda db: db.jobs.find({"kind": "t"}).first().cancel(),
    "gc": lambda db: db.gc(grace=0),
    "insert": lambda db: db.database["data"].insert_one({}),
    "merge": lambda db: db.database["data"].aggregate([{"$merge": "data"}]),
    "command": lambda db: db.database.command("drop", "data"),
    "pipeline": lambda db: db.database.command("aggregate", "data", pipeline=[{"$out": "x"}], cursor={}),
    "put": lambda db: db.warehouse.blobs.store().put("ab/c", [b"x"]),
}


def _write(db: TensorDB) -> None:
    with db.data.writer("d") as writer:
        writer.add(x=np.zeros(4, int), label=1, caption="x")


def refuses(db: TensorDB) -> None:
    for name, write in WRITES.items():
        try:
            write(db)
        except ReadOnlyError as error:
            assert re.search("opened with read_only=True, and .* would write: open it without", str(error)), name
        else:
            pytest.fail(f"{name} was not refused")


def ended(folder: Path) -> None:
    for lock in folder.glob("supervisor.lock"):
        file_locks.wait_released(lock)


@contextlib.contextmanager
def on_read_only_disk(folder: Path, place: Path) -> Iterator[None]:
    """`place` shows `folder`, and takes no writes."""
    place.mkdir(exist_ok=True)
    mount = ["mount", "--bind", str(folder), str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a folder")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def copies(warehouse_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the copies of indexes go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(warehouse_dir / "user"))
    yield warehouse_dir / "user" / "tensordb" / "copies"
    for copy in (warehouse_dir / "user" / "tensordb" / "copies").glob("*/"):
        ended(copy)


def test_a_folder_on_a_read_only_disk(warehouse_dir: Path, copies: Path) -> None:
    folder, place = warehouse_dir / "w", warehouse_dir / "ro"
    with TensorDB(folder) as db:
        fill(db)
    ended(folder)
    before = snapshot(folder)
    with on_read_only_disk(folder, place):
        with pytest.raises(EmbeddedServerError, match=r"is not writable.*or open this one with read_only=True"):
            TensorDB(place)
        with TensorDB(place, read_only=True) as db:
            reads(db)
            refuses(db)
        found = CliRunner().invoke(app, ["find", "data", '{"label": 3}', "--db", str(place)])
        assert found.exit_code == 0 and "cat 3" in found.output, found.output
        tagged = CliRunner().invoke(app, ["gc", "--db", str(place)])
        assert tagged.exit_code == 1 and "opened with read_only=True" in tagged.output
    assert snapshot(folder) == before
    (copy,) = copies.glob("*/source.json")
    first = copy.stat().st_mtime_ns
    with on_read_only_disk(folder, place), TensorDB(place, read_only=True) as db:
        assert db.data.find().count() == N and copy.stat().st_mtime_ns == first, "the copy was made anew"
    with TensorDB(folder) as db:
        fill(db, N)
    ended(folder)
    with on_read_only_disk(folder, place), TensorDB(place, read_only=True) as db:
        reads(db, 2 * N)
    assert [path.stat().st_mode & 0o077 for path in (copies, copy.parent, copy.parent / "mongo")] == [0, 0, 0]


def test_a_folder_that_could_be_written(warehouse_dir: Path) -> None:
    with TensorDB(warehouse_dir / "w") as db:
        fill(db)
        with TensorDB(warehouse_dir / "w", read_only=True) as other:
            reads(other)
            refuses(other)
        assert db.data.find().count() == N


def test_a_user_of_a_server_with_the_role_read(warehouse_dir: Path, copies: Path) -> None:
    folder, blobs = warehouse_dir / "w", f"file://{warehouse_dir}/blobs"
    port = free_port()
    control.up(folder, port)
    try:
        with TensorDB(control.uri(folder), blobs=blobs) as db:
            fill(db)
            roles = [{"role": "read", "db": db.database.name}]
            db.database.command("createUser", "reader", pwd="let-me-see", roles=roles)
            names = sorted(db.database.list_collection_names())
            address = f"mongodb://reader:let-me-see@127.0.0.1:{port}/{db.database.name}?authSource={db.database.name}"
            with TensorDB(address + "&directConnection=true", blobs=blobs, read_only=True) as reader:
                reads(reader)
                refuses(reader)
                known = facts(reader.warehouse)
                assert not known.missing and not known.look.missing and known.written == N
            assert sorted(db.database.list_collection_names()) == names
    finally:
        control.down(folder)


def test_what_is_not_there_is_not_made(warehouse_dir: Path, mongo_uri: str) -> None:
    with pytest.raises(NotFoundError, match=r"no warehouse in .*/nowhere, and with read_only=True none is made"):
        TensorDB(warehouse_dir / "nowhere", read_only=True)
    assert not (warehouse_dir / "nowhere").exists()
    with pytest.raises(NotFoundError, match="no warehouse in the database"):
        TensorDB(mongo_uri, read_only=True)
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs") as db:
        fill(db)
        with pytest.raises(ReadOnlyError, match="leave blobs= out"):
            TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/other", read_only=True)


def test_a_client_of_mongomock() -> None:
    client: Any = mongomock.MongoClient()
    with TensorDB(client=client, blobs="memory://") as db:
        with db.data.writer("d") as writer:
            writer.add(label=1)
        with TensorDB(client=client, read_only=True) as reader:
            assert [sample["label"] for sample in reader.data.find()] == [1]
            with pytest.raises(ReadOnlyError):
                reader.data.find({"label": 1}).tag("t")

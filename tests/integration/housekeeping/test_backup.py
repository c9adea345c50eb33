"""Backups: of one instant beside writers and gc, and brought back whole or not at all."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import ObjectId
from typer.testing import CliRunner

from tensordb_data import ConnectError, Keep, StorageError, TensorDB
from tensordb_data.cli.main import app
from tensordb_data.common.system.file_locks import wait_released
from tensordb_data.errors import CorruptBlobError, TensorDBError
from tensordb_data.housekeeping import gc
from tensordb_data.housekeeping.backup import create, layout, restore
from tensordb_data.housekeeping.backup.layout import Entry, read_files, read_manifest
from tests import warm
from tests.helpers import at_most, bomb


def fill(db: TensorDB) -> None:
    with db.data.writer("d") as writer:
        writer.add_many(x=np.arange(40, dtype=np.float32).reshape(10, 4), label=np.arange(10), tags=["a"])
    with db.data.writer("live", live=True) as writer:
        writer.add(x=np.zeros(3, np.float32), label=7)
    for step in range(3):
        db.params.save({"w": np.full(100, step)}, run="r", step=step, val_acc=step / 10)
    db.data.find({"dataset": "d", "label": 9}).delete()
    with db.logs.run("r") as log:
        log.write(1, loss=0.5)
    db.jobs.push("report", entry="json:dumps", args={"obj": 1})
    db.architectures.save("net", factory="torch.nn:Linear", kwargs={"in_features": 2, "out_features": 3})


def check(db: TensorDB) -> None:
    """All that `fill` has written is there, whole."""
    report = db.fsck()
    assert report.findings == [] and report.warnings == [], report
    found = db.data.find({"dataset": "d"}, sort=[("label", 1)]).all()
    assert [sample["label"] for sample in found] == list(range(9)) and found[3]["x"].tolist() == [12, 13, 14, 15]
    assert db.data.find({"dataset": "live"}).first()["x"].shape == (3,)
    assert db.params.find({"run": "r"}, sort=[("step", -1)]).first().load()["w"][0] == 2
    assert db.logs.find({"run": "r"}).count() == db.jobs.find().count() == db.architectures.find().count() == 1
    assert [hit.kind for hit in db.search("net")] == ["architectures"]
    batch = next(iter(db.data.find({"dataset": "d"}).stream(batch_size=9, shuffle=True, seed=0)))
    assert sorted(batch["label"].tolist()) == list(range(9))


def test_a_folder_and_back(warehouse_dir: Path, tmp_path: Path) -> None:
    """Through the command, private, and without the server's own things; then it goes on as a warehouse does."""
    source, backup, target = (warehouse_dir / name for name in ("w", "backup", "new"))
    with TensorDB(source) as db:
        fill(db)
        check(db)
    run = CliRunner()
    done = run.invoke(app, ["backup", "create", str(backup), "--db", str(source), "--json"])
    assert done.exit_code == 0, done
    said = json.loads(done.stdout)
    assert said["documents"]["data"] == 10 and said["objects"] == 6 and said["left_out"] == said["damaged"] == []
    for path in (backup, *backup.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    for line in (backup / "files.txt").read_text().splitlines():
        sha256, nbytes, path = line.split("  ")
        assert subprocess.check_output(["sha256sum", backup / path], text=True).split()[0] == sha256
        assert (backup / path).stat().st_size == int(nbytes)
    done = run.invoke(app, ["backup", "restore", str(backup), "--db", str(target)])
    assert done.exit_code == 0 and "6 blobs" in done.stdout and "the blobs are in ./blobs" in done.stdout, done
    assert not (target / "restoring.json").exists()
    with TensorDB(target) as db:
        check(db)
        with db.data.writer("d") as writer:
            writer.add(x=np.ones(4, np.float32), label=10)
        db.params.prune("r", Keep(last=1))
        assert db.gc(grace=0).removed > 0
        assert db.data.find({"dataset": "d"}).count() == 10
    for to, word in ((target, "is not empty"), (source, "is not empty"), (tmp_path / "x" / "y", None)):
        done = run.invoke(app, ["backup", "restore", str(backup), "--db", str(to)])
        assert (done.exit_code == 0) == (word is None) and (word is None or word in done.stderr), done
    for to, word in ((backup, "is not empty"), (source / "b", "within the warehouse")):
        done = run.invoke(app, ["backup", "create", str(to), "--db", str(source)])
        assert done.exit_code == 1 and word in done.stderr, done


def test_a_server(db: TensorDB, mongo_uri: str, warehouse_dir: Path, tmp_path: Path) -> None:
    """Blobs of files and of GridFS come back in one place; those in memory and of others stay where they are."""
    fill(db)
    with TensorDB(mongo_uri, blobs="gridfs://") as other, other.data.writer("grid") as writer:
        writer.add_many(x=np.ones((5, 4)), label=range(5))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    db.database["warehouse"].update_one({}, {"$push": {"roots": {"id": 7, "url": elsewhere.as_uri()}}})
    db.database["notes"].insert_one({"of": "somebody"})
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs") as opened:
        report = opened.backup(tmp_path / "backup")
    assert [line.split(":")[0] for line in report.left_out] == ["blobs in file", "collection notes"]
    assert "this client was not told of that place" in report.left_out[0]
    server, options = mongo_uri.split("?")
    for blobs in (None, f"file://{warehouse_dir}/again"):
        target = f"{server}r?{options}"
        try:
            restored = TensorDB.restore(tmp_path / "backup", target, blobs=blobs)
            assert restored.blobs == (blobs or "gridfs://") and restored.objects == 7
            with TensorDB(target, blobs=blobs) as back:
                kinds = {finding.kind for finding in back.fsck().findings}
                assert kinds <= {"unopened root"} and back.data.find({"dataset": "grid"}).first()["x"].shape == (4,)
                assert [root["id"] for root in back.database["warehouse"].find_one({})["roots"]] == [0, 7]
            with pytest.raises(ConnectError, match="is not empty"):
                TensorDB.restore(tmp_path / "backup", target)
        finally:
            db.database.client.drop_database(target.rsplit("/", 1)[1].split("?")[0])
    target, blobs = f"{server}q?{options}", f"file://{warehouse_dir}/again"
    with pytest.raises(StorageError, match="holds blobs that are not of this backup"):
        TensorDB.restore(tmp_path / "backup", target, blobs=blobs)
    # Nor does a mark that others have put into the database say that these blobs may go.
    anothers = warehouse_dir / "again" / "segments" / str(ObjectId())
    anothers.write_bytes(b"of another warehouse")
    there = sorted((warehouse_dir / "again").rglob("*"))
    marked = db.database.client[target.rsplit("/", 1)[1].split("?")[0]]
    try:
        marked["warehouse"].insert_one({"_id": "warehouse", "format": restore.RESTORING, "blobs": blobs})
        with pytest.raises(StorageError, match="holds blobs that are not of this backup"):
            TensorDB.restore(tmp_path / "backup", target, blobs=blobs)
        assert sorted((warehouse_dir / "again").rglob("*")) == there
        anothers.unlink()
        assert TensorDB.restore(tmp_path / "backup", target, blobs=blobs).objects == 7
    finally:
        db.database.client.drop_database(marked.name)


def test_beside_writers_and_gc(
    db: TensorDB, mongo_uri: str, warehouse_dir: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Everything is deleted and collected after the index was read, and before the blobs were copied."""
    fill(db)
    real = create._Backup._copy
    collected: list[Any] = []

    def copy(self: Any) -> Any:
        if not collected:
            monkeypatch.setattr(gc, "_MARGIN", dt.timedelta(0))
            with db.data.writer("d") as writer:
                writer.add(x=np.ones(4, np.float32), label=20)
            db.data.find().delete(all=True)
            db.params.find().delete(all=True)
            db.architectures.find().delete(all=True)
            collected.extend(db.gc(grace=0) for _ in range(2))
        return real(self)

    monkeypatch.setattr(create._Backup, "_copy", copy)
    report = db.backup(tmp_path / "backup")
    assert collected[1].removed == 0 and collected[1].waiting > 0 and report.damaged == []
    assert db.gc(grace=0).removed > 0, "the lease has ended"
    TensorDB.restore(tmp_path / "backup", warehouse_dir / "back")
    with TensorDB(warehouse_dir / "back") as back:
        check(back)


def test_an_object_that_goes_is_not_in_the_index(db: TensorDB, tmp_path: Path, monkeypatch: Any) -> None:
    """A gc that had begun before the lease removes it: the index is read again."""
    fill(db)
    db.params.find().delete(all=True)
    real, rounds = create._Backup._copy, []

    def copy(self: Any) -> Any:
        if not rounds:
            for doc in list(db.database["tensors"].find()):
                if doc["key"].startswith("params/"):
                    db.database["tensors"].delete_one({"_id": doc["_id"]})
                    db.warehouse.blobs.delete(doc["root"], doc["key"])
        rounds.append(1)
        return real(self)

    monkeypatch.setattr(create._Backup, "_copy", copy)
    report = db.backup(tmp_path / "backup")
    assert len(rounds) == 2 and report.damaged == [] and report.documents["tensors"] == 1
    entries = read_files(tmp_path / "backup", read_manifest(tmp_path / "backup"))
    assert {entry.path.split("/")[1] for entry in entries} == {
        "segments", "tombstones", "architectures", *(f"{name}.bson.zst" for name in report.documents)
    }  # fmt: skip


def test_a_missing_object_is_named(db: TensorDB, warehouse_dir: Path, tmp_path: Path, mongo_uri: str) -> None:
    fill(db)
    next((warehouse_dir / "blobs" / "segments").iterdir()).unlink()
    done = CliRunner().invoke(app, ["backup", "create", str(tmp_path / "backup"), "--db", mongo_uri])
    assert done.exit_code == 1 and "missing: " in done.stdout and "No such file" in done.stdout, done
    restored = TensorDB.restore(tmp_path / "backup", warehouse_dir / "back")
    assert len(restored.damaged) == 1


def test_writers_go_on(db: TensorDB, warehouse_dir: Path, tmp_path: Path) -> None:
    """Backups beside a writer hold a beginning of what it has committed, with no gap."""
    stop = threading.Event()

    def write() -> None:
        with db.data.writer("d") as writer:
            number = 0
            while not stop.is_set():
                writer.add(x=np.full(4, number, np.float32), label=number)
                number += 1
                if number % 3 == 0:
                    writer.flush()

    with db.data.writer("d") as writer:
        writer.add(x=np.full(4, -1, np.float32), label=-1)
    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(2):
            db.backup(tmp_path / str(number))
    finally:
        stop.set()
        thread.join()
    TensorDB.restore(tmp_path / "1", warehouse_dir / "back")
    with TensorDB(warehouse_dir / "back") as back:
        labels = [sample["label"] for sample in back.data.find({"dataset": "d"}, sort=[("label", 1)])]
        assert labels == list(range(-1, len(labels) - 1)) and back.fsck().findings == []


RESTORE = """
import os, signal, sys
from tensordb_data import TensorDB
from tensordb_data.housekeeping.backup import restore
from tensordb_data.blobs.stores.local import FileStore
count = 0
def killed(owner, name, at):
    real = getattr(owner, name)
    def call(*args, **options):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    setattr(owner, name, call)
owner, name, at = {"mark": (restore._Restore, "_mark", 1), "blob": (FileStore, "put", 3),
    "index": (restore._Restore, "_documents", 4), "end": (restore, "sync_folder", 2)}[sys.argv[3]]
killed(owner, name, at)
TensorDB.restore(sys.argv[1], sys.argv[2])
"""


def test_killed(warehouse_dir: Path, tmp_path: Path) -> None:
    """A restore that is killed at any step leaves what nobody can open, and can be made again."""
    source, backup, target = warehouse_dir / "w", tmp_path / "backup", warehouse_dir / "new"
    with TensorDB(source) as db:
        fill(db)
        db.backup(backup)
    for step in ("mark", "blob", "index", "end"):
        done = warm.run([sys.executable, "-c", RESTORE, backup, target, step], timeout=100)
        assert done.returncode == -signal.SIGKILL
        if step != "end":
            with pytest.raises(ConnectError, match="a backup is being restored into"):
                TensorDB(target)
        else:  # the mark was removed just before
            with TensorDB(target) as db:
                check(db)
            wait_released(target / "supervisor.lock")
            shutil.rmtree(target)
    TensorDB.restore(backup, target)
    with TensorDB(target) as db:
        check(db)
    # Without its mark the database says so, too.
    with TensorDB(target) as db:
        db.database["warehouse"].update_one({}, {"$set": {"format": restore.RESTORING}})
    with pytest.raises(ConnectError, match="or its restore was stopped"):
        TensorDB(target)


def rewritten(backup: Path, change: Any) -> None:
    """Change the manifest, or files.txt so that the manifest agrees."""
    manifest = json.loads((backup / "manifest.json").read_text())
    lines = (backup / "files.txt").read_text().splitlines(keepends=True)
    change(manifest, lines)
    text = "".join(lines).encode()
    (backup / "files.txt").write_bytes(text)
    manifest["files"] = {"bytes": len(text), "sha256": layout.hashlib.sha256(text).hexdigest()}
    (backup / "manifest.json").write_text(json.dumps(manifest))


def entry_of(backup: Path, path: str) -> str:
    content = (backup / path).read_bytes()
    return layout.line(Entry(path, len(content), layout.hashlib.sha256(content).hexdigest())).decode()


def test_hostile(db: TensorDB, mongo_uri: str, warehouse_dir: Path, tmp_path: Path) -> None:
    """What somebody else has written leads to no path outside, asks for no memory, and leaves nothing to open."""
    fill(db)
    db.backup(tmp_path / "good")
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    key = next(iter((tmp_path / "good" / "blobs" / "segments").iterdir())).name
    backup = tmp_path / "bad"

    def lines_with(line: str) -> Any:
        return lambda manifest, lines: lines.append(line)

    def link() -> None:
        (backup / "blobs" / "segments" / key).unlink()
        (backup / "blobs" / "segments" / key).symlink_to(secret)

    def link_folder() -> None:
        (backup / "blobs" / "segments").rename(tmp_path / "moved")
        (backup / "blobs" / "segments").symlink_to(tmp_path / "moved")

    def fifo() -> None:
        (backup / "blobs" / "segments" / key).unlink()
        os.mkfifo(backup / "blobs" / "segments" / key)

    def swap(path: str, content: bytes) -> None:
        def change(manifest: Any, lines: list[str]) -> None:
            lines[:] = [entry_of(backup, path) if line.endswith(f"  {path}\n") else line for line in lines]

        (backup / path).write_bytes(content)
        rewritten(backup, change)

    def set_manifest(**values: Any) -> None:
        rewritten(backup, lambda manifest, lines: manifest.update(values))

    def manifest_text(text: str) -> None:
        (backup / "manifest.json").write_text(text)

    sha = "0" * 64
    cases: list[tuple[Any, str]] = [
        *((lambda path=path: rewritten(backup, lines_with(f"{sha}  9  {path}\n")), "expected a file of a backup")
          for path in ("../secret", "/etc/passwd", "blobs/../../secret", "blobs/segments/../../../secret",
                       "index/../secret", "index/system.users.bson.zst", "blobs/segments/x", f"blobs//segments/{key}",
                       "manifest.json")),
        (lambda: rewritten(backup, lines_with(f"{sha}  {10**18}  blobs/segments/{key}\n")), "expected a file"),
        (lambda: rewritten(backup, lines_with(f"{sha}  {10**15}  blobs/segments/{key}\n")), "expected 1,000,000,000"),
        (lambda: rewritten(backup, lines_with("x" * 10_000)), "expected a file of a backup"),
        (link, "cannot read"), (link_folder, "cannot read"), (fifo, "plain file"),
        (lambda: swap("index/data.bson.zst", bomb(1 << 33)), "more than the"),
        (lambda: swap("index/data.bson.zst", b"nothing"), "is damaged"),
        (lambda: swap("index/jobs.bson.zst", layout_zstd(b"\xff\xff\xff\x7f" + bytes(20))), "found one of 2,147,483"),
        (lambda: set_manifest(documents={"system": [1, 1]}), "is damaged"),
        (lambda: set_manifest(documents={"data": [1, -1]}), "is damaged"),
        (lambda: set_manifest(objects=10**6), "holds"),
        (lambda: set_manifest(warehouse=99), "format 99"),
        (lambda: set_manifest(format=2), "format 2"),
        (lambda: manifest_text("[" * 100_000), "is not JSON"),
        (lambda: manifest_text("{}"), "of format None"),
        (lambda: (backup / "manifest.json").unlink(), "no complete backup"),
        (lambda: (backup / "files.txt").unlink(), "cannot read"),
        (lambda: (backup / "blobs" / "segments" / key).write_bytes(b"short"), "has 5 bytes"),
    ]  # fmt: skip
    target = mongo_uri.replace("?", "h?")
    client = db.database.client
    for spoil, message in cases:
        shutil.rmtree(backup, ignore_errors=True)
        shutil.copytree(tmp_path / "good", backup)
        spoil()
        with pytest.raises(TensorDBError, match=message), at_most(64 << 20):
            TensorDB.restore(backup, target)
        if f"{db.database.name}h" in client.list_database_names():
            with pytest.raises(ConnectError, match="a backup is being restored"):
                TensorDB(target)
        shutil.rmtree(tmp_path / "moved", ignore_errors=True)
    client.drop_database(f"{db.database.name}h")
    shutil.rmtree(backup)
    shutil.copytree(tmp_path / "good", backup)
    rewritten(backup, lambda manifest, lines: manifest.update(bytes=1 << 59))
    with pytest.raises(StorageError, match="bytes free"):
        TensorDB.restore(backup, warehouse_dir / "last")
    assert not (warehouse_dir / "last").exists()
    flipped = backup / "blobs" / "segments" / key
    shutil.rmtree(backup)
    shutil.copytree(tmp_path / "good", backup)
    content = bytearray(flipped.read_bytes())
    content[50] ^= 1
    flipped.write_bytes(content)
    with pytest.raises(CorruptBlobError, match="does not match the checksum"):
        TensorDB.restore(backup, warehouse_dir / "last")
    TensorDB.restore(tmp_path / "good", warehouse_dir / "last")
    with TensorDB(warehouse_dir / "last") as back:
        check(back)


def layout_zstd(content: bytes) -> bytes:
    import zstandard

    return zstandard.compress(content)


def test_a_backup_that_a_gc_took_for_dead(db: TensorDB, tmp_path: Path, monkeypatch: Any) -> None:
    fill(db)
    monkeypatch.setattr(create._Backup, "_copy", lambda self: db.database["leases"].delete_many({}) and [])
    with pytest.raises(StorageError, match="silent for half an hour"):
        db.backup(tmp_path / "backup")
    with pytest.raises(StorageError, match="no complete backup"):
        TensorDB.restore(tmp_path / "backup", tmp_path / "new")

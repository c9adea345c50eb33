"""An export is complete under its name, is taken up where it was interrupted, and stays in its folder."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensordb_data import Array, Bytes, Image, Scalar, SchemaError, StorageError, TensorDB
from tensordb_data.common.system.file_locks import LOCK_EX, LOCK_NB, acquire, close_fd
from tensordb_data.export import output
from tensordb_data.export.names import Names, safe_part, safe_path
from tensordb_data.export.plan import contents_of, read_plan
from tests.integration.export.samples import contents, fill, manifest, picture

ALL = os.environ.get("MATRICES") == "all"
FORMATS = ("parquet", "jsonl", "folder", "webdataset", "mds")


class Stop(Exception):
    pass


def stop_after(count: int) -> Callable[[int, int, Any], None]:
    def progress(done: int, total: int, report: Any) -> None:
        if done >= count:
            raise Stop

    return progress


def images(db: TensorDB, count: int = 12) -> list[bytes]:
    found = [picture(n) for n in range(count)]
    with db.data.writer("x", schema={"image": Image(), "n": Scalar("int")}) as writer:
        for n, data in enumerate(found):
            writer.add(image=data, n=n)
    return found


def numbers(folder: Path, format: str) -> list[int]:
    return [row["n"] for row in contents(folder, format)]


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_interrupted_is_taken_up(db: TensorDB, tmp_path: Path, format: str) -> None:
    stored, out = images(db), tmp_path / "out"
    selection = db.data.find({"dataset": "x"})
    with pytest.raises(Stop):
        selection.export(out, format, shard_bytes=900, progress=stop_after(5))
    assert not out.exists()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.partial/files").rglob("*") if path.is_file()}
    assert done
    report = selection.export(out, format, shard_bytes=900)
    assert report.resumed >= 5 and report.restarted is None and report.count == 12
    assert [row["image"] for row in contents(out, format)] == stored and numbers(out, format) == list(range(12))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # What was complete was not written again.
    after = {path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    kept = [time for path, time in done.items() if time in after]
    assert len(kept) == len(done)


@pytest.mark.parametrize("format", ["parquet", "folder"])
def test_samples_that_have_changed_meanwhile_begin_it_anew(db: TensorDB, tmp_path: Path, format: str) -> None:
    images(db)
    selection, out = db.data.find({"dataset": "x"}), tmp_path / "out"
    for change in (
        lambda: db.data.find({"n": 3}).update({"$set": {"n": 100}}),
        lambda: db.data.find({"n": 4}).delete(),
        lambda: db.data.find({"n": 5}).tag("new"),
    ):
        with pytest.raises(Stop):
            selection.export(out, format, shard_bytes=900, progress=stop_after(7))
        change()
        report = selection.export(out, format, shard_bytes=900)
        assert report.restarted is not None and "changed" in report.restarted and report.resumed == 0
        assert numbers(out, format) == [sample["n"] for sample in selection]
        shutil.rmtree(out)
    with pytest.raises(Stop):
        selection.export(out, format, shard_bytes=900, progress=stop_after(7))
    fill(db)  # another dataset does not matter, nor does a compaction
    db.data.compact("x")
    assert selection.export(out, format, shard_bytes=900).resumed >= 7


def test_an_export_is_of_one_state(db: TensorDB, tmp_path: Path) -> None:
    images(db)
    selection = db.data.find({"dataset": "x"})

    def progress(done: int, total: int, report: Any) -> None:
        if done == 1:
            db.data.find({"n": 11}).update({"$set": {"n": 0}})

    selection.export(tmp_path / "out", "jsonl", shard_bytes=1, progress=progress)
    assert numbers(tmp_path / "out", "jsonl") == list(range(12)) and selection.distinct("n") == list(range(11))


def test_blobs_that_a_compaction_has_moved_are_found_again(db: TensorDB, tmp_path: Path) -> None:
    with db.data.writer("x", schema={"raw": Bytes(), "n": Scalar("int")}) as writer:
        for n in range(40):
            writer.add(raw=str(n).encode() * 100, n=n)
    bound = db.data.find({"n": {"$lt": 4}}).bound
    plan = read_plan(bound, contents_of(bound, None, False), None, tmp_path, lambda: lambda row: None)
    (old,) = db.database["segments"].find()
    db.data.find({"n": {"$gte": 4}}).delete()
    db.data.compact("x")
    db.warehouse.blobs.store(0).delete(old["key"])
    rows = [row for run in plan.rows(plan.splits[0]) for row in run]
    assert [bytes(row.blobs["raw"]) for row in rows] == [str(n).encode() * 100 for n in range(4)]
    db.data.find({"n": 2}).delete()
    for segment in db.database["segments"].find({"_id": {"$ne": old["_id"]}}):
        db.warehouse.blobs.store(0).delete(segment["key"])
    with TensorDB(str(db.warehouse.address.uri), blobs=db.warehouse.blobs.roots[0]["url"]) as other:
        plan.warehouse = other.warehouse
        with pytest.raises(StorageError, match="was deleted while it was exported"):
            list(plan.rows(plan.splits[0]))


def test_one_exporter_at_a_time(db: TensorDB, tmp_path: Path) -> None:
    images(db)
    (tmp_path / "out.partial").mkdir()
    held = acquire(tmp_path / "out.partial/lock", LOCK_EX | LOCK_NB)
    try:
        with pytest.raises(StorageError, match=r"another process is exporting to .*/out"):
            db.data.find().export(tmp_path / "out")
    finally:
        close_fd(held)
    assert db.data.find().export(tmp_path / "out").count == 12


def test_what_is_there_is_not_replaced_unless_asked(db: TensorDB, tmp_path: Path) -> None:
    images(db)
    selection, out = db.data.find(), tmp_path / "out"
    selection.export(out, "jsonl")
    with pytest.raises(StorageError, match=r"out exists already.*overwrite=True"):
        selection.export(out, "jsonl")
    report = db.data.find({"n": 1}).export(out, "webdataset", overwrite=True)
    assert report.count == 1 and numbers(out, "webdataset") == [1]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(out)
    for name in ("mine", "file", "link"):
        with pytest.raises(StorageError, match="expected an earlier export"):
            selection.export(tmp_path / name, overwrite=True)
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial/letter.txt").write_text("dear")
    with pytest.raises(StorageError, match=r"other\.partial .*not of an export"):
        selection.export(tmp_path / "other", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "mine", "other.partial", "out"]
    assert (tmp_path / "mine/thesis.txt").exists() and (tmp_path / "other.partial/letter.txt").exists()


def test_an_unfinished_export_of_another_call_is_not_mixed_in(db: TensorDB, tmp_path: Path) -> None:
    images(db)
    out = tmp_path / "out"
    with pytest.raises(Stop):
        db.data.find().export(out, "jsonl", shard_bytes=900, progress=stop_after(5))
    for options in ({"format": "mds"}, {"format": "jsonl", "fields": ["n"]}, {"format": "jsonl", "split": None}):
        with pytest.raises(StorageError, match=r"out\.partial holds what another call .*format 'jsonl'"):
            db.data.find().export(out, **{"shard_bytes": 900, **options})
    report = db.data.find({"n": 1}).export(out, "jsonl", shard_bytes=900, overwrite=True)
    assert report.restarted == "another call had not finished" and numbers(out, "jsonl") == [1]


def test_a_full_disk_is_said_and_the_rest_follows(
    db: TensorDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, out = images(db), tmp_path / "out"
    for format in FORMATS:
        written = 0

        def write(fd: int, data: Any, real: Any = os.write) -> int:
            nonlocal written
            written += len(data)
            if written > 4000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(real(fd, data))

        with monkeypatch.context() as patch:
            patch.setattr(output.os, "write", write)
            with pytest.raises(StorageError, match=r"cannot write .*out: No space left on device; .*the same call"):
                db.data.find().export(out, format, shard_bytes=900)
        assert not out.exists()
        db.data.find().export(out, format, shard_bytes=900)
        assert [row["image"] for row in contents(out, format)] == stored
        shutil.rmtree(out)


HOSTILE = [
    "../x.png", "/etc/passwd", "a/../../b.png", "..", ".", "C:\\windows\\x.png", "nul.png", "CON", "a\x00b.png",
    "a\nb.png", ".hidden.png", "x.png", "X.PNG", "x.png/y.png", "é.png", "é.png", "metadata.jsonl", "manifest.json",
    "a" * 300 + ".png", "trailing. ", "\u202egnp.exe", "", "\\\\host\\share.png",
]  # fmt: skip


@pytest.mark.parametrize("format", ["folder", "coco"])
def test_hostile_names_stay_in_the_folder(db: TensorDB, tmp_path: Path, format: str) -> None:
    given = [name.replace("\0", "\x01") for name in HOSTILE]
    fields = {"image": Image(), "file_name": Scalar("str"), "class": Scalar("str"), "annotations": Scalar("json")}
    with db.data.writer("x", schema=fields) as writer:
        for n, name in enumerate(given):
            writer.add(image=picture(n), file_name=name, annotations=[], **{"class": name or "../.."})
    out = tmp_path / "deep/out"
    db.data.find().export(out, format)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    found = manifest(out)
    files = [entry["path"] for entry in found["files"]]
    assert len({path.casefold() for path in files}) == len(files) == len(given) + 1
    assert not [path for path in files if {"", ".", ".."} & set(path.split("/"))]
    assert all(ord(char) >= 32 for path in files for char in path)
    if format == "folder":
        rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
        images = [(out / row["file_name"]).read_bytes() for row in rows]
    else:
        rows = json.loads((out / "annotations/instances.json").read_text())["images"]
        images = [(out / "images" / row["file_name"]).read_bytes() for row in rows]
    assert images == [picture(n) for n in range(len(given))]
    # What a name was is not lost.
    assert [row.get("original_file_name", row["file_name"]) for row in rows] == given


def test_hostile_splits_stay_in_the_folder(db: TensorDB, tmp_path: Path) -> None:
    values = ["../up", "a/b", "Train", "train", "manifest.json", "..", "", "a b", None]
    with db.data.writer("x", schema={"image": Image(), "split": Scalar("str", optional=True)}) as writer:
        for n, value in enumerate(values):
            writer.add(image=picture(n), split=value)
    for format in FORMATS:
        db.data.find().export(tmp_path / format, format)
        assert sorted(row["image"] for row in contents(tmp_path / format, format)) == sorted(map(picture, range(9)))
        names = manifest(tmp_path / format)["splits"]
        assert len({name.casefold() for name in names}) == 9 and set(names.values()) == {1}
        assert {"Train", "train~2", "unassigned", "a_b", "a_b~2"} <= set(names)
    with db.data.writer("x") as writer:
        writer.add_many(image=[picture(0)] * 101, split=[str(n) for n in range(101)])
    with pytest.raises(ValueError, match="more than 100 values"):
        db.data.find().export(tmp_path / "no", "jsonl")


def test_names() -> None:
    assert safe_path("a/./b/../c.png") == "a/b/c.png" and safe_path("/..//") is None
    assert safe_part("aux.txt") == "_aux.txt" and safe_part(" . ") == "_" and safe_part(".a") == "_a"
    assert len(safe_part("ü" * 300 + ".jpeg").encode()) <= 200 and safe_part("ü" * 300 + ".jpeg").endswith(".jpeg")
    names = Names(["b/c"])
    assert [names.unique(name) for name in ("a.png", "A.png", "a.png", "a.png/x", "b", "B/C")] == [
        "a.png", "A~2.png", "a~3.png", "a.png_x", "b~2", "B/C~2",
    ]  # fmt: skip


def test_wrong_values_of_another_tool_are_named_before_anything_is_written(db: TensorDB, tmp_path: Path) -> None:
    images(db)
    db.database["data"].update_one({"n": 11}, {"$set": {"n": "eleven"}})
    with pytest.raises(SchemaError, match=r"sample [0-9a-f]{24} of 'x', field 'n': expected int, found str 'eleven'"):
        db.data.find().export(tmp_path / "out", "jsonl", shard_bytes=1)
    db.database["data"].update_one({"n": "eleven"}, {"$set": {"n": 11, "tags": ["a", 3]}})
    for format in FORMATS:
        with pytest.raises(SchemaError, match=r"sample [0-9a-f]{24} of 'x': expected a list of text as tags"):
            db.data.find().export(tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_blob_is_named(db: TensorDB, tmp_path: Path) -> None:
    images(db)
    (segment,) = db.database["segments"].find()
    path = Path(db.warehouse.blobs.store(0).local_path(segment["key"]) or "")
    data = bytearray(path.read_bytes())
    at = data.index(picture(3))
    data[at + 50] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    with pytest.raises(StorageError, match="'image'"):
        db.data.find().export(tmp_path / "out", "webdataset")
    assert not (tmp_path / "out").exists()


SCRIPT = """
import os, signal, sys
from tensordb_data import TensorDB
address, blobs, out, format, left = sys.argv[1:]
left = int(left)
real = os.write
def count(*_):
    global left
    left -= 1
    if left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
for name in ("write", "rename", "replace", "mkdir", "unlink", "rmdir", "fsync"):
    def call(*args, real=getattr(os, name), **kwargs):
        count()
        return real(*args, **kwargs)
    setattr(os, name, call)
with TensorDB(address, blobs=blobs) as db:
    db.data.find({"dataset": "x"}).export(out, format, shard_bytes=2000, overwrite=True)
"""


@pytest.mark.timeout(900)  # with MATRICES=all
def test_killed_anywhere_it_is_complete_or_goes_on(db: TensorDB, mongo_uri: str, tmp_path: Path) -> None:
    images(db)
    blobs = db.warehouse.blobs.roots[0]["url"]
    chosen = random.Random(8)
    for format in FORMATS if ALL else ("folder", "mds"):
        out = tmp_path / format
        db.data.find({"n": {"$gt": 8}}).export(out, format)
        points = range(1, 180, 8) if ALL else [chosen.randrange(5, 120)]
        for point in points:
            arguments = [sys.executable, "-c", SCRIPT, mongo_uri, blobs, str(out), format, str(point)]
            code = subprocess.run(arguments, env={**os.environ}, timeout=120).returncode
            assert code in (0, -signal.SIGKILL)
            # Whatever has its name is complete: the old one or the new one.
            assert numbers(out, format) in ([9, 10, 11], list(range(12)))
            db.data.find({"dataset": "x"}).export(out, format, shard_bytes=2000, overwrite=True)
            assert numbers(out, format) == list(range(12))
            assert [path.name for path in tmp_path.iterdir() if path.name.startswith(format)] == [format]


@pytest.mark.parametrize("step", ["begin", "finish", "publish"])
def test_an_end_in_between_is_taken_up(
    db: TensorDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from tensordb_data.export.work import WorkFolder

    images(db)
    out = tmp_path / "out"

    def fail(*_: Any, **__: Any) -> None:
        raise Stop

    names = {"begin": "begin", "finish": "publish", "publish": "discard"}
    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, names[step], fail)
        with pytest.raises(Stop):
            db.data.find().export(out, "parquet", shard_bytes=900)
    report = db.data.find().export(out, "parquet", shard_bytes=900)
    assert report.count == 12 and report.resumed == (0 if step == "begin" else 12)
    assert numbers(out, "parquet") == list(range(12)) and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_arrays_come_through_a_compressed_live_writer(db: TensorDB, tmp_path: Path) -> None:
    schema = {"a": Array("float32", (64,)), "n": Scalar("int")}
    with db.data.writer("x", schema=schema, live=True, compression="zstd") as writer:
        writer.add(a=[0.5] * 64, n=0)
    db.data.find().export(tmp_path / "out", "mds")
    (row,) = contents(tmp_path / "out", "mds")
    assert row["a"].tolist() == [0.5] * 64

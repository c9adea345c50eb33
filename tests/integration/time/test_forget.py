"""What is forgotten is gone from every file but those of the server."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import zstandard
from bson import ObjectId
from typer.testing import CliRunner

from tensordb_data import TensorDB
from tensordb_data.blobs.segments.read import read_segment
from tensordb_data.cli.main import app
from tensordb_data.errors import NotFoundError, QueryError
from tensordb_data.time.forget import forget as steps
from tests.integration.time import killed

SECRET = "Erika-Mustermann-7731"
PIXELS = np.arange(200, 232, dtype=np.uint8)[::-1].copy()


def fill(db: TensorDB, n: int = 40) -> list[ObjectId]:
    with db.data.writer("d") as writer:
        return [
            writer.add(
                image=PIXELS if i == 7 else np.full(32, i, np.uint8), name=SECRET if i == 7 else f"n{i}", label=i
            )
            for i in range(n)
        ]


def traces(db: TensorDB, folder: Path) -> list[str]:
    """Where anything of the sample is found: files as they are, unpacked documents of segments, and the index."""
    found = []
    sentinels = (SECRET.encode(), PIXELS.tobytes())
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for at in (at for at in range(len(data)) if data[at : at + 4] == b"\x28\xb5\x2f\xfd"):
                try:
                    data += zstandard.ZstdDecompressor().decompressobj().decompress(data[at:])
                except zstandard.ZstdError:
                    continue
            found += [str(path) for sentinel in sentinels if sentinel in data]
    for name in db.database.list_collection_names():
        found += [
            name for doc in db.database[name].find() if SECRET in str(doc) or PIXELS.tobytes() in str(doc).encode()
        ]
    for segment in db.database["segments"].find():
        documents = read_segment(db.warehouse.blobs.store(segment["root"]), segment["key"])[1]
        found += [f"segment {segment['_id']}" for sample in documents.samples if SECRET in str(sample)]
    return found


def test_nothing_is_left(db: TensorDB, warehouse_dir: Path) -> None:
    ids = fill(db)
    db.data.find({"name": SECRET}).update({"$set": {"label": 99}})
    db.data.find({"label": {"$lt": 3}}).update({"$set": {"label": 50}})
    db.data.feedback("run", ids[6:9], loss=[1.0, 2.0, 3.0])
    list(db.data.find({"dataset": "d"}).stream(batch_size=8, passes=1))
    db.data.find({"dataset": "d", "label": 5}).delete()
    assert traces(db, warehouse_dir), "the sentinels are found before"
    sel = db.data.find({"name": SECRET})
    assert db.data.forget(sel, reason="GDPR 1", dry_run=True).samples == 1 and sel.count() == 1
    report = db.data.forget(sel, reason="GDPR 1")
    assert (report.samples, report.segments, report.moved) == (1, 1, 38)
    assert report.changes >= 2 and report.not_reached
    assert traces(db, warehouse_dir) == []
    left = {sample["name"]: sample["image"] for sample in db.data.find({"dataset": "d"})}
    assert len(left) == 38 and all((left[f"n{i}"] == i).all() for i in range(40) if i not in (5, 7))
    kept = b"".join(bytes(doc.get("ids", b"")) for doc in db.database["feedback"].find())
    assert ids[6].binary in kept and ids[7].binary not in kept
    with pytest.raises(NotFoundError):
        db.data.history(ids[7])
    (record,) = db.data.forgotten()
    assert (record.reason, record.count, record.done) == ("GDPR 1", 1, True)
    assert str(ids[7]) not in str(list(db.database["forgotten"].find()))
    assert not db.search(SECRET) and db.search("n8")
    assert db.fsck().findings == []


def test_frozen_sets_are_named(db: TensorDB) -> None:
    fill(db)
    db.data.find({"dataset": "d", "label": {"$lt": 5}}).freeze("v1")
    for label in (3, 7):
        with pytest.raises(QueryError, match="v1"):
            db.data.forget(db.data.find({"label": label}), reason="x")
    assert any(
        "v1" in left for left in db.data.forget(db.data.find({"label": 7}), reason="x", dry_run=True).not_reached
    )
    db.data.frozen("v1").drop()
    assert db.data.forget(db.data.find({"label": 3}), reason="x").samples == 1


@pytest.mark.parametrize(
    "step", ["delete_samples", "holding", "rewrite", "blank_changes", "renew_words", "drop_feedback", "empty_cache"]
)
def test_stopped_before_any_step(db: TensorDB, warehouse_dir: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    fill(db)

    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(steps, step, stop)
        db.data.forget(db.data.find({"name": SECRET}), reason="x")
    assert [record.done for record in db.data.forgotten()] == [False]
    if step == "rewrite":
        db.data.rename("d", "e")
        db.data.rename("e", "f")
        db.data.rename("f", "d")
    elif step == "holding":
        db.data.rename("d", "e")
    assert db.data.forget(db.data.find({"name": SECRET}), reason="x").samples == 1
    assert [record.done for record in db.data.forgotten()] == [True]
    assert traces(db, warehouse_dir) == [] and db.data.find({}).count() == 39


def test_files_in_place_are_named(mongo_uri: str, warehouse_dir: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        cv2.imwrite(str(photos / f"{number}.png"), np.full((8, 8), number, np.uint8))
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs", roots={"photos": photos}) as db:
        assert db.data.ingest(photos, "d", in_place=True).added == 4
        report = db.data.forget(db.data.find({"path": "2.png"}), reason="x")
        assert report.files == ["photos/2.png"] and (photos / "2.png").exists() and report.moved == 3
        assert {sample["path"]: int(sample["image"].max()) for sample in db.data.find({"dataset": "d"})} == {
            "0.png": 0, "1.png": 1, "3.png": 3,
        }  # fmt: skip
        assert "2.png" not in str(list(db.database["forgotten"].find()))


def test_a_rebuild_does_not_bring_it_back(db: TensorDB) -> None:
    fill(db)
    db.data.forget(db.data.find({"name": SECRET}), reason="x")
    for name in db.database.list_collection_names():
        if name != "warehouse":
            db.database.drop_collection(name)
    db.rebuild()
    assert db.data.find({"dataset": "d"}).count() == 39 and not db.data.find({"name": SECRET}).count()


def test_command(db: TensorDB, mongo_uri: str, warehouse_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db, 10)
    monkeypatch.setenv("TENSORDB_BLOBS", str(warehouse_dir / "blobs"))

    def run(*words: str, status: int = 0) -> str:
        found = CliRunner().invoke(app, [*words, "--db", mongo_uri])
        assert found.exit_code == status, found.output
        return found.output

    one = ("forget", "--dataset", "d", "--filter", '{"label": 7}', "--reason", "GDPR 1")
    assert "1 samples would be forgotten" in run(*one, "--dry-run") and db.data.find({"label": 7}).count() == 1
    run(*one, status=1)  # nobody has said yes
    assert "embedded" in run(*one, "--yes", "--compact", status=1) and db.data.find({"label": 7}).count() == 1
    assert json.loads(run(*one, "--yes", "--json"))["samples"] == 1
    assert "GDPR 1" in run("forgotten") and json.loads(run("forgotten", "--json"))["count"] == 1
    run("forget", "--reason", "x", status=2)  # it says of what
    assert db.data.find({"dataset": "d"}).count() == 9


FORGET = 'db.data.forget(db.data.find({"name": given[0]}), reason="x")'


def test_killed_at_any_command(db: TensorDB, mongo_uri: str, warehouse_dir: Path) -> None:
    """At whatever command to the server: the next call ends what was begun."""

    fill(db)
    count = killed.run(FORGET, mongo_uri, warehouse_dir, 0, SECRET)
    for point in killed.some_points(count, "forget", 1):
        db.data.find({"dataset": "d"}).delete()
        fill(db)
        killed.run(FORGET, mongo_uri, warehouse_dir, point, SECRET)
        long_ago = {"$set": {"until": dt.datetime(2020, 1, 1)}}  # or wait until the lease of the killed one has run out
        db.database["mutations"].update_many({}, long_ago)
        db.data.forget(db.data.find({"name": SECRET}), reason="x")
        assert all(record.done for record in db.data.forgotten())
        assert db.data.find({"dataset": "d"}).count() == 39
        assert traces(db, warehouse_dir) == [], point

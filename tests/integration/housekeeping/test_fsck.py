"""fsck: a warehouse that is whole has no findings; each fault is one, and names what it hits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tensordb_data.cli.main import app
from tensordb_data.errors import TensorDBError
from tensordb_data.housekeeping.fsck import report as module
from tensordb_data.tensors import write as write_module


@pytest.fixture
def full(db):
    """Samples in segments and in documents, two sets that share a tensor, and one deletion of each."""
    with db.data.writer("a") as writer:
        ids = writer.add_many(x=np.arange(20, dtype="u1").repeat(500).reshape(20, 500), t=["", "ab"] * 10)
    with db.data.writer("a", live=True) as writer:
        writer.add(x=np.full(500, 7, "u1"), t="inline")
    db.data.find({"_id": ids[0]}).delete()
    for step in (1, 2, 3):
        db.params.save({"w": np.full(1000, 10.0 + step), "shared": np.ones(1000)}, run="r", step=step)
    db.params.find({"step": 3}).delete()
    return db


def path(db, folder, number=0):
    keys = sorted(key for key, _ in db.warehouse.blobs.store().list(f"{folder}/"))
    return db.warehouse.blobs.store().local_path(keys[number])


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def kinds(db):
    return sorted(finding.kind for finding in db.fsck().findings)


def test_a_whole_warehouse(full):
    seen = []
    report = full.fsck(progress=lambda *args: seen.append(args))
    assert report.findings == []
    assert (report.samples, report.segments, report.sets) == (20, 1, 2) and report.tensors == 7
    assert report.bytes > 20 * 500
    assert {what for what, _, _ in seen} == {
        "segments",
        "data",
        "tensors",
        "params",
        "architectures",
        "logs",
        "frozen",
        "tombstones",
    }
    assert all(done <= total for _, done, total in seen)
    full.gc(grace=0)
    assert kinds(full) == []


def test_a_damaged_blob_names_sample_and_field(full):
    sample = full.data.find({"dataset": "a"}, limit=1).first()
    flip(path(full, "segments"), sample._doc["_tdb"]["b"]["x"]["o"] + 3)
    (found,) = full.fsck().findings
    assert found.kind == "damaged blob" and str(sample.id) in found.where and "'x'" in found.where


def test_a_quick_look_compares_sizes(full):
    report = full.fsck(quick=True)
    assert report.findings == [] and (report.samples, report.segments, report.tensors, report.sets) == (20, 1, 7, 2)
    assert report.bytes < full.fsck().bytes
    with open(path(full, "segments"), "ab") as file:
        file.write(b"more")
    assert [finding.kind for finding in full.fsck(quick=True).findings][:1] == ["damaged object"]


def test_a_damaged_blob_of_a_deleted_sample_hurts_nobody(full):
    flip(path(full, "segments"), 8)
    assert kinds(full) == []


def test_a_damaged_blob_in_a_document(full):
    full.database["data"].update_one({"_tdb.b.x.d": {"$exists": True}}, {"$set": {"_tdb.b.x.d": b"1" * 500}})
    (found,) = full.fsck().findings
    assert found.kind == "damaged blob" and "expected" in found.what


def test_a_segment_that_is_gone(full):
    path(full, "segments").unlink()
    found = kinds(full)
    assert found.count("missing object") == 1 and found.count("dangling reference") == len(found) - 1 >= 19


def test_a_segment_that_was_cut_off(full):
    file = path(full, "segments")
    file.write_bytes(file.read_bytes()[:-1])
    assert kinds(full)[0] == "damaged object"


def test_a_reference_to_no_blob(full):
    full.database["data"].update_one({"_tdb.s": 3}, {"$inc": {"_tdb.b.x.o": 1}})
    (found,) = full.fsck().findings
    assert found.kind == "dangling reference" and "no blob of 500 bytes" in found.what


def test_a_damaged_tensor_names_its_sets(full):
    row = full.database["tensors"].find_one()
    shared = full.database["tensors"].find_one({"_id.h": write_module.digest(memoryview(np.ones(1000).tobytes()))})
    flip(full.warehouse.blobs.store(row["root"]).local_path(shared["key"]), shared["o"])
    (found,) = full.fsck().findings
    assert found.kind == "damaged blob" and "at step 1" in found.what and "at step 2" in found.what


def test_an_object_of_tensors_that_is_gone(full):
    path(full, "params").unlink()
    (found,) = full.fsck().findings
    assert found.kind == "missing object" and "run 'r'" in found.what


def test_a_tensor_that_the_index_has_lost(full):
    full.database["tensors"].delete_one({"_id.h": write_module.digest(memoryview(np.ones(1000).tobytes()))})
    assert kinds(full) == ["dangling reference"] * 2


def test_an_object_that_nobody_names(full):
    full.warehouse.blobs.store().put("params/strange.safetensors", [b"1"])
    (found,) = full.fsck().findings
    assert found.kind == "unknown object"


def test_what_a_dead_saver_left(full, monkeypatch):
    def dies(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(write_module, "_enter", dies)
        full.params.save({"w": np.full(1000, 9.0)}, run="r", step=9)
    assert kinds(full) == []  # its lease names the object, and the next gc removes it
    full.database["segments"].update_one({}, {"$set": {"state": "gone"}})
    assert "leftover" in kinds(full)


def test_the_command(full, mongo_uri):
    def run(*more):
        return CliRunner().invoke(app, ["fsck", *more], env={"TENSORDB": mongo_uri})

    clean = run()
    assert clean.exit_code == 0 and "no findings" in clean.stdout, clean.output
    path(full, "params").unlink()
    found = run("--json")
    assert found.exit_code == 1 and json.loads(found.stdout)["findings"][0]["kind"] == "missing object"
    assert run().exit_code == 1


def test_many_findings_are_counted(full, mongo_uri, monkeypatch):
    path(full, "segments").unlink()
    total = len(full.fsck().findings)
    monkeypatch.setattr(module, "LISTED", 3)
    report = full.fsck()
    assert len(report.findings) == 3 and report.more == total - 3
    shown = CliRunner().invoke(app, ["fsck"], env={"TENSORDB": mongo_uri})
    assert shown.exit_code == 1 and f"{total} findings" in shown.stdout


ODD = {
    "segments": [
        {"root": 77}, {"root": "text"}, {"key": 5}, {"key": "../x"}, {"bytes": "text"}, {"bytes": -1}, {"bytes": None},
        {"index": None}, {"index": [-5, 3]}, {"index": ["text", 3]}, {"index": [3]}, {"index": 5},
        {"index": [0, 2**60]},
    ],
    "tensors": [
        {"root": 77}, {"root": "text"}, {"key": 5}, {"o": -1}, {"o": "text"}, {"o": 2**60}, {"n": None}, {"n": 2**60},
        {"n": -1}, {"z": "text"}, {"z": 2**60},
    ],
    "data": [{"_tdb.b": 5}, {"_tdb.b.x": 5}, {"_tdb.b.x.o": "text"}, {"_tdb.b.x.o": -1}, {"_tdb.b.x.k": 5},
             {"_tdb.b.x": {}}, {"_tdb.b.x.n": 2**60}, {"_tdb.b.x": {"d": "text", "n": 4, "x": 1}},
             {"_tdb.b.x": {"d": b"b", "n": 1}}, {"_tdb.b.x": None}],
    "params": [{"_tdb.tensors": 5}, {"_tdb.tensors": ["text"]}, {"_tdb.tensors": [5]}],
    "tombstones": [{"root": 77}, {"key": 5}, {"root": None}],
}  # fmt: skip

OURS = {"damaged blob", "damaged document", "damaged object", "dangling reference", "foreign key", "missing object",
        "unopened root"}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_malformed_documents_are_found_one_by_one(full, name):
    documents = full.database[name]
    full.warehouse.blobs.store().put("params/unknown", [b"found last of all"])
    for change in ODD[name]:
        was = documents.find_one(sort=[("_tdb.s", 1), ("_id", 1)])
        documents.update_one({"_id": was["_id"]}, {"$set": change})
        found = kinds(full)
        assert set(found) & OURS and "unknown object" in found, (change, found)
        if name == "data" and "_tdb.b" not in change:
            with pytest.raises(TensorDBError):
                [sample["x"] for sample in full.data.find({"dataset": "a"}).all()]
        documents.replace_one({"_id": was["_id"]}, was)
    assert kinds(full) == ["unknown object"]

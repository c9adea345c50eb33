"""One set by several processes: visible when all have stored their parts, and as any other set from then on."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import CheckpointError, CorruptBlobError, StorageError, TensorDB
from tensordb_data.params import read_boxes, shared
from tensordb_data.params.load import load_parts
from tensordb_data.params.parameter_set import set_fields
from tensordb_data.params.save import save_parameters
from tensordb_data.params.shared import Share
from tensordb_data.tensors.pieces import Box, LocalPiece
from tensordb_data.tensors.snapshot import view
from tests.integration.housekeeping.test_rebuild import lose

W = np.arange(30 * 8, dtype="<f4").reshape(30, 8)
B = np.arange(5, dtype="<f4")  # so small that it lies in the structure


def state(rank: int, step: float = 0) -> dict[str, object]:
    """What one of two processes has: 20 and 10 rows of `w`, 5 and no elements of `b`, and what is not divided."""
    rows = Box((20 * rank, 0), (20 - 10 * rank, 8))
    return {
        "model": {
            "w": LocalPiece((W + step)[20 * rank :][:20], W.shape, rows),
            "b": LocalPiece(B[5 * rank :], B.shape, None if rank else Box((0,), (5,))),
            "plain": np.full(100, step),
        },
        "training": {"step": step},
    }


def save(db, set_id, rank, step=0.0, count=2):
    """Save what one process has."""
    snapshot = view(state(rank, step))
    if rank:
        leaves = [leaf.piece is not None and leaf.piece.box is not None for leaf in snapshot.leaves]
        snapshot = type(snapshot)(
            None,
            tuple(leaf for leaf, kept in zip(snapshot.leaves, leaves, strict=True) if kept),
            tuple(data for data, kept in zip(snapshot.data, leaves, strict=True) if kept),
        )
    fields = {**set_fields("r", int(step), [], {}), "lineage": {}}
    return save_parameters(db.warehouse, snapshot, fields, share=Share(set_id, rank, count))


def both(db, step=0.0):
    """Save by both processes; the set."""
    set_id = ObjectId()
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda rank: save(db, set_id, rank, step), range(2)))
    assert [report.id for report in done] == [set_id] * 2
    return db.params.find({"_id": set_id}).first()


def objects(folder) -> list[str]:
    return sorted(path.name for path in (folder / "blobs" / "params").rglob("*") if path.is_file())


def equal(found):
    step = found.step
    loaded = found.load()
    return (
        np.array_equal(loaded["w"], W + step)
        and np.array_equal(loaded["b"], B)
        and np.array_equal(loaded["plain"], np.full(100, step))
        and found.load("training") == {"step": step}
    )


def test_the_set_is_visible_when_all_have_stored_their_parts(db, monkeypatch):
    looked, go_on = threading.Event(), threading.Event()
    published = shared.SharedSave.publish

    def publish(self, table):
        looked.set()
        assert go_on.wait(30)
        published(self, table)

    monkeypatch.setattr(shared.SharedSave, "publish", publish)
    set_id = ObjectId()
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(save, db, set_id, rank) for rank in range(2)]
        assert looked.wait(30)  # all bytes are stored
        assert db.params.find().count() == 0
        db.gc(grace=0), db.gc(grace=0)  # nothing is removed that a save relies on
        go_on.set()
        assert [each.result().id for each in done] == [set_id] * 2
    found = db.params.find().first()
    assert equal(found) and found.nbytes == W.nbytes + B.nbytes + 800
    assert db.database["leases"].count_documents({}) == 0


def test_it_is_as_any_other_set(db, tmp_path, mongo_uri, warehouse_dir):
    found = both(db, 3.0)
    both(db, 4.0)
    db.gc(grace=0), db.gc(grace=0)
    assert not db.fsck().findings
    assert equal(found)
    written = found.export(tmp_path / "w.safetensors")
    assert written.tensors == 3
    again = db.params.find({"_id": db.params.import_file(tmp_path / "w.safetensors").id}).first()
    assert np.array_equal(again.load()["w"], W + 3)
    db.backup(tmp_path / "backup")
    lose(db)
    report = db.rebuild()
    assert report.sets == 3 and not report.skipped
    assert all(equal(one) for one in db.params.find({"run": "r"}))
    server, options = mongo_uri.rsplit("?", 1)
    other = f"{server}b?{options}"
    TensorDB.restore(tmp_path / "backup", other, blobs=f"file://{tmp_path}/restored")
    try:
        with TensorDB(other, blobs=f"file://{tmp_path}/restored") as restored:
            assert all(equal(one) for one in restored.params.find({"run": "r"}))
    finally:
        db.database.client.drop_database(server.rsplit("/", 1)[1] + "b")
    db.params.find().delete(all=True)
    db.gc(grace=0), db.gc(grace=0)
    assert objects(warehouse_dir) == []


def test_only_pieces_that_have_some_of_a_part_are_read(db, monkeypatch):
    found = both(db)
    read = read_boxes.read_leaves
    sizes: list[int] = []
    monkeypatch.setattr(
        read_boxes, "read_leaves", lambda *args: sizes.extend(args[3].values()) or read(*args)
    )  # fmt: skip

    class Third:
        """What load_parts knows of a DTensor."""

    def take(offset, rows):
        sizes.clear()
        box = Box((offset, 0), (rows, 8))
        monkeypatch.setattr("tensordb_data.params.load.box_of", lambda tensor: box)
        monkeypatch.setattr("tensordb_data.params.load.divided_like", lambda tensor, local: local)
        parts = load_parts(db.warehouse, found._doc, ["model"], "numpy", lambda parts: [(parts["model"]["w"], Third())])
        assert np.array_equal(parts["model"]["w"], W[offset : offset + rows])
        return [size for size in sizes if size > 100]

    assert take(0, 20) == [20 * 32]
    assert take(25, 5) == [10 * 32]
    assert take(15, 10) == [20 * 32, 10 * 32]


def test_of_a_process_that_died_nothing_is_visible_and_gc_removes_what_was_stored(db, warehouse_dir, monkeypatch):
    monkeypatch.setattr(shared, "_SILENT", 0.2)
    with pytest.raises(CheckpointError, match=r"process 1 has said nothing for 0\.2 seconds: the set was not saved"):
        save(db, ObjectId(), 0)
    with pytest.raises(CheckpointError, match="process 0 has said nothing"):
        save(db, ObjectId(), 1)
    assert db.params.find().count() == 0 and len(objects(warehouse_dir)) == 2
    db.gc(grace=0), db.gc(grace=0)
    assert objects(warehouse_dir) == []
    assert db.database["leases"].count_documents({}) == 0


@pytest.mark.parametrize("count", [2, 3])
def test_an_error_of_one_is_told_to_the_others_at_once(db, monkeypatch, count):
    set_id, last, publish = ObjectId(), count - 1, shared.SharedSave.publish

    def fails(self, table):
        if self._share.rank == last:
            raise StorageError("no room")
        publish(self, table)

    monkeypatch.setattr(shared.SharedSave, "publish", fails)
    with ThreadPoolExecutor(count) as pool:
        *others, failed = (pool.submit(save, db, set_id, rank, count=count) for rank in range(count))
        with pytest.raises(StorageError, match="no room"):
            failed.result()
        for other in others:
            with pytest.raises(
                CheckpointError, match=f"process {last} could not store its part of the set: StorageError: no room"
            ):
                other.result()
    assert db.params.find().count() == 0


def test_one_process_alone_cannot_save_its_part(db):
    with pytest.raises(CheckpointError, match=r"'model/model/w' of shape \(30, 8\) is divided over processes"):
        db.params.save(state(0), run="r")
    assert db.params.find().count() == 0


def test_damage_names_the_tensor(db, warehouse_dir):
    found = both(db)
    row = db.database["tensors"].find_one({"n": 10 * 32})
    path = warehouse_dir / "blobs" / row["key"]
    data = bytearray(path.read_bytes())
    data[row["o"] + 5] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(CorruptBlobError, match="model/w"):
        found.load()
    assert any("damaged blob" in str(one) and "run 'r'" in str(one) for one in db.fsck().findings)

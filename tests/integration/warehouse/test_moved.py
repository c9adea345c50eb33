"""The folder of a warehouse, or of its blobs, goes while a writer is open."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tensordb_data import StorageError, TensorDB

SAYS = "moved, deleted or replaced while it was open, so nothing more is written"


@pytest.mark.parametrize("live", [False, True])
def test_the_folder_of_the_warehouse_moves(warehouse_dir: Path, live: bool) -> None:
    here, there = warehouse_dir / "w", warehouse_dir / "v"
    with TensorDB(here) as db:
        writer = db.data.writer("d", flush_every=None, live=live)
        writer.add(x=np.arange(4), n=0)
        writer.flush()
        here.rename(there)
        writer.add(x=np.arange(4), n=1)
        with pytest.raises(StorageError, match=f"{here} is not there any more: it was {SAYS}"):
            writer.flush()
        assert not here.exists()
        (here / "blobs").mkdir(parents=True)
        with pytest.raises(StorageError, match=f"{here}.* is another folder now: it was {SAYS}"):
            db.params.save({"w": np.ones(3)}, run="r")
        assert list((here / "blobs").iterdir()) == []
        shutil.rmtree(here)
        there.rename(here)
        writer.add(x=np.arange(4), n=2)
        writer.close()
    with TensorDB(here) as db:
        assert [(sample["n"], sample["x"].tolist()) for sample in db.data.find()] == [(n, [0, 1, 2, 3]) for n in (0, 2)]
        assert db.fsck().findings == [] and db.params.find().count() == 0


def test_the_folder_goes_during_a_commit(warehouse_dir: Path) -> None:
    """The server of a deleted folder goes on answering, but what it says is not true any more."""
    here = warehouse_dir / "w"
    with TensorDB(here) as db:

        def body(session: object) -> None:
            db.database["things"].insert_one({}, session=session)  # type: ignore[arg-type]
            here.rename(warehouse_dir / "v")

        with pytest.raises(StorageError, match=SAYS):
            db.warehouse.index.transaction(body)
        (warehouse_dir / "v").rename(here)


def test_the_folder_of_the_blobs_goes(db: TensorDB, warehouse_dir: Path) -> None:
    writer = db.data.writer("d", flush_every=None)
    writer.add(x=np.arange(4), n=0)
    writer.flush()
    (warehouse_dir / "blobs").rename(warehouse_dir / "elsewhere")
    writer.add(x=np.arange(4), n=1)
    with pytest.raises(StorageError, match=f"{warehouse_dir}/blobs is not there any more: it was {SAYS}"):
        writer.flush()
    assert not (warehouse_dir / "blobs").exists() and db.data.find().count() == 1
    (warehouse_dir / "elsewhere").rename(warehouse_dir / "blobs")
    writer.add(x=np.arange(4), n=2)
    writer.close()
    assert [(sample["n"], sample["x"].tolist()) for sample in db.data.find()] == [(n, [0, 1, 2, 3]) for n in (0, 2)]

"""Frozen sets of samples whose files stay where they are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tensordb_data import TensorDB


def test_they_are_read_compared_and_kept(mongo_uri: str, warehouse_dir: Path, tmp_path: Path) -> None:
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for number in range(6):
        cv2.imwrite(str(photos / f"{number}.png"), rng.integers(0, 256, (8, 8), np.uint8))
    blobs = f"file://{warehouse_dir}/blobs"
    with TensorDB(mongo_uri, blobs=blobs, roots={"photos": photos}) as db:
        assert db.data.ingest(photos, "d", in_place=True).added == 6
        assert db.data.ingest(photos, "copies").added == 6
        there, copies = db.data.find({"dataset": "d"}), db.data.find({"dataset": "copies"})
        frozen = there.freeze("v1")
        before = {sample["path"]: sample["image"] for sample in there.all()}
        assert there.adopt().samples == 6
        assert not db.data.diff("v1", there).changed, "the same bytes, in another place"
        overlap = db.data.overlap(copies, frozen)
        assert len(overlap.by_id) == 0 and len(overlap.by_content) == 6
        there.delete()
        db.gc(grace=0)
        db.gc(grace=0)
        found = {path: image for batch in frozen.stream(batch_size=4, passes=1)
                 for path, image in zip(batch["path"], batch["image"], strict=True)}  # fmt: skip
        assert found.keys() == before.keys()
        assert all(np.array_equal(found[path], before[path]) for path in before)
        assert len(list(photos.iterdir())) == 6

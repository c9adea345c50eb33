"""Data and labels, as in the interface by example."""

from __future__ import annotations

import numpy as np
import pytest

from tensordb_data import Array, SchemaError, TensorDB


def test_writing_and_relabelling(db: TensorDB) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (28, 28), np.uint8)
    images, labels = rng.integers(0, 255, (100, 28, 28), np.uint8), rng.integers(0, 10, 100)
    with db.data.writer("fashion") as w:
        w.add(image=image, label=3, split="train", tags=["grey"])
        w.add_many(image=images, label=labels, split="train")
        w.flush()
        assert db.data.find({"dataset": "fashion"}).count() == 101
    samples = db.data.find({"dataset": "fashion"}).all()
    np.testing.assert_array_equal(samples[0]["image"], image)
    np.testing.assert_array_equal(np.stack([sample["image"] for sample in samples[1:]]), images)
    assert [sample["label"] for sample in samples] == [3, *labels.tolist()]
    assert samples[0].tags == ["grey"] and samples[0]["split"] == "train"
    assert db.data.find({"dataset": "fashion", "tags": "grey"}).update({"$set": {"label": 7}}) == 1
    assert db.data.find({"tags": "grey"}).first()["label"] == 7
    with pytest.raises(SchemaError, match="dataset 'fashion', field 'label': expected int, found str"):
        db.data.find({"dataset": "fashion"}).update({"$set": {"label": "seven"}})
    with pytest.raises(SchemaError, match="blobs are immutable"):
        db.data.find({"dataset": "fashion"}).update({"$set": {"image": 3}})


def test_a_given_schema_and_compression(db: TensorDB) -> None:
    rng = np.random.default_rng(0)
    scans = [rng.integers(-1000, 1000, (n, 512, 512), np.int16) for n in (1, 3)]
    schema = {"scan": Array("int16", (None, 512, 512)), "mask": Array("uint8")}
    with db.data.writer("ct", schema=schema, compression="zstd:3") as w:
        for scan in scans:
            w.add(scan=scan, mask=np.zeros(scan.shape[1:], np.uint8))
    for sample, scan in zip(db.data.find({"dataset": "ct"}), scans, strict=True):
        np.testing.assert_array_equal(sample["scan"], scan)
        assert sample["mask"].shape == (512, 512) and not sample["mask"].any()
    with (
        db.data.writer("ct") as w,
        pytest.raises(SchemaError, match=r"dataset 'ct', field 'scan': expected int16 of shape"),
    ):
        w.add(scan=np.zeros((2, 256, 512), np.int16), mask=np.zeros((2, 2), np.uint8))

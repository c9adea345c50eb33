"""NPZ and NPY files, row by row."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensordb_data import Array, SchemaError, TensorDB
from tests.media.recordings import picture


def test_arrays_that_belong_together_are_taken(db: TensorDB, tmp_path: Path) -> None:
    file = tmp_path / "mnist.npz"
    arrays = {"x_train": np.arange(60, dtype=np.uint8).reshape(5, 3, 4), "y_train": np.arange(5, dtype=np.uint8),
              "x_test": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "y_test": np.arange(2),
              "classes": np.array(7), "about": np.array([{"a": 1}], object)}  # fmt: skip
    np.savez_compressed(file, **arrays)
    with pytest.raises(SchemaError, match=r"'about' holds Python objects.*skip=\['about'\]"):
        db.data.ingest(file, "x")
    with pytest.raises(SchemaError, match=r"one first dimension, found .*'classes': None.*fields="):
        db.data.ingest(file, "x", skip=["about"])
    for split, n in (("train", 5), ("test", 2)):
        names = {f"x_{split}": "image", f"y_{split}": "label"}
        report = db.data.ingest(file, "mnist", fields=list(names), rename=names, set={"split": split}, source_id=split)
        assert report.added == n and report.failed == []
    for row in db.data.find({"dataset": "mnist"}):
        assert np.array_equal(row["image"], arrays[f"x_{row['split']}"][row["label"]])
    assert set(db.data.schema("mnist")) == {"image", "label", "split"}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", ">i2", "f4", "c8", "?"])
def test_npy_of_any_order(db: TensorDB, tmp_path: Path, order: Any, dtype: str) -> None:
    values = np.asarray(np.arange(7 * 6).reshape(7, 3, 2) % 5, dtype, order=order)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "b.npz", array=values, n=np.arange(7)[::-1], name=np.array(list("abcdefg")))
    for name in ("a.npy", "b.npz"):
        assert db.data.ingest(tmp_path / name, name).added == 7
        assert db.data.schema(name)["array"] == Array(np.dtype(dtype).newbyteorder("=").name, (3, 2))
        rows = list(db.data.find({"dataset": name}))
        assert np.array_equal([row["array"] for row in rows], values)
        assert db.data.ingest(tmp_path / name, name).unchanged == 7
    assert [row["n"] for row in rows] == [*range(7)][::-1] and rows[2]["name"] == "c"


def test_several_files_and_one_dimension(db: TensorDB, tmp_path: Path) -> None:
    for n in range(3):
        np.save(tmp_path / f"{n}.npy", np.arange(n * 10, n * 10 + 4))
    report = db.data.ingest(tmp_path, "numbers", rename={"array": "n"})
    assert report.added == 12 and not report.ignored
    found = [row["n"] for row in db.data.find({"dataset": "numbers"})]
    assert found == [10 * n + k for n in range(3) for k in range(4)]
    np.save(tmp_path / "none.npy", np.zeros((0, 2), np.float32))
    assert db.data.ingest(tmp_path / "none.npy", "none").added == 0


def test_files_that_are_damaged_or_lie(db: TensorDB, tmp_path: Path) -> None:
    out = io.BytesIO()
    np.save(out, np.zeros((4, 4)))
    good = out.getvalue()
    pickled = io.BytesIO()
    np.save(pickled, np.array([print], object), allow_pickle=True)
    files = {
        "cut.npy": good[:-8],
        "head.npy": good[:20],
        "huge.npy": good.replace(b"(4, 4)", b"(4, 9999999999)").replace(b" " * 9 + b"\n", b"\n"),
        "objects.npy": pickled.getvalue(),
        "none.npy": b"",
        "picture.npy": picture(3).tobytes(),
        "zip.npz": b"PK\x03\x04",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SchemaError, match=name):
            db.data.ingest(tmp_path / name, "x")
    with zipfile.ZipFile(tmp_path / "foreign.npz", "w") as archive:
        archive.writestr("a.txt", "no array")
    with pytest.raises(SchemaError, match=r"foreign\.npz"):
        db.data.ingest(tmp_path / "foreign.npz", "x")
    np.save(tmp_path / "single.npy", np.array(3))
    with pytest.raises(SchemaError, match="one first dimension"):
        db.data.ingest(tmp_path / "single.npy", "x")

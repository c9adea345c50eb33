"""Folders of NIfTI and DICOM into a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from tensordb_data import Image, QueryError, TensorDB, Volume
from tensordb_data.schema.media.dicom import unpack
from tests.media.volumes import dicom, nifti

VALUES = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


def test_nifti(db: TensorDB, tmp_path: Path) -> None:
    for name, data in {"a/x.nii": nifti(VALUES), "a/y.nii.gz": nifti(VALUES + 1, packed=True), "b/z.nii": b"damaged",
                       "b/w.nii": nifti(VALUES), "b/w.hdr": b"", "b/about.json": b"{}"}.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    report = db.data.ingest(tmp_path, "brains")
    assert report.added == 3 and report.ignored == {".json": 1}
    assert sorted(failure.where for failure in report.failed) == ["b/w.hdr", "b/z.nii"]
    assert db.data.schema("brains")["volume"] == Volume("int16")
    for row in db.data.find({"dataset": "brains"}):
        assert row.encoded("volume") == (tmp_path / row["path"]).read_bytes() and row["shape"] == [2, 3, 4]
        assert np.array_equal(row["affine"], np.diag([2, 3, 4, 1])) and row["path"].startswith(row["class"])
        assert np.array_equal(row["volume"], VALUES + int(row["path"].endswith("gz")))
    batch = next(iter(db.data.find({"dataset": "brains"}).stream(batch_size=3, fields=["volume"])))
    assert batch["volume"].shape == (3, 2, 3, 4) and batch["volume"].dtype == np.int16
    assert db.data.ingest(tmp_path, "brains").unchanged == 3
    db.data.find({"dataset": "brains"}).export(tmp_path / "out", "folder", fields=["volume", "path"])
    out = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.nii*")}
    assert out == {name: (tmp_path / folder / name).read_bytes()
                   for folder, name in (("a", "x.nii"), ("a", "y.nii.gz"), ("b", "w.nii"))}  # fmt: skip


def test_tags_of_dicom_that_are_asked_for(db: TensorDB, tmp_path: Path) -> None:
    tags = {"KVP": "120.5", "SeriesNumber": 7, "PatientAge": "042Y", "ImageType": ["ORIGINAL", "PRIMARY"]}
    for k in range(2):
        (tmp_path / f"{k}.dcm").write_bytes(dicom(VALUES[0], float(k), number=k + 1, **tags))
    asked = ["KVP", "SeriesNumber", "PatientAge", "ImageType", "InstanceNumber", "BodyPartThickness"]
    report = db.data.ingest(tmp_path, "scans", tags=asked)
    assert report.added == 1 and report.failed == []
    row = db.data.find({"dataset": "scans"}).first()
    assert [row.get(name) for name in asked] == [120.5, 7, "042Y", ["ORIGINAL", "PRIMARY"], 1, None]
    assert any("InstanceNumber is not the same in all slices" in note for note in report.notes)
    assert not any("KVP" in note for note in report.notes)
    assert db.data.find({"KVP": {"$gt": 100}, "SeriesNumber": 7}).count() == 1
    assert db.data.ingest(tmp_path, "scans", tags=asked).unchanged == 1
    for wrong, says in ((["Kvp"], "no 'Kvp'"), (["PixelData"], "numbers and texts"), ("KVP", "list of keywords")):
        with pytest.raises(QueryError, match=says):
            db.data.ingest(tmp_path, "scans", tags=wrong)  # type: ignore[arg-type]
    with pytest.raises(QueryError, match="tags of DICOM"):
        db.data.ingest([{"a": 1}], "rows", tags=["KVP"])


def test_dicom(db: TensorDB, tmp_path: Path) -> None:
    places = [4.0, 0.0, 2.0]
    slices = [dicom(np.full((2, 3), k, np.int16), place, number=9 - k) for k, place in enumerate(places)]
    other, third = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    report_file = dicom(VALUES[0], SeriesInstanceUID=third, Rows=None, Columns=None, PixelData=None)
    files = {
        **{f"p1/ct/{k}.dcm": data for k, data in enumerate(slices)},
        "p2/IM0001": dicom(VALUES, SeriesInstanceUID=other, RescaleSlope=1, RescaleIntercept=-1),
        "p2/report.dcm": report_file, "p2/notes.txt": b"", "p2/bad.dcm": slices[0][:200], "DICOMDIR": b"",
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    report = db.data.ingest(tmp_path, "scans")
    assert report.added == 2 and report.ignored == {".dcm": 1, ".txt": 1, "others": 1}
    assert [failure.where for failure in report.failed] == ["p2/bad.dcm"]
    series, single = sorted(db.data.find({"dataset": "scans"}), key=lambda row: row["path"])
    assert series["volume"][:, 0, 0].tolist() == [1, 2, 0] and series["slices"] == 3
    assert unpack(series.encoded("volume")) == [slices[1], slices[2], slices[0]]
    assert series["modality"] == "CT" and series["spacing"] == [0.5, 0.25] and series["slice_thickness"] == 2
    assert np.allclose(np.array(series["affine"]) @ [2, 1, 2, 1], [-1.5, -2.5, 4, 1])
    assert np.array_equal(single["volume"], VALUES - 1) and single["series_uid"] == str(other)
    documents = repr(list(db.database["data"].find()))
    assert "Erika" not in documents and "4711" not in documents
    assert db.data.ingest(tmp_path, "scans").unchanged == 2
    # A slice is missing: the rest is in, as an update, and the report says so.
    (tmp_path / "p1/ct/3.dcm").write_bytes(dicom(np.full((2, 3), 3, np.int16), 9.0))
    report = db.data.ingest(tmp_path, "scans")
    assert (report.added, report.updated) == (0, 1) and any("is one missing?" in note for note in report.notes)
    db.data.find({"dataset": "scans"}).export(tmp_path / "out", "parquet", fields=["volume"])
    back = db.data.ingest(tmp_path / "out/data" if (tmp_path / "out/data").is_dir() else tmp_path / "out", "back")
    assert back.added == 2 and back.failed == [], back.failed
    stored = [row.encoded(name) for row in db.data.find({"dataset": "back"}) for name in row.blobs]
    assert sorted(stored) == sorted(db.data.find({"dataset": "scans"}).encoded("volume"))  # type: ignore[type-var]
    assert not any(isinstance(kind, Image) for kind in db.data.schema("back").values())

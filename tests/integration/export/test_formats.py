"""Each format holds what was stored, also for the libraries that it is for."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensordb_data import (
    Array,
    Bytes,
    Image,
    MissingExtraError,
    QueryError,
    Scalar,
    SchemaError,
    TensorDB,
    Text,
)
from tests.integration.export.samples import LOSSLESS, NOON, SCHEMA, contents, fill, manifest, picture

FORMATS = ("parquet", "jsonl", "folder", "webdataset", "mds")


def hugging_face() -> Any:
    """The library, without the thread that watches over its bars, and stays."""
    found = pytest.importorskip("datasets")
    found.disable_progress_bars()
    sys.modules["tqdm"].tqdm.monitor_interval = 0
    return found


def expected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["split"])


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_stored_is_in_the_files(db: TensorDB, tmp_path: Path, format: str) -> None:
    rows = fill(db)
    fields = [name for name in SCHEMA if format != "mds" or name not in ("raw", "note")]
    db.data.find().export(tmp_path / "out", format, fields=["_id", "dataset", "tags", *fields])
    found = contents(tmp_path / "out", format)
    for row, want in zip(found, expected(rows), strict=True):
        assert row["dataset"] == "pets" and row["tags"] == []
        assert row["image"] == want["image"]
        if "raw" in fields:
            assert row.get("raw") == want["raw"] and row.get("note") == want["note"]
        assert np.array_equal(row["grid"], want["grid"])
        for name in LOSSLESS:
            value = json.loads(row[name]) if format == "parquet" and name == "meta" and row[name] else row[name]
            assert value == want[name] and type(value) is type(want[name])
        stamp = None if want["at"] is None else want["at"].isoformat(timespec="milliseconds").replace("+00:00", "Z")
        assert row["at"] == (want["at"] if format == "parquet" else stamp)
    assert {row["_id"] for row in found} == {str(sample.id) for sample in db.data.find()}


def test_nothing_is_an_export_too(db: TensorDB, tmp_path: Path) -> None:
    fill(db, 1)
    for format in FORMATS:
        report = db.data.find({"label": 99}).export(tmp_path / format, format, fields=["image", "label"])
        assert report.count == 0 and contents(tmp_path / format, format) == []


def test_names_of_fields_that_no_file_can_have(db: TensorDB, tmp_path: Path) -> None:
    names = ["a/b", "a_b", "A_b", "..", "größe", "x y", "con"]
    with db.data.writer("x", schema={name: Bytes() for name in names if name != ".."}) as writer:
        writer.add(**{name: name.encode() for name in names if name != ".."})
    db.data.find().export(tmp_path / "jsonl", "jsonl")
    (row,) = contents(tmp_path / "jsonl", "jsonl")
    assert [row[name] for name in names if name != ".."] == [name.encode() for name in names if name != ".."]
    with pytest.raises(QueryError, match="'a/b': no member of a tar file"):
        db.data.find().export(tmp_path / "tar", "webdataset")
    with pytest.raises(QueryError, match="'a_b' and 'A_b' have one suffix"):
        db.data.find().export(tmp_path / "tar", "webdataset", fields=names[1:3])


def test_parquet_is_a_data_set_of_hugging_face(db: TensorDB, tmp_path: Path) -> None:
    datasets = hugging_face()
    rows = expected(fill(db))
    db.data.find().export(tmp_path / "out", "parquet")
    found = datasets.load_dataset("parquet", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in found.items()} == {"train": 6, "test": 2}
    features = found["train"].features
    assert isinstance(features["image"], datasets.Image) and features["label"].names == ["cat", "dog"]
    assert features["at"].dtype == "timestamp[ms, tz=UTC]" and features["grid"].length == 2
    stored = [row["image"]["bytes"] for name in ("test", "train")
              for row in found[name].cast_column("image", datasets.Image(decode=False))]  # fmt: skip
    assert stored == [row["image"] for row in rows]
    assert found["train"][0]["image"].size == (5, 4)


def test_binary_of_parquet_is_not_compressed_and_row_groups_are_small(db: TensorDB, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    with db.data.writer("x", schema={"image": Image(), "label": Scalar("int")}) as writer:
        for n in range(230):
            writer.add(image=picture(n % 3), label=n)
    db.data.find().export(tmp_path / "out", "parquet")
    (path,) = (tmp_path / "out/data").iterdir()
    found = pq.ParquetFile(path).metadata
    assert [found.row_group(n).num_rows for n in range(found.num_row_groups)] == [100, 100, 30]
    group = found.row_group(0)
    codecs = {group.column(n).path_in_schema: group.column(n).compression for n in range(group.num_columns)}
    assert codecs["image.bytes"] == "UNCOMPRESSED" and codecs["label"] == "ZSTD"
    assert picture(0) in path.read_bytes()


def test_a_data_set_of_hugging_face_in_memory(db: TensorDB) -> None:
    datasets = hugging_face()
    rows = fill(db)
    found = db.data.find().to_hf()
    assert isinstance(found, datasets.Dataset) and found.features["label"].names == ["cat", "dog"]
    raw = found.cast_column("image", datasets.Image(decode=False))
    assert [row["image"]["bytes"] for row in raw] == [row["image"] for row in rows]
    assert db.data.find(fields=["label"]).to_hf(fields=["image"]).column_names == ["image"]
    assert len(db.data.find({"label": 9}).to_hf()) == 0


def test_a_saved_data_set_of_hugging_face_comes_back(db: TensorDB, tmp_path: Path) -> None:
    hugging_face()
    rows = fill(db)
    db.data.find().to_hf(fields=["image", "grid", "label", "class", "score", "at"]).save_to_disk(tmp_path / "saved")
    report = db.data.ingest(tmp_path / "saved", "again")
    assert report.added == 8 and report.failed == []
    found = db.data.find({"dataset": "again"}).all()
    assert [row.encoded("image") for row in found] == [row["image"] for row in rows]
    assert [row["class"] for row in found] == [row["class"] for row in rows]
    assert [row.get("score") for row in found] == [row["score"] for row in rows]
    assert db.data.ingest(tmp_path / "saved", "again").unchanged == 8


def test_hugging_face_reads_the_folder(db: TensorDB, tmp_path: Path) -> None:
    datasets = hugging_face()
    rows = fill(db)
    fields = ["image", "label", "class", "split", "score", "note"]
    db.data.find().export(tmp_path / "out", "folder", fields=fields)
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    test = found["test"].cast_column("image", datasets.Image(decode=False))
    files = {Path(row["image"]["path"]).read_bytes(): row for row in test}
    assert files.keys() == {row["image"] for row in rows if row["split"] == "test"}
    assert all(row["class"] == "dog" and row["label"] == 1 for row in files.values())
    assert sorted(path.name for path in (tmp_path / "out/train").iterdir()) == ["cat", "dog", "metadata.jsonl"]


def test_webdataset_reads_the_tar(db: TensorDB, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    rows = fill(db)
    db.data.find().export(tmp_path / "out", "webdataset", split=None)
    (path,) = (tmp_path / "out/data").iterdir()
    found = list(wds.WebDataset(str(path), shardshuffle=False))
    assert [row.get("png") or row["jpg"] for row in found] == [row["image"] for row in rows]
    assert [json.loads(row["json"])["label"] for row in found] == [row["label"] for row in rows]
    assert [row.get("raw.bin") for row in found] == [row["raw"] for row in rows]


def test_tar_is_ustar_and_pax_is_for_long_names_alone(db: TensorDB, tmp_path: Path) -> None:
    long = "n" * 120
    with db.data.writer("x", schema={"a": Bytes(), long: Bytes(optional=True)}) as writer:
        writer.add(a=b"1")
        writer.add(**{"a": b"2", long: b"3"})
    db.data.find().export(tmp_path / "out", "webdataset")
    (path,) = (tmp_path / "out/data").iterdir()
    with tarfile.open(path) as tar:
        members = list(tar)
    assert [bool(member.pax_headers) for member in members] == [False, False, False, True, False]
    assert members[3].name == f"00000001.{long}.bin" and path.read_bytes()[257:263] == b"ustar\0"


def test_shards_are_cut_by_their_bytes(db: TensorDB, tmp_path: Path) -> None:
    with db.data.writer("x", schema={"raw": Bytes(), "n": Scalar("int")}) as writer:
        for n in range(10):
            writer.add(raw=bytes(1000), n=n)
    for format in ("parquet", "jsonl", "webdataset", "mds"):
        folder = tmp_path / format
        db.data.find().export(folder, format, shard_bytes=6000, fields=["raw", "n"])
        shards = sorted(path for path in folder.rglob("*") if path.suffix in (".parquet", ".jsonl", ".tar", ".mds"))
        assert len(shards) > 1
        if format in ("jsonl", "mds"):
            assert all(path.stat().st_size <= 6000 for path in shards)
        if format != "mds":
            assert [path.name.partition(".")[0] for path in shards] == [
                f"train-{n:05d}-of-{len(shards):05d}" for n in range(len(shards))
            ]
        assert [row["n"] for row in contents(folder, format)] == list(range(10))


def test_arrays_whose_shape_varies(db: TensorDB, tmp_path: Path) -> None:
    schema = {"free": Array("float32", (None, 2)), "any": Array("uint8"), "none": Array("int64", (0,))}
    values = [np.arange(2 * n, dtype=np.float32).reshape(n, 2) for n in range(3)]
    with db.data.writer("x", schema=schema) as writer:
        for value in values:
            writer.add(free=value, any=np.zeros((2,) * (len(value) + 1), np.uint8), none=np.zeros(0, np.int64))
    for format in ("jsonl", "webdataset"):
        db.data.find().export(tmp_path / format, format)
        for row, value in zip(contents(tmp_path / format, format), values, strict=True):
            assert row["free"].shape == value.shape and np.array_equal(row["free"], value)
            assert row["any"].ndim == len(value) + 1 and row["none"].shape == (0,)
    db.data.find().export(tmp_path / "parquet", "parquet", fields=["free", "none"])
    assert [row["free"] for row in contents(tmp_path / "parquet", "parquet")] == [value.tolist() for value in values]
    with pytest.raises(QueryError, match="'any': a table needs a known number of dimensions"):
        db.data.find().export(tmp_path / "no", "parquet")
    with pytest.raises(SchemaError, match=r"'free': expected an array with elements.*\(0, 2\)"):
        db.data.find().export(tmp_path / "no", "mds", fields=["free"])
    assert not (tmp_path / "no").exists() and not (tmp_path / "no.partial").exists()


def test_what_a_format_cannot_hold_is_named(db: TensorDB, tmp_path: Path) -> None:
    fill(db)
    selection, out = db.data.find(), tmp_path / "out"
    schema = {"b": Array("bfloat16", (2,)), "c": Array("complex64", (2,)), "t": Text()}
    with db.data.writer("y", schema=schema) as writer:
        import ml_dtypes

        writer.add(b=np.ones(2, ml_dtypes.bfloat16), c=np.ones(2, np.complex64), t="x")
    y = db.data.find({"dataset": "y"})
    for format, fields, text in (
        ("parquet", ["b"], "bfloat16"), ("parquet", ["c"], "complex64"), ("mds", ["c"], "complex64"),
        ("jsonl", ["b"], "bfloat16"), ("webdataset", ["b"], "bfloat16"), ("folder", ["t"], "needs an image"),
        ("coco", ["t"], "needs one image"),
    ):  # fmt: skip
        with pytest.raises(QueryError, match=text):
            y.export(out, format, fields=fields)
    with pytest.raises(SchemaError, match="'raw' is missing in 3 samples, and MDS has no missing values"):
        db.data.find({"dataset": "pets"}).export(out, "mds")
    with pytest.raises(QueryError, match="annotations"):
        db.data.find({"dataset": "pets"}).export(out, "coco", fields=["image", "label"])
    with pytest.raises(QueryError, match="format is one of parquet, jsonl"):
        selection.export(out, "arrow")
    with pytest.raises(QueryError, match="no field 'no'"):
        selection.export(out, fields=["no"])
    with pytest.raises(QueryError, match="no field 'fold'"):
        db.data.find({"dataset": "pets"}).export(out, split="fold")
    with pytest.raises(QueryError, match="only samples"):
        db.params.find().export(out)
    for shard_bytes in (0, "x", -1):
        with pytest.raises(QueryError, match="shard_bytes"):
            db.data.find({"dataset": "pets"}).export(out, shard_bytes=shard_bytes)
    with pytest.raises(QueryError, match="4 GiB"):
        db.data.find({"dataset": "pets"}).export(out, "mds", shard_bytes="5GB", fields=["label"])
    assert list(tmp_path.iterdir()) == []


def test_nan_is_refused_unless_it_is_asked_for(db: TensorDB, tmp_path: Path) -> None:
    with db.data.writer("x", schema={"image": Image(), "f": Scalar("float"), "j": Scalar("json")}) as writer:
        writer.add(image=picture(0), f=1.5, j={"a": [NOON]})
        writer.add(image=picture(1), f=float("nan"), j=[float("-inf")])
    for format in ("jsonl", "webdataset", "folder", "mds"):
        out = tmp_path / format
        with pytest.raises(SchemaError, match=r"sample [0-9a-f]{24} of 'x', field '[fj]': expected a finite number"):
            db.data.find().export(out, format)
        assert not out.exists() and not out.with_name(f"{format}.partial").exists()
        db.data.find().export(out, format, nan=True)
        first, second = contents(out, format)
        assert first["j"] == {"a": [{"$date": "2026-11-30T12:00:00Z"}]} and second["j"] == [float("-inf")]
        assert first["f"] == 1.5 and second["f"] != second["f"]


def test_a_library_that_is_not_there_is_named(db: TensorDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db, 1)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="pip install datasets"):
        db.data.find().to_hf()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"tensordb-data\[tables\]"):
        db.data.find().export(tmp_path / "out")
    with pytest.raises(QueryError, match="progress is True, or a function"):
        db.data.find().export(tmp_path / "out", "jsonl", progress="yes")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_says_what_it_is(db: TensorDB, tmp_path: Path) -> None:
    fill(db)
    report = db.data.find({"label": 1}, sort="score").export(tmp_path / "out", "jsonl", fields=["image", "score"])
    found = manifest(tmp_path / "out")
    assert found["query"]["filter"] == {"label": {"$numberInt": "1"}} or found["query"]["filter"] == {"label": 1}
    assert (found["count"], found["layout"], found["project"]) == (4, "jsonl", "default")
    assert found["splits"] == {"train": 2, "test": 2} == report.splits and found["state"] == {"pets": [8, 0]}
    assert report.files == len(found["files"]) and report.bytes == sum(entry["bytes"] for entry in found["files"])
    assert "4 samples" in str(report) and "jsonl" in str(report)
    assert list(found["fields"]) == ["image", "score"]

"""Tar files, MDS and TFRecord into a dataset, and exports into another one."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import obstore.store
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensordb_data import Array, Bytes, Image, Scalar, SchemaError, TensorDB, UnsupportedError
from tensordb_data.ingest.readers.shards import tar as tar_reader
from tests.integration.export.samples import fill, picture
from tests.integration.export.test_property import FLOATS, JSON, TEXT
from tests.unit.ingest.test_mds import entry
from tests.unit.ingest.test_tfrecord import example, file_of


def npy(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def tar(path: Path, *members: tuple[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    for n in range(2):
        tar(
            folder / f"shard-{n:03d}.tar",
            *((f"a/{n}{i}.{suffix}", data) for i in range(3) for suffix, data in (
                ("jpg", picture(3 * n + i, ".jpg")), ("seg.png", picture(i)), ("cls", f"{i}\n".encode()),
                ("json", json.dumps({"caption": f"größe {i}", "size": {"w": i}}).encode()),
                ("vec.npy", npy(np.ones(3))),
            )),
            ("._x.jpg", b"?"),
        )  # fmt: skip
    return folder


def test_a_field_for_each_suffix(db: TensorDB, shards: Path) -> None:
    report = db.data.ingest(shards, "web")
    assert (report.added, report.failed) == (6, []) and report.ignored == {".jpg": 2}
    schema = db.data.schema("web")
    assert schema is not None
    assert dict(schema) == {
        "__key__": Scalar("str"), "cls": Scalar("int"), "jpg": Image("rgb"), "json": Scalar("json"),
        "seg": Image("rgb"), "vec": Array("float64", (3,)),
    }  # fmt: skip
    row = db.data.find({"__key__": "a/12"}).first()
    assert row["json"] == {"caption": "größe 2", "size": {"w": 2}} and row["cls"] == 2
    assert row["vec"].tolist() == [1, 1, 1]
    assert row.encoded("jpg") == picture(5, ".jpg") and row.encoded("seg") == picture(2)
    assert db.data.ingest(shards, "web").unchanged == 6


def test_options_name_suffixes_and_parts_of_json(db: TensorDB, shards: Path) -> None:
    options: dict[str, Any] = {
        "key": "__key__", "fields": ["__key__", "jpg", "json.caption", "json.size.w"],
        "rename": {"jpg": "image", "json.caption": "caption", "json.size.w": "w"},
    }  # fmt: skip
    report = db.data.ingest(str(shards / "shard-{000..001}.tar"), "web", **options)
    assert report.added == 6 and report.failed == []
    assert set(db.data.find().first()) == {"_id", "__key__", "caption", "dataset", "image", "tags", "w"}
    assert db.data.find({"caption": "größe 1"}).count() == 2 and db.data.find().distinct("w") == [0, 1, 2]
    # The key is that of the sample, wherever its shard is.
    (shards / "shard-000.tar").rename(shards / "other.tar")
    assert db.data.ingest(shards, "web", **options).unchanged == 6


def test_images_of_several_suffixes_are_one_field_if_each_sample_has_one(db: TensorDB, tmp_path: Path) -> None:
    tar(tmp_path / "train.tar", ("1.png", picture(1)), ("2.jpg", picture(2, ".jpg")), ("2.txt", b"two"))
    report = db.data.ingest(tmp_path / "train.tar", "x")
    assert "jpg, png: one field, image" in report.notes
    assert [row["image"].shape for row in db.data.find()] == [(4, 5, 3)] * 2
    assert [row.get("txt") for row in db.data.find()] == [None, "two"]
    # A later file that has images of one suffix goes on with it.
    tar(tmp_path / "more/more.tar", ("3.jpg", picture(3, ".jpg")))
    assert db.data.ingest(tmp_path / "more", "x").failed == []
    assert db.data.find({"dataset": "x", "image": {"$exists": True}}).count() == 3
    tar(tmp_path / "y/y.tar", ("1.png", picture(1)), ("1.jpg", picture(2, ".jpg")))
    db.data.ingest(tmp_path / "y", "y")
    assert {"png", "jpg"} <= set(db.data.schema("y") or ())


def test_a_colour_after_many_gray_images_is_not_lost(db: TensorDB, tmp_path: Path) -> None:
    gray = bytes(cv2.imencode(".png", np.zeros((4, 5), np.uint8))[1])
    members = [(f"{n:03d}.png", gray) for n in range(100)]
    tar(tmp_path / "a/a.tar", *members)
    tar(tmp_path / "b/b.tar", *members, ("200.png", picture(0)))
    for name, mode in (("a", "gray"), ("b", "rgb")):
        assert db.data.ingest(tmp_path / name, name).added >= 100
        assert (db.data.schema(name) or {})["png"] == Image(mode)


def test_arrays_that_claim_too_much_fail(db: TensorDB, tmp_path: Path) -> None:
    good = npy(np.arange(6, dtype=">i2").reshape(2, 3, order="F"))
    huge = good.replace(b"(2, 3)", b"(9999999999, 9999999999)")
    objects = io.BytesIO()
    np.save(objects, np.array([None]), allow_pickle=True)
    tar(tmp_path / "x.tar", ("1.a.npy", good), ("2.a.npy", huge), ("3.a.npy", objects.getvalue()), ("4.a.npy", b"?"))
    report = db.data.ingest(tmp_path / "x.tar", "x")
    assert report.added == 1 and len(report.failed) == 3
    assert db.data.find().first()["a"].tolist() == [[0, 2, 4], [1, 3, 5]]


def test_what_cannot_be_read_is_named_and_the_rest_comes_in(db: TensorDB, tmp_path: Path) -> None:
    tar(tmp_path / "s/a.tar", ("1.json", b"{"), ("2.json", b"{}"), ("3.json", b"[1]"), ("2.pkl", b"cos\nsystem\n"),
        ("3.json", b"[2]"))  # fmt: skip
    whole = (tmp_path / "s/a.tar").read_bytes()
    (tmp_path / "s/b.tar").write_bytes(whole[:700] + b"noise" * 200)
    report = db.data.ingest(tmp_path / "s", "x")
    assert report.added == 2 and [where for where, _ in report.failed] == ["a.tar, 1", "b.tar"]
    assert any("pickles" in note for note in report.notes) and any("there twice" in note for note in report.notes)
    assert [row["json"] for row in db.data.find()] == [{}, [2]]


def mds(folder: Path, count: int = 4) -> None:
    """A folder as the writer of MosaicML makes it: two shards, one of them compressed alone."""
    import zstandard

    folder.mkdir(parents=True)
    shards = []
    names = {"image": ("jpeg", None), "label": ("int", 8), "meta": ("json", None), "name": ("str", None)}
    for number in range(2):
        bodies = []
        for n in range(count):
            values = [picture(n, ".jpg"), struct.pack("<q", n), json.dumps([n] if n else 0).encode(), f"n{n}".encode()]
            sizes = [len(values[0]), len(values[2]), len(values[3])]
            bodies.append(np.array(sizes, "<u4").tobytes() + b"".join(values))
        offsets = np.array([0, *map(len, bodies)]).cumsum() + 4 * (count + 2)
        data = struct.pack("<I", count) + offsets.astype("<u4").tobytes() + b"".join(bodies)
        packed = {"basename": f"shard.{number}.mds.zstd"} if number else None
        (folder / (f"shard.{number}.mds" + ".zstd" * number)).write_bytes(zstandard.compress(data) if number else data)
        shards.append(entry(
            column_names=list(names), column_encodings=[each[0] for each in names.values()],
            column_sizes=[each[1] for each in names.values()], samples=count,
            raw_data={"basename": f"shard.{number}.mds"}, zip_data=packed,
            compression="zstd" if number else None))  # fmt: skip
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))


def test_mds(db: TensorDB, tmp_path: Path) -> None:
    mds(tmp_path / "m/train")
    mds(tmp_path / "m/val", 2)
    report = db.data.ingest(tmp_path / "m", "x")
    assert (report.added, report.failed, report.ignored) == (12, [], {})
    assert dict(db.data.schema("x") or {}) == {
        "image": Image(), "label": Scalar("int"), "meta": Scalar("json"), "name": Scalar("str"), "split": Scalar("str"),
    }  # fmt: skip
    assert [row.encoded("image") for row in db.data.find({"label": 3})] == [picture(3, ".jpg")] * 2
    assert db.data.find({"split": "val"}).count() == 4
    assert db.data.ingest(tmp_path / "m", "x").unchanged == 12
    index = json.loads((tmp_path / "m/val/index.json").read_text())
    for shard in index["shards"]:
        shard["column_encodings"][3] = "pkl"
    (tmp_path / "m/val/index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedError, match="column 'name' holds pickles"):
        db.data.ingest(tmp_path / "m/val", "y")
    assert db.data.ingest(tmp_path / "m/val", "y", skip=["name"]).added == 4


def test_a_damaged_or_missing_shard_is_named(db: TensorDB, tmp_path: Path) -> None:
    mds(tmp_path / "m")
    data = (tmp_path / "m/shard.0.mds").read_bytes()
    (tmp_path / "m/shard.0.mds").write_bytes(data[:-5])
    (tmp_path / "m/shard.1.mds.zstd").unlink()
    report = db.data.ingest(tmp_path / "m", "x")
    assert report.added == 0 and [where for where, _ in report.failed] == ["shard.1.mds", "shard.0.mds"]


def test_tfrecord(db: TensorDB, tmp_path: Path) -> None:
    rows = [
        {"image/encoded": [picture(n)], "label": [n - 1], "box": [0.5, 0.25, 1.0, 2.0], "words": [b"a", b"b"] * n,
         "ids": list(range(n)), "raw": [bytes([255, n])], "name": ["größe".encode()], **({"x": [1.5]} if n else {})}
        for n in range(3)
    ]  # fmt: skip
    (tmp_path / "r").mkdir()
    for n in range(2):
        (tmp_path / f"r/pets-train.tfrecord-{n:05d}-of-00002").write_bytes(file_of(*map(example, rows)))
    (tmp_path / "r/features.json").write_text("{}")
    report = db.data.ingest(tmp_path / "r", "x")
    assert (report.added, report.failed, report.ignored) == (6, [], {".json": 1})
    assert dict(db.data.schema("x") or {}) == {
        "box": Array("float32", (4,)), "ids": Array("int64", (None,), optional=True), "image/encoded": Image(),
        "label": Scalar("int"), "name": Scalar("str"), "raw": Bytes(), "words": Scalar("json", optional=True),
        "x": Scalar("float", optional=True), "split": Scalar("str"),
    }  # fmt: skip
    row = db.data.find({"label": 1}).first()
    assert row["box"].tolist() == [0.5, 0.25, 1, 2] and row["ids"].tolist() == [0, 1] and row["raw"] == b"\xff\x02"
    assert row["words"] == ["a", "b", "a", "b"] and row.encoded("image/encoded") == picture(2)
    assert db.data.ingest(tmp_path / "r", "x").unchanged == 6
    data = (tmp_path / "r/pets-train.tfrecord-00001-of-00002").read_bytes()
    one = tmp_path / "one.tfrecord"
    one.write_bytes(data[:-9] + b"?" + data[-8:])
    report = db.data.ingest(one, "y")
    assert report.added == 2 and "checksum" in report.failed[0].why
    (tmp_path / "nameless").write_bytes(data)
    assert db.data.ingest(tmp_path / "nameless", "w").added == 3
    one.write_bytes(b"no record at all")
    with pytest.raises(SchemaError, match="record 0"):
        db.data.ingest(one, "z")


ROW = st.fixed_dictionaries(
    {"image": st.sampled_from([picture(0), picture(1)]), "raw": st.binary(max_size=20),
     "grid": st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2)},
    optional={"n": st.integers(-(2**63), 2**63 - 1), "x": FLOATS, "s": TEXT, "b": st.booleans(), "j": JSON},
)  # fmt: skip


@pytest.mark.parametrize("format", ["webdataset", "mds", "parquet"])
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(rows=st.lists(ROW, min_size=1, max_size=4))
def test_an_export_comes_back_as_it_was(db: TensorDB, tmp_path: Path, format: str, rows: list[dict[str, Any]]) -> None:
    schema = {"image": Image(), "raw": Bytes(), "grid": Array("float32", (2,)), "i": Scalar("int")}
    schema |= {name: Scalar(kind, optional=True) for name, kind in
               (("n", "int"), ("x", "float"), ("s", "str"), ("b", "bool"), ("j", "json"))}  # fmt: skip
    for name in ("x", "y"):
        if db.data.schema(name) is not None:
            db.data.drop(name)
    with db.data.writer("x", schema=schema) as writer:
        for i, row in enumerate(rows):
            writer.add(**{**row, "i": i, "grid": np.array(row["grid"], np.float32)})
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    fields = list(schema)
    db.data.find({"dataset": "x"}).export(tmp_path / "out", format, fields=fields)
    parts: dict[str, Any] = {}
    if format == "webdataset":
        scalars = [name for name, field in schema.items() if isinstance(field, Scalar)]
        parts = {"rename": {f"json.{name}": name for name in scalars},
                 "types": {f"json.{name}": schema[name] for name in scalars}}  # fmt: skip
    report = db.data.ingest(tmp_path / "out", "y", split=None, **parts)
    assert report.added == len(rows) and report.failed == []
    before = db.data.find({"dataset": "x"}, sort="i").all()
    after = db.data.find({"dataset": "y"}, sort="i").all()
    main = "png" if format == "webdataset" else "image"
    for old, new in zip(before, after, strict=True):
        assert new.encoded(main) == old.encoded("image") and new["raw"] == old["raw"]
        assert new["grid"].tobytes() == old["grid"].tobytes()
        for name in ("n", "x", "s", "b", "j"):
            if format == "parquet" and name == "j":  # it is text in a table
                continue
            assert repr(_sorted(new.get(name))) == repr(_sorted(old.get(name)))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return list(map(_sorted, value))
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def test_an_export_of_everything_is_taken_with_its_reserved_names_left_out(db: TensorDB, tmp_path: Path) -> None:
    fill(db)
    db.data.find().export(tmp_path / "out", "mds", fields=["_id", "dataset", "tags", "image", "grid", "label", "at"])
    with pytest.raises(SchemaError, match=r"'_id'.*skip=\['_id'\]"):
        db.data.ingest(tmp_path / "out", "y")
    report = db.data.ingest(tmp_path / "out", "y", skip=["dataset", "tags"], rename={"_id": "was"})
    assert report.added == 8 and db.data.find({"dataset": "y", "was": {"$exists": True}}).count() == 8


def test_exports_of_lines_and_tables_come_back(db: TensorDB, tmp_path: Path) -> None:
    rows = fill(db)
    fields = ["image", "label", "class", "score", "ok"]
    for format, options in (
        ("jsonl", {"files": {"image": Image("rgb")}, "base": tmp_path / "jsonl"}), ("parquet", {}),
    ):  # fmt: skip
        db.data.find({"dataset": "pets"}).export(tmp_path / format, format, fields=fields, split=None)
        report = db.data.ingest(tmp_path / format / "data", format, split=None, **options)
        assert report.added == 8 and report.failed == []
        found = db.data.find({"dataset": format}).all()
        assert [row.encoded("image") for row in found] == [row["image"] for row in rows]
        for name in fields[1:]:
            assert [row.get(name) for row in found] == [row[name] for row in rows]


def test_shards_in_a_bucket(db: TensorDB, s3: str, shards: Path) -> None:
    store = obstore.store.from_url(f"{s3}/data", client_options={"allow_http": True})
    for path in shards.iterdir():
        obstore.put(store, path.name, path.read_bytes())
    report = db.data.ingest(f"{s3}/data/shard-{{000..001}}.tar", "web")
    assert report.added == 6 and report.failed == []
    assert db.data.find({"__key__": "a/12"}).first().encoded("jpg") == picture(5, ".jpg")
    assert db.data.ingest(f"{s3}/data/shard-{{000..001}}.tar", "web").unchanged == 6


def files_in(db: TensorDB) -> set[str]:
    return {file["f"] for doc in db.database["sources"].find() for file in doc["files"]}


@pytest.mark.parametrize("damage", ["begin", "end"])
def test_only_the_damaged_shard_is_read_again(db: TensorDB, shards: Path, damage: str) -> None:
    first = shards / "shard-000.tar"
    whole = first.read_bytes()
    first.write_bytes(b"x" * 700 if damage == "begin" else whole[:3000])
    assert db.data.ingest(shards, "web").failures == 1
    assert files_in(db) == {"shard-001.tar"}
    assert db.data.ingest(shards, "web").failures == 1
    first.write_bytes(whole)
    assert db.data.ingest(shards, "web").failed == [] and files_in(db) == {"shard-000.tar", "shard-001.tar"}


def test_a_member_of_a_packed_tar_that_claims_too_much(
    db: TensorDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar(tmp_path / "x.tar", ("a.txt", b"a"), ("b.txt", b"b" * 500))
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    monkeypatch.setattr(tar_reader, "_MOST_CLAIMED", 400)
    report = db.data.ingest(packed, "web")
    assert report.added == 1 and "b.txt claims 500 bytes" in " ".join(report.notes)


def test_a_damaged_shard_prunes_nothing(db: TensorDB, tmp_path: Path, shards: Path) -> None:
    db.data.ingest(shards, "web")
    whole = (shards / "shard-001.tar").read_bytes()
    (shards / "shard-001.tar").write_bytes(whole[:3000])
    report = db.data.ingest(shards, "web", prune=True)
    assert len(report.failed) == 1 and report.pruned == 0 and db.data.find().count() == 6
    (shards / "shard-001.tar").unlink()
    report = db.data.ingest(shards, "web", prune=True)
    assert report.pruned == 3 and db.data.find().count() == 3

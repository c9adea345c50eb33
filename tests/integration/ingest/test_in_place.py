"""Files that stay where they are: samples point into them, and read them as others do."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest
from bson import ObjectId
from typer.testing import CliRunner

from tensordb_data import CorruptBlobError, Image, Root, SampleError, SchemaError, StorageError, TensorDB
from tensordb_data.cli.main import app
from tensordb_data.warehouse.context import Warehouse
from tensordb_data.warehouse.user_config import files_of_user, write_files
from tests.integration.ingest.test_folders import picture


@pytest.fixture(autouse=True)
def config() -> Iterator[None]:
    """What this user has noted goes with the test."""
    yield
    write_files({})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(12):
        picture(tmp_path / f"my photos/{'cat' if i % 2 else 'ape'}/{i} ü.png", i, (8 + i, 8, 3))
    return tmp_path / "my photos"


@pytest.fixture
def opened(mongo_uri: str, warehouse_dir: Path, photos: Path) -> Iterator[TensorDB]:
    with TensorDB(mongo_uri, blobs=warehouse_dir / "blobs", roots={"photos": photos}) as db:
        yield db


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def npy(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def images(db: TensorDB, dataset: str, name: str = "image") -> list[bytes | None]:
    return list(db.data.find({"dataset": dataset}).encoded(name))


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_folder(opened: TensorDB, photos: Path, warehouse_dir: Path) -> None:
    report = opened.data.ingest(photos, "d", in_place=True)
    total = sum(path.stat().st_size for path in photos.rglob("*.png"))
    assert (report.added, report.failures, report.referenced, report.copied) == (12, 0, total, 0)
    assert "referenced · 0 B copied" in str(report)
    assert stored_bytes(warehouse_dir / "blobs/segments") < total + 3000
    for sample in opened.data.find({"dataset": "d"}):
        assert sample.encoded("image") == (photos / sample["path"]).read_bytes()
    again = opened.data.ingest(photos, "d", in_place=True)
    assert (again.added, again.updated, again.unchanged) == (0, 0, 12)
    assert opened.data.ingest(photos, "d").unchanged == 12  # a copy of them would be the same samples
    with TensorDB.over(opened.warehouse) as other:
        other.data.ingest(photos, "copied")
        assert images(other, "copied") == images(other, "d")
        assert other.fsck().findings == []


def test_streams_maps_exports_and_pages(opened: TensorDB, photos: Path, tmp_path: Path) -> None:
    opened.data.ingest(photos, "d", in_place=True)
    opened.data.ingest(photos, "c")
    here, there = (opened.data.find({"dataset": name}, fields=["image", "path"]) for name in ("d", "c"))
    for options in ({"passes": 1}, {"passes": 2, "shuffle": True, "seed": 3}):
        one, two = (list(sel.stream(batch_size=5, **options)) for sel in (here, there))  # type: ignore[arg-type]
        assert [b["path"] for b in one] == [b["path"] for b in two]
        pairs = [(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x["image"], y["image"], strict=True)]
        assert all((a == b).all() for a, b in pairs)
    assert (here.dataset()[7]["image"] == there.dataset()[7]["image"]).all()
    for format in ("webdataset", "parquet"):
        here.export(tmp_path / format, format=format)
        assert json.loads((tmp_path / format / "manifest.json").read_text())["count"] == 12
    part = pickle.loads(pickle.dumps(here.partitions(2)))[1]  # noqa: S301
    assert len(list(part.read())) >= 1
    assert here.to_arrow(blobs=["image"])["image"].to_pylist() == there.to_arrow(blobs=["image"])["image"].to_pylist()


def test_small_values_of_one_size(mongo_uri: str, warehouse_dir: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 255, (40, 64), np.uint8)
    path = tar(tmp_path / "a.tar", {f"{i:03}.bin": row.tobytes() for i, row in enumerate(rows)})
    with TensorDB(mongo_uri, blobs=warehouse_dir / "blobs", roots={"t": Root(tmp_path, stable=True)}) as db:
        assert db.data.ingest(path, "d", in_place=True).referenced == rows.size
        stream = db.data.find({"dataset": "d"}).stream(batch_size=8, passes=3, shuffle=True)  # no lane in memory
        found = [bytes(value) for batch in stream for value in batch["bin"]]
        assert sorted(found) == sorted([row.tobytes() for row in rows] * 3)


def test_tar_files(mongo_uri: str, warehouse_dir: Path, tmp_path: Path, photos: Path) -> None:
    image = {i: path.read_bytes() for i, path in enumerate(sorted(photos.rglob("*.png")))}
    members = {f"{'long name ' * 12}/x{i}.png": data for i, data in image.items()}
    members |= {f"{'long name ' * 12}/x{i}.json": json.dumps({"n": i}).encode() for i in image}
    members |= {f"{'long name ' * 12}/x{i}.npy": npy(np.arange(i)) for i in image}
    path, packed = tar(tmp_path / "ü a.tar", members), tar(tmp_path / "b.tar.gz", members, "w:gz")
    with TensorDB(mongo_uri, blobs=warehouse_dir / "blobs", roots={"shards": tmp_path}) as db:
        report = db.data.ingest(path, "d", in_place=True)
        assert (report.added, report.failures, report.referenced) == (12, 0, sum(map(len, image.values())))
        assert report.copied > 0  # the arrays, which are stored without their headers
        assert images(db, "d", "png") == list(image.values())
        assert [sample["npy"].tolist() for sample in db.data.find({"dataset": "d"})] == [list(range(i)) for i in image]
        report = db.data.ingest(packed, "gz", in_place=True)
        assert (report.added, report.referenced) == (12, 0) and report.copied
        assert report.notes == ["b.tar.gz: gzip has compressed it, so its members were copied"]
        assert images(db, "gz", "png") == list(image.values())
        assert db.fsck().findings == []


def test_arrays_beside_them_in_fast_streams(mongo_uri: str, warehouse_dir: Path, tmp_path: Path, photos: Path) -> None:
    """Small arrays of one size, copied into a reference segment: where batches would be made of mapped memory alone."""
    members: dict[str, bytes] = {}
    for i, path in enumerate(sorted(photos.rglob("*.png"))):
        members |= {f"{i}.png": path.read_bytes(), f"{i}.npy": npy(np.full(5, i, np.int32))}
    with TensorDB(mongo_uri, blobs=warehouse_dir / "blobs", roots={"t": tmp_path}) as db:
        db.data.ingest(tar(tmp_path / "a.tar", members), "d", in_place=True)
        stream = db.data.find({"dataset": "d"}, fields=["npy"]).stream(batch_size=4, passes=4, shuffle=True)
        found = sorted(int(row[0]) for batch in stream for row in batch["npy"])
        assert found == sorted([*range(12)] * 4)


def test_sparse_members_are_copied(opened: TensorDB, photos: Path) -> None:
    path, hole = photos / "s.tar", photos / "hole.bin"
    with open(hole, "wb") as file:
        file.write(b"begin")
        file.truncate(1 << 20)
        file.seek((1 << 20) - 3)
        file.write(b"end")
    if os.system(f"cd '{photos}' && tar --format=gnu -S -cf s.tar hole.bin 2>/dev/null") != 0:
        pytest.skip("no GNU tar")
    report = opened.data.ingest(path, "d", in_place=True)
    assert images(opened, "d", "bin") == [hole.read_bytes()]
    if path.stat().st_size < 1 << 19:
        assert (report.referenced, report.copied) == (0, 1 << 20)
        assert "sparse" in report.notes[0]


@pytest.mark.parametrize("blobs", ["memory://", "gridfs://"])
def test_places_in_other_stores(mongo_uri: str, photos: Path, tmp_path: Path, blobs: str) -> None:
    """The small object is in a store that is no folder; copied blobs are read from there."""
    members = {f"{i}.png": path.read_bytes() for i, path in enumerate(sorted(photos.rglob("*.png")))}
    members |= {f"{i}.npy": npy(np.arange(i + 1)) for i in range(12)}
    path = tar(tmp_path / "a.tar", members)
    with TensorDB(mongo_uri, blobs=blobs, roots={"shards": tmp_path}) as db:
        assert db.data.ingest(path, "d", in_place=True).copied
        for options in ({"passes": 1}, {"passes": 1, "shuffle": True}):
            batches = list(db.data.find({"dataset": "d"}).stream(batch_size=5, **options))  # type: ignore[arg-type]
            assert sorted(len(value) for batch in batches for value in batch["npy"]) == list(range(1, 13))
        assert images(db, "d", "png") == list(members.values())[:12]
        assert db.fsck().findings == []


def test_what_arrow_files_hold(opened: TensorDB, photos: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    data = [None if i % 5 == 1 else path.read_bytes() for i, path in enumerate(files)]
    media = [None if one is None else {"bytes": one, "path": None} for one in data]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"raw": pa.array(data, pa.large_binary()), "img": pa.array(media, kind), "n": range(len(data))})
    pa.feather.write_feather(table, str(photos / "plain.feather"), compression="uncompressed", chunksize=5)
    pa.feather.write_feather(table, str(photos / "packed.feather"), compression="zstd")
    with pa.OSFile(str(photos / "stream.arrows"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=4):
            writer.write_batch(batch)
    for name in ("plain.feather", "stream.arrows", "packed.feather"):
        report = opened.data.ingest(photos / name, name, in_place=True)
        nbytes = 2 * sum(len(one) for one in data if one)
        expected = (0, nbytes) if name == "packed.feather" else (nbytes, 0)
        assert (report.added, report.referenced, report.copied) == (12, *expected), report.notes
        assert bool(report.notes) == (name == "packed.feather")
        assert images(opened, name, "raw") == images(opened, name, "img") == data
    assert opened.fsck().findings == []


def test_mds_and_tfrecord(opened: TensorDB, photos: Path) -> None:
    from tests.unit.ingest.test_tfrecord import example, file_of

    files = sorted(photos.rglob("*.png"))
    opened.data.ingest(photos, "d")
    opened.data.find({"dataset": "d"}).export(photos / "mds", format="mds", fields=["image", "path"])
    report = opened.data.ingest(photos / "mds", "mds", in_place=True)
    assert (report.added, report.copied) == (12, 0) and report.referenced == sum(map(len, images(opened, "d")))  # type: ignore[arg-type]
    assert images(opened, "mds") == images(opened, "d")
    (photos / "a.tfrecord").write_bytes(file_of(*(example({"pic": [path.read_bytes()], "n": [3]}) for path in files)))
    report = opened.data.ingest(photos / "a.tfrecord", "tf", in_place=True)
    assert (report.added, report.copied) == (12, 0)
    assert images(opened, "tf", "pic") == [path.read_bytes() for path in files]


def test_columns_of_paths(opened: TensorDB, photos: Path, tmp_path: Path) -> None:
    names = [path.relative_to(photos) for path in sorted(photos.rglob("*.png"))]
    (photos / "t.csv").write_text("path,n\n" + "".join(f"{name},{i}\n" for i, name in enumerate(names)))
    report = opened.data.ingest(photos / "t.csv", "d", files={"path": Image()}, in_place=True)
    assert (report.added, report.copied) == (12, 0) and report.referenced
    assert images(opened, "d", "path") == [(photos / name).read_bytes() for name in names]
    picture(tmp_path / "elsewhere/x.png")
    (photos / "u.csv").write_text(f"path\n{tmp_path / 'elsewhere/x.png'}\n")
    report = opened.data.ingest(photos / "u.csv", "u", files={"path": Image()}, base="/", in_place=True)
    assert "no root holds this file" in report.failed[0].why  # nobody has opened all of this machine


def test_what_cannot_stay_is_refused(opened: TensorDB, photos: Path, tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"x": [1]}), str(photos / "x.parquet")) if hasattr(pa, "parquet") else None
    (photos / "x.csv").write_text("a\n1\n")
    for source, what in [
        (photos / "x.csv", "the blobs of this format"),
        ([{"a": 1}], "rows in memory are in no file"),
        ("s3://user:secret@bucket/a.tar", r"s3://bucket/a.tar is not on this machine"),
        (["https://host/a.tar?key=secret"], r"https://host/a.tar is not on this machine"),
    ]:
        with pytest.raises(SchemaError, match=f"in_place: {what}.*without in_place=True it is copied") as caught:
            opened.data.ingest(source, "no", in_place=True)
        assert "secret" not in str(caught.value)
    assert opened.data.schema("no") is None
    outside = picture(tmp_path / "outside.png")
    (photos / "ape/link.png").symlink_to(outside)
    report = opened.data.ingest(photos, "d", in_place=True)
    assert (report.added, report.failures) == (12, 1)
    assert report.failed[0].where == "ape/link.png" and "leads out of the root 'photos'" in report.failed[0].why


def test_roots_are_named_by_the_client(mongo_uri: str, warehouse_dir: Path, photos: Path, caplog: Any) -> None:
    blobs = warehouse_dir / "blobs"
    with TensorDB(mongo_uri, blobs=blobs) as db:
        assert db.data.ingest(photos, "d", in_place=True, dry_run=True).added == 12
        assert files_of_user() == {}
        db.data.ingest(photos, "d", in_place=True)
        assert files_of_user() == {"my-photos": str(photos)}
        assert f"the root 'my-photos' is {photos} from now on" in caplog.text
        assert len(images(db, "d")) == 12
        assert str(photos) not in json.dumps(list(db.database["segments"].find()), default=str)
        sources = list(db.database["sources"].find())
        assert [doc["s"] for doc in sources] == ["my-photos:"] and str(photos) not in str(sources)
    write_files({})
    with TensorDB(mongo_uri, blobs=blobs) as db:  # as on another machine
        with pytest.raises(StorageError, match=r"root 'my-photos'.*roots=\{'my-photos': PATH\}.*tensordb roots add"):
            images(db, "d")
        with pytest.raises(SampleError, match=r"roots=\{'my-photos': PATH\}"):
            next(iter(db.data.find({"dataset": "d"}).stream(batch_size=2, max_failures=0.5)))
        assert {(f.kind, f.where) for f in db.fsck().findings} == {("unopened root", "root my-photos")}
        with pytest.raises(SchemaError, match=r"would be called 'my-photos', and there is one of this name"):
            db.data.ingest(photos, "d", in_place=True)
    moved = photos.rename(photos.parent / "moved")
    with TensorDB(mongo_uri, blobs=blobs, roots={"my-photos": moved}) as db:
        assert len(images(db, "d")) == 12
        again = db.data.ingest(moved, "d", in_place=True)
        assert (again.added, again.unchanged) == (0, 12)


def test_opened_roots_travel(opened: TensorDB, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened.data.ingest(photos, "d", in_place=True)
    pickled, ticket = pickle.dumps(opened.data.find({"dataset": "d"})), json.dumps(opened.warehouse.to_json())
    again = pickle.loads(pickled)  # noqa: S301
    assert len(list(again.encoded("image"))) == 12
    again.db.close()
    photos.rename(photos.parent / "elsewhere")
    with TensorDB.over(Warehouse.from_json(json.loads(ticket))) as job:
        with pytest.raises(StorageError, match=f"no folder {photos}.*the root 'photos'"):
            job.data.find().count()


def test_the_ways_to_name_a_root(
    mongo_uri: str, warehouse_dir: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = CliRunner()
    where = ["--db", mongo_uri, "--blobs", str(warehouse_dir / "blobs")]
    told = run.invoke(app, ["ingest", str(photos), "--dataset", "d", "--in-place", "--root", f"p={photos}", *where])
    assert told.exit_code == 0 and "referenced" in told.output, told.output
    fsck = ["fsck", "--db", mongo_uri]
    assert run.invoke(app, fsck).exit_code == 1
    assert run.invoke(app, [*fsck, "--root", f"p={photos}"]).exit_code == 0
    assert run.invoke(app, [*fsck, "--root", "p"]).exit_code == 2
    monkeypatch.setenv("TENSORDB_ROOTS", f"{tmp_path}, p={photos}")
    assert run.invoke(app, fsck).exit_code == 0
    monkeypatch.delenv("TENSORDB_ROOTS")
    assert run.invoke(app, ["roots", "add", "--read-only", "p", str(photos)]).exit_code == 0
    assert run.invoke(app, fsck).exit_code == 0
    assert "(read only)" in run.invoke(app, ["roots", "list"]).output
    told = run.invoke(app, ["roots", "add", "--read-only", "p", str(tmp_path)])
    assert told.exit_code == 1 and "taken" in told.output
    assert run.invoke(app, ["roots", "remove", "p"]).exit_code == 0 and photos.is_dir()
    for wrong in ({"a b": photos}, {"": photos}, {"p": 5}, {"p": "s3://user:pw@bucket/x"}, {"p": tmp_path / "none"}):
        with pytest.raises(StorageError) as caught:
            TensorDB(mongo_uri, blobs=warehouse_dir / "blobs", roots=wrong)  # type: ignore[arg-type]
        assert "pw" not in str(caught.value)


def test_a_file_that_changes(opened: TensorDB, photos: Path) -> None:
    opened.data.ingest(photos, "d", in_place=True)
    find = opened.data.find({"dataset": "d"})
    cut, touched, gone, other = (photos / sample["path"] for sample in find.head(4))
    before = {sample["path"]: sample.encoded("image") for sample in find}
    os.utime(touched, ns=(1, 1))  # a copy of a folder has other times
    assert find.head(2)[1].encoded("image") == before[str(touched.relative_to(photos))]
    size = cut.stat().st_size
    os.truncate(cut, 20)
    gone.unlink()
    other.write_bytes(bytes(other.stat().st_size))
    samples = find.head(4)
    with pytest.raises(CorruptBlobError, match=f"{cut.name} has changed .*{size} bytes.*found 20 bytes.*ingest again"):
        samples[0].encoded("image")
    with pytest.raises(CorruptBlobError, match=f"{gone.name}.*found none.*ingest again"):
        samples[2].encoded("image")
    with pytest.raises(CorruptBlobError, match=f"{other.name} has changed.*are others.*ingest again"):
        samples[3].encoded("image")
    with pytest.raises(SampleError, match="ingest again"):
        list(find.stream(batch_size=4, passes=1))
    good = [path for batch in find.stream(batch_size=4, passes=1, max_failures=3) for path in batch["path"]]
    assert len(good) == 9
    kinds = {finding.where: finding.kind for finding in opened.fsck().findings}
    assert kinds == {
        f"photos/{cut.relative_to(photos)}": "changed file",
        f"photos/{gone.relative_to(photos)}": "missing file",
        f"photos/{other.relative_to(photos)}": "changed file",
    }
    # A quick look sees sizes and times, and reads the rest only of files that have others.
    quick = opened.fsck(quick=True)
    assert {finding.where: finding.kind for finding in quick.findings} == kinds
    same = photos / find.head(6)[5]["path"]
    state = same.stat()
    same.write_bytes(bytes(state.st_size))
    os.utime(same, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert len(opened.fsck(quick=True).findings) == 3 and len(opened.fsck().findings) == 4
    picture(same, 79)
    picture(cut, 77)
    picture(other, 78)
    report = opened.data.ingest(photos, "d", in_place=True)
    assert (report.added, report.updated, report.missing) == (0, 3, 1)
    assert opened.data.find({"_id": samples[0].id}).first().encoded("image") == cut.read_bytes()


def test_the_cut_of_a_file_while_it_is_read_is_no_signal(opened: TensorDB, photos: Path) -> None:
    large = picture(photos / "ape/large.png", 1, (400, 400, 3))
    opened.data.ingest(photos, "d", in_place=True)
    stream = iter(opened.data.find({"path": "ape/large.png"}).stream(batch_size=1))
    next(stream)
    os.truncate(large, 1000)
    with pytest.raises(SampleError, match="ingest again"):
        for _ in range(100):
            next(stream)


def test_a_hostile_reference_reaches_nothing_outside(opened: TensorDB, photos: Path, tmp_path: Path) -> None:
    """Whoever can write to the database and to the place of the blobs."""
    from tensordb_data.blobs.segments.foreign import ForeignBlob
    from tensordb_data.blobs.segments.reference_format import ReferenceBuilder
    from tensordb_data.blobs.stores.foreign import ForeignFile
    from tensordb_data.samples.encode.segment import put_segment

    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"secret")
    (photos / "link.bin").symlink_to(secret)
    opened.data.ingest(photos, "d", in_place=True)
    one = opened.data.find({"dataset": "d"}).first()
    for root, key in [("photos", "../secret.bin"), ("photos", str(secret)), ("photos", "link.bin"), ("other", "x")]:
        segment, builder = ObjectId(), ReferenceBuilder("default", "d", {})
        builder.add(ForeignBlob(ForeignFile(root, key, 6, secret.stat().st_mtime_ns), 0, 6, 0))
        put_segment(opened.warehouse, "d", segment, builder, [], 0)
        opened.database["segments"].update_one({"_id": segment}, {"$set": {"state": "live"}})
        place = {"_tdb.b.image": {"k": segment, "o": 8, "n": 6}}
        opened.database["data"].update_one({"_id": one.id}, {"$set": place})
        with pytest.raises(StorageError) as caught:
            opened.data.find({"_id": one.id}).first().encoded("image")
        assert "secret'" not in str(caught.value)
    opened.fsck()  # it ends


def test_killed_and_taken_up(opened: TensorDB, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensordb_data.ingest.engine.apply import Applier
    from tensordb_data.ingest.readers import image_folder

    monkeypatch.setattr(image_folder, "CHUNK_ROWS", 3)
    apply, calls = Applier.apply, []

    def dies(self: Applier, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return apply(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Applier, "apply", dies)
        opened.data.ingest(photos, "d", in_place=True)
    assert opened.data.find({"dataset": "d"}).count() == 6
    report = opened.data.ingest(photos, "d", in_place=True)
    assert (report.added, report.unchanged) == (6, 6)
    assert opened.fsck().findings == []


def test_damaged_images(opened: TensorDB, photos: Path) -> None:
    import cv2

    data = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[1].tobytes()
    (photos / "ape/half.jpg").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    (photos / "ape/none.png").write_bytes(b"")
    report = opened.data.ingest(photos, "d", in_place=True)
    assert (report.added, sorted(where for where, _ in report.failed)) == (12, ["ape/half.jpg", "ape/none.png"])
    report = opened.data.ingest(photos, "d", in_place=True, on_damage="keep")
    assert (report.added, report.referenced) == (1, len(data) // 2 + 2)
    one = opened.database["data"].find_one({"path": "ape/half.jpg"})
    assert one is not None and "JPEG" in one["_tdb"]["damaged"]


def test_copies_first_and_files_in_place_later(opened: TensorDB, photos: Path) -> None:
    opened.data.ingest(photos, "d")
    picture(photos / "ape/new.png", 50)
    report = opened.data.ingest(photos, "d", in_place=True)
    assert (report.added, report.unchanged) == (1, 12) and report.referenced == (photos / "ape/new.png").stat().st_size
    assert opened.data.ingest(photos, "d").unchanged == 13

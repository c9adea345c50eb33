"""Ingest against a real server: what comes in, and that it comes in once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tensordb_data import Array, DuplicateError, Image, Scalar, SchemaError, TensorDB
from tensordb_data.ingest import ingest
from tensordb_data.ingest.engine import apply as apply_module
from tensordb_data.ingest.readers import image_folder as images_module
from tests import warm


def picture(folder: Path, name: str, shape: tuple[int, ...], seed: int, dtype: Any = np.uint8) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for number, name in enumerate(["cat", "ape", "dög"]):
        for i in range(4):
            picture(folder, f"{name}/{i}.{'png' if i % 2 else 'JPEG'}", (6, 5, 3), 10 * number + i)
    return folder


def test_a_folder_of_images(db: TensorDB, pictures: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = ingest(
        db, pictures, "pets", set={"split": "train"}, progress=lambda done, total, _: calls.append((done, total))
    )
    assert (report.added, report.skipped, report.failed) == (12, 0, [])
    assert calls[-1][0] == calls[-1][1] == sum(path.stat().st_size for path in pictures.rglob("*.*"))
    assert {(sample["class"], sample["label"]) for sample in db.data.find()} == {("ape", 0), ("cat", 1), ("dög", 2)}
    one = db.data.find({"path": "dög/1.png"}).first()
    expected = cv2.cvtColor(cv2.imread(str(pictures / "dög/1.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(one["image"], expected)
    assert one["split"] == "train"


def test_again_adds_nothing_and_more_adds_the_rest(db: TensorDB, pictures: Path) -> None:
    ingest(db, pictures, "pets")
    assert ingest(db, pictures, "pets").skipped == 12
    picture(pictures, "cat/9.png", (6, 5, 3), 99)
    picture(pictures, "bee/0.png", (6, 5, 3), 98)
    report = ingest(db, pictures, "pets")
    assert (report.added, report.skipped) == (2, 12)
    labels = {sample["class"]: sample["label"] for sample in db.data.find()}
    assert labels == {"ape": 0, "cat": 1, "dög": 2, "bee": 3}
    assert ingest(db, pictures, "others").added == 14
    assert ingest(db, pictures, "pets", set={"split": "b"}).updated == 14
    assert db.data.find({"dataset": "pets", "split": "b"}).count() == db.data.find({"dataset": "pets"}).count() == 14


def test_goes_on_where_it_was_interrupted(db: TensorDB, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "_CHUNK_FILES", 5)
    real, commits = apply_module.commit, []

    def commit(*args: Any, **options: Any) -> Any:
        if len(commits) == 1:
            raise KeyboardInterrupt
        commits.append(1)
        return real(*args, **options)

    monkeypatch.setattr(apply_module, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        ingest(db, pictures, "pets")
    monkeypatch.undo()
    assert db.data.find().count() == 5
    report = ingest(db, pictures, "pets")
    assert (report.added, report.skipped) == (7, 5)


def test_two_at_once_add_nothing_twice(db: TensorDB, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, other = apply_module.commit, []

    def commit(*args: Any, **options: Any) -> Any:
        if not other:
            other.append(True)
            other.append(ingest(db, pictures, "pets").added)
        return real(*args, **options)

    monkeypatch.setattr(apply_module, "commit", commit)
    report = ingest(db, pictures, "pets")
    assert (other[1], report.added, report.skipped) == (12, 0, 12)
    assert db.data.find().count() == 12


def test_damaged_images_are_named_and_the_rest_comes_in(db: TensorDB, pictures: Path) -> None:
    whole = (pictures / "cat/1.png").read_bytes()
    (pictures / "cat/cut.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "cat/empty.jpg").write_bytes(b"")
    (pictures / "ape/text.jpg").write_text("not an image")
    (pictures / "stray.png").write_bytes(whole)
    (pictures / "cat/.hidden.png").write_bytes(b"")
    (pictures / "cat/link.png").symlink_to("nowhere.png")
    os.mkfifo(pictures / "cat/pipe.png")
    report = ingest(db, pictures, "pets")
    assert report.added == 12
    named = ["ape/text.jpg", "cat/cut.png", "cat/empty.jpg", "cat/link.png", "cat/pipe.png", "stray.png"]
    assert sorted(name for name, _ in report.failed) == named


def test_gray_folders_stay_gray_and_mixed_ones_become_rgb(db: TensorDB, tmp_path: Path) -> None:
    picture(tmp_path, "gray/a/0.png", (4, 4), 0)
    picture(tmp_path, "gray/a/1.jpg", (4, 4), 0)
    picture(tmp_path, "mixed/a/0.png", (4, 4), 0)
    picture(tmp_path, "mixed/a/1.png", (4, 4, 4), 0)
    picture(tmp_path, "deep/a/1.png", (4, 4), 0, np.uint16)
    picture(tmp_path, "flat/1.png", (4, 4), 0)
    for name, field, shape in (
        ("gray", Image("gray"), (4, 4)),
        ("mixed", Image("rgb"), (4, 4, 3)),
        ("deep", Image("gray", "uint16"), (4, 4)),
    ):
        assert ingest(db, tmp_path / name, name).failed == []
        schema = db.data.schema(name)
        assert schema is not None and schema["image"] == field
        assert {sample["image"].shape for sample in db.data.find({"dataset": name})} == {shape}
    ingest(db, tmp_path / "flat", "flat")
    assert set(db.data.find({"dataset": "flat"}).first()) == {"_id", "dataset", "tags", "image", "path"}
    (tmp_path / "none").mkdir()
    with pytest.raises(SchemaError, match="found none"):
        ingest(db, tmp_path / "none", "none")


def test_csv(db: TensorDB, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text('\ufeffid,name,x,ok,zip\n1,"a, b",2.5,True,01\n\n2,,3,false,02\n2,,3,false,02\n', encoding="utf-8")
    report = ingest(db, file, "table")
    assert (report.added, report.skipped) == (3, 0)
    assert db.data.schema("table") == {
        "id": Scalar("int"),
        "name": Scalar("str", optional=True),
        "x": Scalar("float"),
        "ok": Scalar("bool"),
        "zip": Scalar("str"),
    }
    first, second, _ = db.data.find().all()
    assert (first["name"], first["x"], first["ok"], first["zip"]) == ("a, b", 2.5, True, "01")
    assert "name" not in second and second["x"] == 3.0
    with open(file, "a") as more:
        more.write("3,c,7,true,03\n")
    assert ingest(db, file, "table").added == 1
    assert db.data.find({"id": 3}).first()["x"] == 7.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty file"),
        ("a,b\n", "found none"),
        ("a,a\n1,2\n", "different names"),
        ("a,b\n1\n", "line 2: expected 2 cells, found 1"),
        ("a.b,c\n1,2\n", "rename it"),
        ("tags\nx\n", "taken"),
        ("a\n\xff\n", "expected UTF-8"),
        ("a;b\n1;2\n", "expected commas between columns .*';' in 'a;b'"),
    ],
)
def test_malformed_csv(db: TensorDB, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SchemaError, match=says):
        ingest(db, file, "table")
    assert db.data.find().count() == 0


def test_npz(db: TensorDB, tmp_path: Path) -> None:
    image = np.arange(5000 * 6, dtype=np.uint8).reshape(5000, 2, 3)
    names = np.array(["a", "bc"] * 2500)
    np.savez(tmp_path / "t.npz", image=image, label=np.arange(5000), name=names)
    assert ingest(db, tmp_path / "t.npz", "t").added == 5000
    assert ingest(db, tmp_path / "t.npz", "t").skipped == 5000
    samples = db.data.find().all()
    np.testing.assert_array_equal(np.stack([sample["image"] for sample in samples]), image)
    assert [sample["label"] for sample in samples] == list(range(5000))
    assert samples[1]["name"] == "bc"
    np.savez(tmp_path / "uneven.npz", a=np.zeros(3), b=np.zeros(4))
    with pytest.raises(SchemaError, match="one first dimension"):
        ingest(db, tmp_path / "uneven.npz", "u")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    with pytest.raises(SchemaError, match="pickles and are not read"):
        ingest(db, tmp_path / "objects.npz", "u")
    (tmp_path / "no.npz").write_bytes(b"PK")
    with pytest.raises(SchemaError, match="expected a"):
        ingest(db, tmp_path / "no.npz", "u")


def test_parquet(db: TensorDB, tmp_path: Path) -> None:
    table = pa.table(
        {
            "n": [1, 2, None],
            "s": ["x", "y", "z"],
            "vector": pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2)),
            "boxes": [[1], [2, 3], []],
            "kind": pa.array(["u", "v", "u"]).dictionary_encode(),
            "raw": [b"1", b"", b"22"],
            "when": pa.array([0, 1000, 2000], pa.timestamp("ms")),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    assert ingest(db, tmp_path / "t.parquet", "t").added == 3
    assert ingest(db, tmp_path / "t.parquet", "t").skipped == 3
    schema = db.data.schema("t")
    assert schema is not None
    assert schema["n"] == Scalar("int", optional=True) and schema["vector"] == Array("float32", (2,))
    samples = db.data.find().all()
    assert [sample.get("n") for sample in samples] == [1, 2, None]
    assert [sample["boxes"] for sample in samples] == [[1], [2, 3], []]
    assert [sample["raw"] for sample in samples] == [b"1", b"", b"22"]
    assert [sample["kind"] for sample in samples] == ["u", "v", "u"]
    np.testing.assert_array_equal(samples[2]["vector"], [5, 6])
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    with pytest.raises(SchemaError, match="expected a Parquet file"):
        ingest(db, tmp_path / "no.parquet", "u")


def test_other_sources_and_clashes(db: TensorDB, tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(SchemaError, match="nothing at"):
        ingest(db, tmp_path / "missing", "d")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(SchemaError, match=r"found .txt"):
        ingest(db, tmp_path / "a.txt", "d")
    (tmp_path / "a.npz").write_text("x")
    with pytest.raises(SchemaError, match=r"expected a \.npz or \.npy file"):
        ingest(db, tmp_path / "a.npz", "d")
    with pytest.raises(SchemaError, match="'label' of its own"):
        ingest(db, pictures, "d", set={"label": 3})
    with db.data.writer("taken") as writer:
        writer.add(other=1)
    with pytest.raises(SchemaError, match="no field 'other', which every sample of dataset 'taken' has"):
        ingest(db, pictures, "taken")


def test_gives_up_when_ids_collide_for_ever(db: TensorDB, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commit(*args: Any, **options: Any) -> Any:
        raise DuplicateError("again")

    monkeypatch.setattr(apply_module, "commit", commit)
    with pytest.raises(DuplicateError, match="run it again"):
        ingest(db, pictures, "pets")


def test_kill_9_in_the_middle_of_an_ingest(db: TensorDB, mongo_uri: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.arange(40_000).reshape(20_000, 2))
    script = f"""
import sys
from tensordb_data import TensorDB
from tensordb_data.ingest import ingest
def progress(done, total, report):
    print(report.added, flush=True)
ingest(TensorDB({mongo_uri!r}), {str(tmp_path / "t.npz")!r}, "t", progress=progress)
"""
    child = warm.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert int(child.stdout.readline()) > 0
    child.kill()
    child.wait()
    child.stdout.close()
    before = db.data.find().count()
    report = ingest(db, tmp_path / "t.npz", "t")
    assert 0 < before <= report.skipped  # a commit that was under way may end after the process
    assert report.skipped + report.added == 20_000
    assert db.data.find().count() == 20_000

"""Folders of images: what folders mean, formats, damage, masks, and what is left out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest

from tensordb_data import Image, Scalar, SchemaError, TensorDB


def picture(path: Path, seed: int = 0, shape: tuple[int, ...] = (8, 8, 3), dtype: Any = np.uint8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype)
    assert cv2.imwrite(str(path), pixels)
    return path


def table(db: TensorDB, name: str, *fields: str) -> set[tuple[Any, ...]]:
    return {tuple(sample.get(field) for field in fields) for sample in db.data.find({"dataset": name})}


@pytest.mark.parametrize("order", ["split/class", "class/split"])
def test_splits_and_classes(db: TensorDB, tmp_path: Path, order: str) -> None:
    for i, (split, name) in enumerate([("train", "cat"), ("train", "ape"), ("val", "cat"), ("val", "ape")]):
        first, second = (split, name) if order == "split/class" else (name, split)
        picture(tmp_path / f"p/{first}/{second}/{i}.png", i)
    assert db.data.ingest(tmp_path / "p", "d").failed == []
    expected = {("train", "cat", 1), ("train", "ape", 0), ("val", "cat", 1), ("val", "ape", 0)}
    assert table(db, "d", "split", "class", "label") == expected
    assert db.data.schema("d") == {
        "image": Image("rgb"), "label": Scalar("int"), "class": Scalar("str"), "split": Scalar("str"),
        "path": Scalar("str"),
    }  # fmt: skip
    db.data.ingest(tmp_path / "p", "e", split=None)
    assert table(db, "e", "split") == {(None,)}


def test_the_layout_is_decided_once_for_all_files(db: TensorDB, tmp_path: Path) -> None:
    picture(tmp_path / "p/train/0.png")
    picture(tmp_path / "p/cat/1.png")  # not a split: so the level is that of classes
    assert db.data.ingest(tmp_path / "p", "d").added == 2
    assert table(db, "d", "class", "split") == {("train", None), ("cat", None)}
    picture(tmp_path / "s/train/0.png")
    picture(tmp_path / "s/TEST/1.png")
    db.data.ingest(tmp_path / "s", "s")
    assert table(db, "s", "class", "split") == {(None, "train"), (None, "TEST")}
    picture(tmp_path / "c/cat/deep/er/0.png")
    picture(tmp_path / "c/cat/1.png")
    db.data.ingest(tmp_path / "c", "c")
    assert table(db, "c", "class", "path") == {("cat", "cat/deep/er/0.png"), ("cat", "cat/1.png")}


def test_masks_are_paired_by_stem(db: TensorDB, tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"p/train/images/{i}.jpg", i)
        if i < 2:
            picture(tmp_path / f"p/train/masks/{i}.png", i, (8, 8))
    picture(tmp_path / "p/train/masks/9.png", 1, (8, 8))
    report = db.data.ingest(tmp_path / "p", "d")
    assert (report.added, [where for where, _ in report.failed]) == (3, ["train/masks/9.png"])
    assert table(db, "d", "path", "split") == {(f"train/images/{i}.jpg", "train") for i in range(3)}
    one = db.data.find({"path": "train/images/1.jpg"}).first()
    expected = np.random.default_rng(1).integers(0, 255, (8, 8), np.uint8)
    np.testing.assert_array_equal(one["mask"], expected)
    assert "mask" not in db.data.find({"path": "train/images/2.jpg"}).first()
    picture(tmp_path / "p/train/masks/1.png", 5, (8, 8))  # the mask alone has changed
    report = db.data.ingest(tmp_path / "p", "d")
    assert (report.updated, report.unchanged) == (1, 2)
    assert (db.data.find({"path": "train/images/1.jpg"}).first()["mask"] != expected).any()
    picture(tmp_path / "q/images/0.png")
    picture(tmp_path / "q/images/0.jpg")
    picture(tmp_path / "q/masks/0.png", 1, (8, 8))
    assert "expected one image and one mask" in db.data.ingest(tmp_path / "q", "q").failed[0].why


def test_masks_with_a_palette_are_indices(db: TensorDB, tmp_path: Path) -> None:
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8) % 4
    for i in range(2):
        picture(tmp_path / f"p/images/{i}.png", i)
    (tmp_path / "p/masks").mkdir()
    mask = PIL.Image.fromarray(indices).convert("P")
    mask.putdata(indices.ravel().tolist())
    mask.putpalette([value for i in range(256) for value in (i * 7 % 256, 255 - i, i)])
    mask.save(tmp_path / "p/masks/0.png")
    mask.save(tmp_path / "p/masks/1.png", bits=2, optimize=True)
    db.data.ingest(tmp_path / "p", "d")
    assert db.data.schema("d")["mask"] == Image("index")  # type: ignore[index]
    for sample in db.data.find():
        np.testing.assert_array_equal(sample["mask"], indices)


def test_formats(db: TensorDB, tmp_path: Path) -> None:
    for suffix in ("jpg", "jfif", "png", "webp", "bmp", "tiff", "gif", "jp2", "ppm", "avif"):
        path = picture(tmp_path / f"x.{'jpg' if suffix == 'jfif' else suffix}", 3, (64, 64, 3))
        (tmp_path / "p").mkdir(exist_ok=True)
        path.rename(tmp_path / f"p/{suffix}.{suffix.upper()}")
    report = db.data.ingest(tmp_path / "p", "d")
    assert (report.added, report.failed) == (10, [])
    assert report.notes == ["of images with several frames, the first is read"]
    for sample in db.data.find():
        assert sample.encoded("image") == (tmp_path / "p" / sample["path"]).read_bytes()
        assert sample["image"].shape == (64, 64, 3)


def test_16_bits(db: TensorDB, tmp_path: Path) -> None:
    picture(tmp_path / "a/0.tiff", 0, (8, 8), np.uint16)
    picture(tmp_path / "a/1.png", 1, (8, 8), np.uint16)
    assert db.data.ingest(tmp_path, "d").added == 2
    assert db.data.schema("d")["image"] == Image("gray", "uint16")  # type: ignore[index]
    assert {int(sample["image"].max()) > 255 for sample in db.data.find()} == {True}
    picture(tmp_path / "a/2.png", 1, (8, 8))
    report = db.data.ingest(tmp_path, "d")
    assert report.unchanged == 2 and "expected an image of uint16, found one of uint8" in report.failed[0].why


def test_a_damaged_jpeg_is_found(db: TensorDB, tmp_path: Path) -> None:
    path = tmp_path / "p/whole.jpg"
    path.parent.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert cv2.imwrite(str(path), noise)
    whole = path.read_bytes()
    half = whole[: len(whole) // 2] + b"\xff\xd9"
    (path.parent / "half.jpg").write_bytes(half)
    (path.parent / "hole.jpg").write_bytes(whole[:3000] + whole[3512:])
    (path.parent / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (path.parent / "behind.jpg").write_bytes(whole + b"\0" * 1000)
    report = db.data.ingest(path.parent, "d")
    assert report.added == 2 and [where for where, _ in report.failed] == ["cut.jpg", "half.jpg", "hole.jpg"]
    assert all("JPEG" in why or "truncated" in why for _, why in report.failed)
    kept = db.data.ingest(path.parent, "kept", on_damage="keep")
    assert kept.added == 5
    marked = db.database["data"].distinct("path", {"dataset": "kept", "_tdb.damaged": {"$exists": True}})
    assert sorted(marked) == ["cut.jpg", "half.jpg", "hole.jpg"]
    assert db.data.ingest(path.parent, "unseen", verify="header").added == 5
    (path.parent / "half.jpg").write_bytes(whole)
    assert db.data.ingest(path.parent, "kept", on_damage="keep").updated == 1
    assert len(db.database["data"].distinct("path", {"dataset": "kept", "_tdb.damaged": {"$exists": True}})) == 2


def test_what_is_in_a_folder_is_taken_or_named(db: TensorDB, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "p", tmp_path / "elsewhere"
    picture(folder / "ape/0.png")
    picture(elsewhere / "1.png", 1)
    (folder / "cat").symlink_to(elsewhere, target_is_directory=True)
    (folder / "ape/loop").symlink_to(folder, target_is_directory=True)
    png = (folder / "ape/0.png").read_bytes()
    (folder / "ape/wrong.jpg").write_bytes(png)
    (folder / "ape/none").write_bytes(png)
    (folder / "ape/A.png").write_bytes(png)
    (folder / "ape/a.png").write_bytes(png)
    (folder / "ape/\u00e9.png").write_bytes(png)
    (folder / "ape/e\u0301.png").write_bytes(png)
    (folder / "ape/empty.png").touch()
    (folder / "ape/Thumbs.db").touch()
    (folder / "ape/.hidden.png").touch()
    (folder / "__MACOSX").mkdir()
    picture(folder / "__MACOSX/x.png")
    (folder / "notes.TXT").touch()
    (folder / "labels.csv").touch()
    (folder / "README").touch()
    (folder / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    os.mkfifo(folder / "pipe")
    with open(os.fsencode(folder) + b"/ape/\xff.png", "wb") as file:
        file.write(png)
    report = db.data.ingest(folder, "d")
    names = {"0.png", "wrong.jpg", "none", "A.png", "a.png", "\u00e9.png", "e\u0301.png"}
    assert table(db, "d", "path") == {*((f"ape/{name}",) for name in names), ("cat/1.png",)}
    assert table(db, "d", "class", "label") == {("ape", 0), ("cat", 1)}
    assert sorted(where for where, _ in report.failed) == [
        "ape/\\xff.png",
        "ape/empty.png",
        "ape/loop",
        "pipe",
        "x.heic",
    ]
    assert report.ignored == {".txt": 1, ".csv": 1, "others": 1}
    assert "labels.csv was not read: call it metadata.csv" in report.notes[0]
    (folder / "ape/0.png").unlink()
    pruned = db.data.ingest(folder, "d", prune=True)  # what could not be looked at may be there
    assert (pruned.missing, pruned.pruned) == (1, 0) and "prune: nothing was deleted" in pruned.notes[-1]
    (tmp_path / "none").mkdir()
    with pytest.raises(SchemaError, match="found none"):
        db.data.ingest(tmp_path / "none", "d")
    (tmp_path / "none/x.txt").touch()
    with pytest.raises(SchemaError, match=r"found \.txt"):
        db.data.ingest(tmp_path / "none", "d")

"""Images with annotations into a dataset: COCO, VOC, YOLO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from tensordb_data import Image, Scalar, SchemaError, TensorDB
from tests.integration.export.samples import picture
from tests.unit.ingest.test_boxes import COCO, VOC

SIZE = {"width": 5, "height": 4}


def coco(folder: Path, split: str = "train2017", **changes: Any) -> Path:
    """Annotations of two images, and these."""
    images = [{**image, **SIZE} for image in COCO["images"]]
    doc = {**COCO, "images": images, **changes}
    path = folder / f"annotations/instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(doc))
    for n, image in enumerate(images):
        place = folder / split / image["file_name"]
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(picture(n, ".jpg"))
    return path


def test_coco(db: TensorDB, tmp_path: Path) -> None:
    path = coco(tmp_path / "c")
    report = db.data.ingest(path, "x", format="coco", set={"split": "train"})
    assert (report.added, report.failed) == (2, []) and "1 annotations are of images" in report.notes[0]
    first, second = db.data.find(sort=[("image_id", -1)])
    assert (first["image_id"], first["file_name"], first["license"], first["split"]) == (9, "9.jpg", 2, "train")
    assert first.encoded("image") == picture(0, ".jpg") and second["annotations"] == [] and "license" not in second
    assert [each["label"] for each in first["annotations"]] == [1, 0]
    assert first["annotations"][1]["segmentation"] == {"size": [3, 4], "counts": [0, 2, 10]}
    assert db.data.ingest(path, "x", format="coco", set={"split": "train"}).unchanged == 2
    # An image is known by its id: other annotations change it.
    coco(tmp_path / "c", annotations=COCO["annotations"][:1])
    report = db.data.ingest(path, "x", format="coco", set={"split": "train"})
    assert (report.updated, report.unchanged) == (1, 1)
    assert len(db.data.find({"image_id": 9}).first()["annotations"]) == 1


def test_a_damaged_file_of_several_prunes_nothing(db: TensorDB, tmp_path: Path) -> None:
    coco(tmp_path / "c")
    others = [{**image, "id": image["id"] + 100, **SIZE} for image in COCO["images"]]
    val = coco(tmp_path / "c", "val2017", images=others)
    folder = tmp_path / "c/annotations"
    assert db.data.ingest(folder, "x", format="coco").added == 4
    val.write_bytes(val.read_bytes()[:-20])
    for _ in range(2):
        report = db.data.ingest(folder, "x", format="coco", prune=True)
        assert (report.failures, report.missing, report.pruned) == (1, 0, 0) and db.data.find().count() == 4


def test_the_folder_of_the_images_can_be_named(db: TensorDB, tmp_path: Path) -> None:
    path = coco(tmp_path / "c", "x")
    (tmp_path / "c/x").rename(tmp_path / "pictures")
    report = db.data.ingest(path, "x", format="coco")
    assert report.added == 0 and "name their folder with images=" in report.failed[0].why
    (tmp_path / "pictures/7.jpg").write_bytes(picture(1, ".png")[:-9])
    report = db.data.ingest(path, "x", format="coco", images=tmp_path / "pictures")
    assert report.added == 1 and len(report.failed) == 1
    assert "split" not in (db.data.schema("x") or {})


def test_what_does_not_fit_to_its_image_is_named(db: TensorDB, tmp_path: Path) -> None:
    images = [
        {"id": 1, "file_name": "9.jpg", "width": 50, "height": 40}, {"id": 2, "file_name": "../secret", **SIZE},
        {"id": 3, "file_name": "none.jpg", **SIZE}, {"id": 4, "file_name": "7.jpg", "width": 4, "height": 5},
    ]  # fmt: skip
    path = coco(tmp_path / "c")
    doc = json.loads(path.read_text())
    path.write_text(json.dumps({**doc, "images": images, "annotations": []}))
    (tmp_path / "c/secret").write_bytes(picture(0))
    report = db.data.ingest(path, "x", format="coco")
    assert report.added == 1 and [where.rpartition(" ")[2] for where, _ in report.failed] == ["1", "2", "3"]
    assert "has 5 x 4 pixels; its annotations are for 50 x 40" in report.failed[0].why
    assert "below" in report.failed[1].why
    (tmp_path / "c/annotations/captions_train2017.json").write_text(path.read_text())
    with pytest.raises(SchemaError, match="are about the same images"):
        db.data.ingest(tmp_path / "c/annotations", "y", format="coco")
    path.write_text("[]")
    with pytest.raises(SchemaError, match="expected a file of COCO annotations"):
        db.data.ingest(path, "y", format="coco")


def test_panoptic_segmentations(db: TensorDB, tmp_path: Path) -> None:
    path = coco(tmp_path / "c", annotations=[{"image_id": 9, "file_name": "9.png", "segments_info": [
        {"id": 197121, "category_id": 90, "iscrowd": 0}]}])  # fmt: skip
    panoptic = path.with_name("panoptic_train2017.json")
    path.rename(panoptic)
    (tmp_path / "c/annotations/panoptic_train2017").mkdir()
    (tmp_path / "c/annotations/panoptic_train2017/9.png").write_bytes(picture(5))
    assert db.data.ingest(panoptic, "x", format="coco").failed == []
    row = db.data.find({"image_id": 9}).first()
    assert row.encoded("panoptic") == picture(5) and row["annotations"][0]["class"] == "toothbrush"
    assert "panoptic" not in db.data.find({"image_id": 7}).first()


def test_coco_goes_out_and_comes_in_as_it_was(db: TensorDB, tmp_path: Path) -> None:
    coco(tmp_path / "c")
    coco(tmp_path / "c", "val2017", images=[{**COCO["images"][1], **SIZE, "id": 8}], annotations=[])
    assert db.data.ingest(tmp_path / "c/annotations", "x", format="coco").added == 3
    assert db.data.find().distinct("split") == ["train", "val"]
    db.data.find({"dataset": "x"}).export(tmp_path / "out", "coco")
    out = tmp_path / "out/annotations"
    report = db.data.ingest(out, "y", format="coco")
    assert report.added == 3 and report.failed == [] and any("_id, dataset, tags" in note for note in report.notes)
    pairs = (db.data.find({"dataset": name}, sort="image_id") for name in ("x", "y"))
    for old, new in zip(*pairs, strict=True):
        assert old.encoded("image") == new.encoded("image")
        for name in ("image_id", "file_name", "width", "height", "annotations", "split"):
            assert new[name] == old[name]
    # What was written is what the annotations were.
    written = json.loads((out / "instances_train.json").read_text())
    assert written["annotations"] == COCO["annotations"][:2]
    assert db.data.ingest(out, "y", format="coco").unchanged == 3


def voc(folder: Path) -> None:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    text = VOC.replace(">500</width>", ">5</width>").replace(">375</height>", ">4</height>")
    for n, stem in enumerate(("a", "b", "c")):
        (folder / f"Annotations/{stem}.xml").write_text(text.replace("a.jpg", f"{stem}.jpg"))
        (folder / f"JPEGImages/{stem}.jpg").write_bytes(picture(n, ".jpg"))
    (folder / "Annotations/none.xml").write_text("<annotation><filename>none.jpg</filename></annotation>")
    (folder / "Annotations/bad.xml").write_text("<annotation>")
    (folder / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (folder / "ImageSets/Main/val.txt").write_text("c\n")
    (folder / "ImageSets/Main/dog_train.txt").write_text("a 1\nb -1\n")


def test_voc(db: TensorDB, tmp_path: Path) -> None:
    voc(tmp_path / "v")
    report = db.data.ingest(tmp_path / "v", "x", format="voc")
    assert report.added == 3 and sorted(where for where, _ in report.failed) == [
        "Annotations/bad.xml", "Annotations/none.xml",
    ]  # fmt: skip
    row = db.data.find({"path": "Annotations/b.jpg"}).first()
    assert (row["width"], row["height"], row["split"]) == (5, 4, "train") and row.encoded("image") == picture(1, ".jpg")
    dog, cat = row["annotations"]
    assert (dog["label"], dog["class"], dog["bbox"], dog["difficult"]) == (1, "dog", [0, 9, 500, 11], 1)
    assert (cat["label"], cat["bbox"]) == (0, [0.5, 1.25, 2.5, 7.25])
    assert db.data.find({"split": "val"}).count() == 1
    assert db.data.ingest(tmp_path / "v", "x", format="voc").unchanged == 3
    xml = tmp_path / "v/Annotations/c.xml"
    xml.write_text(xml.read_text().replace("<difficult>1", "<difficult>0"))
    report = db.data.ingest(tmp_path / "v", "x", format="voc")
    assert (report.updated, report.unchanged) == (1, 2)
    # To another format, which has its own rules.
    db.data.find().export(tmp_path / "out", "coco", fields=["image", "annotations", "split", "path"])
    found = json.loads((tmp_path / "out/annotations/instances_val.json").read_text())
    assert found["annotations"][0]["bbox"] == [0, 9, 500, 11] and found["categories"][0]["name"] == "cat"


def yolo(folder: Path) -> None:
    for split in ("train", "val"):
        for name in ("images", "labels"):
            (folder / name / split).mkdir(parents=True)
    for n, stem in enumerate(("a", "b", "c", "d")):
        (folder / f"images/train/{stem}.png").write_bytes(picture(n))
    (folder / "images/val/e.jpg").write_bytes(picture(5, ".jpg"))
    (folder / "labels/train/a.txt").write_text("1 0.5 0.5 0.4 0.5\n")
    (folder / "labels/train/b.txt").write_text("")
    (folder / "labels/train/d.txt").write_text("7 0.5 0.5 0.4 0.5\n")
    config = "path: /somewhere/else\ntrain: images/train\nval: ../images/val\nnames: [cat, dog]\n"
    (folder / "data.yaml").write_text(config)


def test_yolo(db: TensorDB, tmp_path: Path) -> None:
    yolo(tmp_path / "y")
    (tmp_path / "y/data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    report = db.data.ingest(tmp_path / "y", "x")
    assert report.added == 4 and [where for where, _ in report.failed] == ["images/train/d.png"]
    assert "line 1" in report.failed[0].why
    row = db.data.find({"path": "images/train/a.png"}).first()
    assert row["annotations"] == [{"label": 1, "class": "dog", "bbox": pytest.approx([1.5, 1, 2, 2])}]
    # An image without boxes shows the background, with an empty file or without one.
    for stem in ("b", "c"):
        assert db.data.find({"path": f"images/train/{stem}.png"}).first()["annotations"] == []
    assert db.data.find({"split": "val"}).count() == 1
    (tmp_path / "y/labels/train/c.txt").write_text("0 0.5 0.5 1 1")
    (tmp_path / "y/images/train/a.jpg").write_bytes(picture(9, ".jpg"))
    (tmp_path / "y/labels/val/gone.txt").write_text("0 0.5 0.5 1 1")
    report = db.data.ingest(tmp_path / "y", "x")
    assert report.updated == 1 and any("have one text file" in failure.why for failure in report.failed)
    assert ("labels/val/gone.txt", "there is no image of this text file") in report.failed


def test_yolo_from_its_file_that_was_written_elsewhere(db: TensorDB, tmp_path: Path) -> None:
    yolo(tmp_path / "y")
    report = db.data.ingest(tmp_path / "y/data.yaml", "x", format="yolo")
    assert report.added == 4 and db.data.find().distinct("split") == ["train", "val"]
    assert dict(db.data.schema("x") or {}) == {
        "image": Image("rgb"), "width": Scalar("int"), "height": Scalar("int"), "annotations": Scalar("json"),
        "path": Scalar("str"), "split": Scalar("str"),
    }  # fmt: skip
    # A file does not lead out of its folder, unless the user says so.
    (tmp_path / "z").mkdir()
    (tmp_path / "z/data.yaml").write_text("path: ../y\ntrain: images/train\nnames: [cat, dog]\n")
    with pytest.raises(SchemaError, match=r"names the folder .*/y, which is not below .*/z"):
        db.data.ingest(tmp_path / "z/data.yaml", "w", format="yolo")
    report = db.data.ingest(tmp_path / "z/data.yaml", "w", format="yolo", images=tmp_path / "y")
    assert report.added == 3
    (tmp_path / "y/data.yaml").write_text("names: 3")
    with pytest.raises(Exception, match=r"expected the data\.yaml of YOLO"):
        db.data.ingest(tmp_path / "y/data.yaml", "z", format="yolo")


def test_annotations_are_for_the_pixels_that_are_delivered(db: TensorDB, tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x112] = 6
    folder = tmp_path / "c/images"
    folder.mkdir(parents=True)
    PIL.Image.new("RGB", (6, 4)).save(folder / "7.jpg", exif=exif)
    about = tmp_path / "c/about.json"

    def ingest(name: str, width: int, height: int, orient: bool) -> Any:
        image = {"id": 7, "file_name": "7.jpg", "width": width, "height": height}
        about.write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
        types = {"image": Image("rgb", orient=orient)}
        return db.data.ingest(about, name, format="coco", images=folder, types=types)

    for number, (orient, size) in enumerate([(False, (6, 4)), (True, (4, 6))]):
        assert ingest(f"good{number}", *size, orient).failed == []
        assert db.data.find({"dataset": f"good{number}"}).first()["image"].shape == (size[1], size[0], 3)
        (failure,) = ingest(f"bad{number}", *size, not orient).failed
        assert "turns it on its side" in failure.why
        assert f"Image('rgb'{', orient=True' if orient else ''})" in failure.why

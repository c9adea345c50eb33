"""Boxes: the right value of each case in which formats differ."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.errors import CorruptBlobError
from tensordb_data.ingest.readers.boxes.coco import mask_of, panoptic_ids, read_coco
from tensordb_data.ingest.readers.boxes.voc import read_voc
from tensordb_data.ingest.readers.boxes.yolo import YoloConfig, label_path, read_config, read_labels

COCO: dict[str, Any] = {
    "images": [
        {"id": 9, "file_name": "9.jpg", "width": 4, "height": 3, "license": 2},
        {"id": 7, "file_name": "7.jpg", "width": 4, "height": 3},
    ],
    "annotations": [
        {"id": 55, "image_id": 9, "category_id": 90, "bbox": [0.5, 0, 2.25, 1], "iscrowd": 0, "area": 2.25,
         "keypoints": [0, 0, 0, 1, 2, 2]},
        {"id": 3, "image_id": 9, "category_id": 2, "bbox": [0, 0, 1, 1], "iscrowd": 1,
         "segmentation": {"size": [3, 4], "counts": [0, 2, 10]}},
        {"id": 4, "image_id": 1, "category_id": 2},
    ],
    "categories": [{"id": 90, "name": "toothbrush", "supercategory": "indoor"}, {"id": 2, "name": "bicycle"}],
}  # fmt: skip


def coco(doc: Any) -> Any:
    return read_coco(io.BytesIO(json.dumps(doc).encode()))


def test_coco_keeps_what_it_says() -> None:
    found = coco(COCO)
    first, second = found.images
    assert (first.id, first.file_name, first.width, first.height, first.extra) == (9, "9.jpg", 4, 3, {"license": 2})
    assert second.annotations == [] and found.dropped == 1 and not found.is_panoptic
    brush, bicycle = first.annotations
    assert brush == {**{k: v for k, v in COCO["annotations"][0].items() if k != "image_id"}, "label": 1,
                     "class": "toothbrush", "supercategory": "indoor"}  # fmt: skip
    assert (bicycle["label"], bicycle["category_id"], bicycle["class"]) == (0, 2, "bicycle")
    assert bicycle["segmentation"] == {"size": [3, 4], "counts": [0, 2, 10]}


def test_runs_go_down_the_columns() -> None:
    mask = mask_of({"size": [3, 4], "counts": [0, 2, 10]})
    assert np.argwhere(mask).tolist() == [[0, 0], [1, 0]]
    for counts in ([1], [0, 13], [-1, 13], "?", "0o"):
        with pytest.raises(CorruptBlobError):
            mask_of({"size": [3, 4], "counts": counts})


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_masks_are_those_of_pycocotools(rows: list[list[bool]]) -> None:
    mask = pytest.importorskip("pycocotools.mask")
    pixels = np.array(rows, np.uint8)
    found = mask.encode(np.asfortranarray(pixels))
    assert np.array_equal(mask_of(found), pixels)
    assert np.array_equal(mask_of({**found, "counts": found["counts"].decode()}), pixels)


def test_the_ids_of_a_panoptic_png() -> None:
    assert panoptic_ids(np.array([[[1, 2, 3], [255, 0, 0]]], np.uint8)).tolist() == [[1 + 512 + 3 * 65536, 255]]
    doc = {**COCO, "annotations": [{"image_id": 9, "file_name": "9.png", "segments_info": [
        {"id": 197121, "category_id": 90, "iscrowd": 0, "area": 1}]}]}  # fmt: skip
    found = coco(doc)
    assert found.is_panoptic and found.images[0].segments_file == "9.png"
    assert found.images[0].annotations[0]["label"] == 1 and found.images[0].annotations[0]["id"] == 197121


@pytest.mark.parametrize(
    "change",
    [
        {"images": None}, {"images": COCO["images"] * 2}, {"images": [3]}, {"categories": [{"name": "x"}]},
        {"annotations": 3},
    ],
)  # fmt: skip
def test_what_is_no_coco_is_said(change: dict[str, Any]) -> None:
    with pytest.raises(CorruptBlobError):
        coco({**COCO, **change})
    for doc in ([], 3, None):
        with pytest.raises(CorruptBlobError):
            coco(doc)
    with pytest.raises(CorruptBlobError):
        read_coco(io.BytesIO(b"\xff{"))


def test_what_is_missing_costs_no_more_than_its_image() -> None:
    images = [*COCO["images"], {"id": "9", "file_name": "x"}, {"file_name": "y"}, {"id": 12}]
    found = coco({**COCO, "images": images, "annotations": [{"id": 1}, *COCO["annotations"]]})
    assert len(found.images) == len(COCO["images"])
    assert [where for where, _ in found.failed] == ["image '9', 'x'", "image None, 'y'", "image 12, None"]
    assert [why for _, why in found.failed] == [
        "expected integers as ids, found '9'", "it has no 'id'", "it has no 'file_name'"
    ]  # fmt: skip
    assert found.dropped == coco(COCO).dropped + 1
    found = coco({**COCO, "categories": [{"id": 90}]})
    assert found.failed and all("not named" in why for _, why in found.failed)
    found = coco({**COCO, "categories": [{"id": each["id"]} for each in COCO["categories"]]})
    assert found.unnamed == len(COCO["categories"]) and coco(COCO).unnamed == 0
    assert found.failed == [] and found.images[0].annotations[0]["class"] == str(COCO["annotations"][0]["category_id"])


VOC = """<annotation><folder>x</folder><filename>a.jpg</filename>
<size><width>500</width><height>375</height><depth>3</depth></size>
<object><name>dog</name><pose>Left</pose><truncated>1</truncated><difficult>1</difficult>
 <bndbox><xmin>1</xmin><ymin>10</ymin><xmax>500</xmax><ymax>20</ymax></bndbox>
 <part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part></object>
<object><name>cat</name><bndbox><ymax>8.5</ymax><xmin>1.5</xmin><ymin>2.25</ymin><xmax>3</xmax></bndbox></object>
</annotation>"""


def test_voc_counts_from_one_and_its_last_pixel_belongs_to_the_box() -> None:
    found = read_voc(VOC.encode())
    assert (found.file_name, found.width, found.height) == ("a.jpg", 500, 375)
    dog, cat = found.objects
    assert dog["bbox"] == [0, 9, 500, 11] and dog["difficult"] == 1 and dog["truncated"] == 1 and dog["pose"] == "Left"
    assert dog["parts"] == [{"class": "head", "bbox": [1, 1, 2, 2]}]
    assert cat == {"class": "cat", "bbox": [0.5, 1.25, 2.5, 7.25]}
    assert read_voc(b"<annotation/>").objects == []


@pytest.mark.parametrize(
    "text",
    [
        "", "<a/>", VOC[:300], VOC.replace("<xmin>1</xmin>", ""), VOC.replace("500<", "x<"),
        VOC.replace("<name>dog", "<name>"), VOC.replace("<xmin>1<", "<xmin>nan<"), VOC.replace("bndbox", "box"),
        '<!DOCTYPE a [<!ENTITY b "c">]>' + VOC,
    ],
)  # fmt: skip
def test_what_is_no_voc_is_said(text: str) -> None:
    for data in (text.encode(), text.encode("utf-16")):
        with pytest.raises(CorruptBlobError):
            read_voc(data)


NAMES = YoloConfig({0: "cat", 1: "dog"}, ".", {}, None)


def test_yolo_counts_in_shares_from_the_middle() -> None:
    (box,) = read_labels("1 0.5 0.5 0.5 0.25\n\n", 200, 100, NAMES)
    assert box == {"label": 1, "class": "dog", "bbox": [50, 37.5, 100, 25]}
    assert read_labels("", 200, 100, NAMES) == read_labels(" \r\n", 200, 100, NAMES) == []
    (polygon,) = read_labels("0 0.1 0.1 0.5 0.1 0.5 0.2", 200, 100, NAMES)
    assert polygon["segmentation"] == [[20, 10, 100, 10, 100, 20]] and polygon["bbox"] == [20, 10, 80, 10]
    seen = YoloConfig({0: "cat"}, ".", {}, (2, 3))
    (pose,) = read_labels("0 0.5 0.5 1 1 0.5 0.5 2 0 0 0", 200, 100, seen)
    assert pose["keypoints"] == [100, 50, 2, 0, 0, 0] and pose["num_keypoints"] == 1
    (pose,) = read_labels("0 0.5 0.5 1 1 0.5 0.5 0 0", 200, 100, YoloConfig({0: "cat"}, ".", {}, (2, 2)))
    assert pose["keypoints"] == [100, 50, 2, 0, 0, 0]


@pytest.mark.parametrize(
    "text", ["2 0 0 1 1", "0 0 0 1", "0.5 0 0 1 1", "0 a 0 1 1", "0 nan 0 1 1", "0 0 0 1 1 0.9", "-1 0 0 1 1"]
)
def test_what_is_no_label_is_said(text: str) -> None:
    with pytest.raises(CorruptBlobError, match="line 2: "):
        read_labels(f"0 0 0 1 1\n{text}", 10, 10, NAMES)
    with pytest.raises(CorruptBlobError, match="expected 5 or 11 numbers, found 7"):
        read_labels("0 0 0 1 1 0 0", 10, 10, YoloConfig({0: "cat"}, ".", {}, (2, 3)))


def test_the_config_of_yolo() -> None:
    text = b"path: ../coco8\ntrain: images/t\nval: [images/a, images/b]\nnames: {0: cat, 3: dog}\nkpt_shape: [17, 3]"
    splits = {"train": ["images/t"], "val": ["images/a", "images/b"]}
    assert read_config(text) == YoloConfig({0: "cat", 3: "dog"}, "../coco8", splits, (17, 3))
    assert read_config(b"names: [cat, dog]").names == {0: "cat", 1: "dog"}
    for data in (b"", b"names: 3", b"a: b", b"names: [a]\ntrain: 3", b"{", b"names: [a]\nkpt_shape: [1, 4]",
                 b"a: &a [1]\nnames: *a", b"!!python/object/apply:os.system ['true']"):  # fmt: skip
        with pytest.raises(CorruptBlobError):
            read_config(data)


def test_where_the_label_of_an_image_is() -> None:
    assert label_path("images/train/images/a.b.jpg") == "images/train/labels/a.b.txt"
    assert label_path("a.jpg") == "a.txt" and label_path("images/a") == "labels/a.txt"

"""COCO: what the annotations were, they are."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensordb_data import Array, Image, QueryError, Scalar, SchemaError, TensorDB
from tests.integration.export.samples import manifest, picture

RLE = {"size": [4, 5], "counts": [3, 2, 15]}
PACKED = {"size": [4, 5], "counts": "32?"}
ANNOTATIONS: list[list[dict[str, Any]] | None] = [
    [{"id": 900, "category_id": 18, "class": "dog", "supercategory": "animal", "label": 1, "bbox": [0.5, 1, 2.25, 2],
      "area": 4.5, "iscrowd": 0, "segmentation": [[0, 0, 2, 0, 2, 2]]},
     {"id": 17, "category_id": 1, "class": "person", "label": 0, "bbox": [0, 0, 5, 4], "area": 20, "iscrowd": 1,
      "segmentation": RLE}],
    [],
    [{"id": 5, "category_id": 18, "class": "dog", "bbox": [1, 1, 1, 1], "area": 1, "iscrowd": 1,
      "segmentation": PACKED}],
    None,
]  # fmt: skip
SCHEMA = {
    "image": Image(), "image_id": Scalar("int"), "file_name": Scalar("str"), "split": Scalar("str"),
    "annotations": Scalar("json", optional=True), "license": Scalar("int"),
}  # fmt: skip


def fill(db: TensorDB) -> None:
    with db.data.writer("coco", schema=SCHEMA) as writer:
        for n, annotations in enumerate(ANNOTATIONS):
            writer.add(image=picture(n), image_id=70 - n, file_name=f"{70 - n:012d}.png", split="train2017",
                       annotations=annotations, license=3)  # fmt: skip


def test_ids_masks_and_images_without_annotations_are_kept(db: TensorDB, tmp_path: Path) -> None:
    fill(db)
    db.data.find().export(tmp_path / "out", "coco", shard_bytes=300)
    assert manifest(tmp_path / "out")["count"] == 4
    found = json.loads((tmp_path / "out/annotations/instances_train2017.json").read_text())
    for image, n in zip(found["images"], range(4), strict=True):
        assert (image["id"], image["file_name"]) == (70 - n, f"{70 - n:012d}.png")
        assert (image["width"], image["height"]) == (5, 4)
        assert image["license"] == 3 and image["split"] == "train2017" and "annotations" not in image
        assert (tmp_path / "out/images/train2017" / image["file_name"]).read_bytes() == picture(n)
    wanted = [{**{name: value for name, value in each.items() if name not in ("class", "label", "supercategory")},
               "image_id": 70 - n} for n, some in enumerate(ANNOTATIONS) for each in some or ()]  # fmt: skip
    assert found["annotations"] == wanted
    assert found["categories"] == [
        {"id": 1, "name": "person"}, {"id": 18, "name": "dog", "supercategory": "animal"},
    ]  # fmt: skip


def test_pycocotools_reads_it(db: TensorDB, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    fill(db)
    db.data.find().export(tmp_path / "out", "coco")
    api = coco.COCO(str(tmp_path / "out/annotations/instances_train2017.json"))
    assert sorted(api.getImgIds()) == [67, 68, 69, 70] and api.getAnnIds(imgIds=[69]) == []
    mask = api.annToMask(api.loadAnns([17])[0])
    # Runs go down the columns: 3 zeros, 2 ones.
    assert mask.shape == (4, 5) and np.argwhere(mask).tolist() == [[0, 1], [3, 0]]
    assert [category["name"] for category in api.loadCats(api.getCatIds())] == ["person", "dog"]


def test_what_has_no_ids_is_numbered(db: TensorDB, tmp_path: Path) -> None:
    boxes = [[{"class": "cat", "bbox": [0, 0, 1, 1]}], [{"class": "dog", "bbox": [1, 1, 1, 1]}, {"category_id": 7}]]
    with db.data.writer("x", schema={"image": Image(), "annotations": Scalar("json")}) as writer:
        for n, annotations in enumerate(boxes):
            writer.add(image=picture(n), annotations=annotations)
    db.data.find().export(tmp_path / "out", "coco")
    found = json.loads((tmp_path / "out/annotations/instances.json").read_text())
    assert [image["id"] for image in found["images"]] == [0, 1]
    assert [image["file_name"] for image in found["images"]] == ["000000000000.png", "000000000001.png"]
    assert [(each["id"], each["image_id"], each["category_id"]) for each in found["annotations"]] == [
        (1, 0, 8), (2, 1, 9), (3, 1, 7),
    ]  # fmt: skip
    assert found["categories"] == [{"id": 7, "name": "7"}, {"id": 8, "name": "cat"}, {"id": 9, "name": "dog"}]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"id": 17}, "id of an annotation 17 is there twice"),
        ({"id": "a"}, "expected an integer as id of an annotation, found 'a'"),
        ({"category_id": None, "class": None}, "expected a category_id or a class"),
        ({"class": "cat"}, "category 18 is 'cat', and 'dog' elsewhere"),
        ({"bbox": [float("nan")]}, "expected a finite number"),
    ],
)  # fmt: skip
def test_what_is_no_annotation_is_named(db: TensorDB, tmp_path: Path, change: dict[str, Any], text: str) -> None:
    fill(db)
    annotations = copy.deepcopy(ANNOTATIONS[2])
    assert annotations is not None
    annotations[0].update(change)
    db.data.find({"image_id": 68}).update({"$set": {"annotations": annotations}})
    with pytest.raises(SchemaError, match=f"sample [0-9a-f]{{24}} of 'coco'.*{text}"):
        db.data.find().export(tmp_path / "out", "coco")
    assert list(tmp_path.iterdir()) == []


def test_what_coco_has_no_place_for_is_refused(db: TensorDB, tmp_path: Path) -> None:
    fill(db)
    db.data.find({"image_id": 68}).update({"$set": {"annotations": {"a": 1}}})
    with pytest.raises(SchemaError, match="expected a list of dicts"):
        db.data.find().export(tmp_path / "out", "coco")
    db.data.find({"image_id": 68}).update({"$set": {"image_id": 69, "annotations": []}})
    with pytest.raises(SchemaError, match="image_id 69 is there twice"):
        db.data.find().export(tmp_path / "out", "coco")
    schema = {"image": Image(), "mask": Array("uint8", (2, 2)), "annotations": Scalar("json")}
    with db.data.writer("y", schema=schema) as writer:
        writer.add(image=picture(0), mask=np.zeros((2, 2), np.uint8), annotations=[])
    with pytest.raises(QueryError, match=r"field 'mask'.*COCO has no such values"):
        db.data.find({"dataset": "y"}).export(tmp_path / "out", "coco")


ANNOTATION = st.fixed_dictionaries(
    {"category_id": st.integers(0, 3), "iscrowd": st.integers(0, 1),
     "bbox": st.lists(st.floats(0, 1e6) | st.integers(0, 99), min_size=4, max_size=4)},
    optional={
        "segmentation": st.sampled_from([RLE, PACKED]) | st.lists(st.lists(st.floats(0, 99), max_size=6), max_size=2),
        "keypoints": st.lists(st.integers(0, 9), max_size=6), "area": st.floats(0, 1e9), "note": st.text(max_size=5),
    },
)  # fmt: skip


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(rows=st.lists(st.lists(ANNOTATION, max_size=3), min_size=1, max_size=4), shard_bytes=st.sampled_from([1, None]))
def test_what_goes_in_comes_out_and_in_again(
    db: TensorDB, tmp_path: Path, rows: list[list[dict[str, Any]]], shard_bytes: int | None
) -> None:
    for name in ("x", "y"):
        if db.data.schema(name) is not None:
            db.data.drop(name)
    schema = {"image": Image("rgb"), "image_id": Scalar("int"), "annotations": Scalar("json")}
    ids = iter(range(1000, 0, -1))
    with db.data.writer("x", schema=schema) as writer:
        for n, some in enumerate(rows):
            named = [{**each, "id": next(ids), "class": f"c{each['category_id']}"} for each in some]
            writer.add(image=picture(n), image_id=500 - n, annotations=named)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    db.data.find({"dataset": "x"}).export(tmp_path / "out", "coco", shard_bytes=shard_bytes)
    report = db.data.ingest(tmp_path / "out/annotations/instances.json", "y", format="coco")
    assert report.added == len(rows) and report.failed == []
    pairs = (db.data.find({"dataset": name}, sort="image_id") for name in ("x", "y"))
    for old, new in zip(*pairs, strict=True):
        assert new.encoded("image") == old.encoded("image")
        labels = [{name: value for name, value in each.items() if name != "label"} for each in new["annotations"]]
        assert [sorted(each.items(), key=str) for each in labels] == [
            sorted(each.items(), key=str) for each in old["annotations"]
        ]

"""Labels that are likely wrong, and the round trip through Label Studio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import ObjectId

from tensordb_data import Image, QueryError, SchemaError, StorageError, TensorDB
from tests.integration.curation.pictures import PNG

N = 60


def chances_of(labels: Any) -> Any:
    rng = np.random.default_rng(0)
    return (0.9 * np.eye(3)[labels] + 0.1 * rng.dirichlet(np.ones(3), len(labels))).astype(np.float32)


def fill(db: TensorDB, wrong: list[int], names: list[str] | None = None) -> Any:
    true = np.arange(N) % 3
    given = true.copy()
    given[wrong] = (given[wrong] + 1) % 3
    labels = given if names is None else [names[label] for label in given]
    with db.data.writer("d") as w:
        w.add_many(x=np.arange(N), label=labels, chances=chances_of(true))
    return true


def test_wrong_labels_are_found_the_worst_first(db):
    true = fill(db, [4, 17, 33])
    found = db.data.find({"dataset": "d"}).label_issues("chances")
    issues = list(found)
    assert sorted(db.data.find({"_id": issue.id}).first()["x"] for issue in issues) == [4, 17, 33]
    for issue in issues:
        sample = db.data.find({"_id": issue.id}).first()
        assert (issue.label, issue.suggested) == (sample["label"], true[sample["x"]]) and issue.score < 0.5
    assert [issue.score for issue in issues] == sorted(issue.score for issue in issues)
    assert found.ids == [issue.id for issue in issues] and found[0] == issues[0] and len(found) == 3
    assert (found.compared, found.left_out) == (N, 0) and "suggested" in found._repr_html_()
    assert len(db.data.find({"x": {"$gt": 3}}, limit=40).label_issues("chances")) == 3


def test_names_of_classes_and_samples_without_probabilities(db):
    fill(db, [4, 17, 33], ["a", "b", "c"])
    with db.data.writer("d") as w:
        w.add(x=99, label="a", chances=np.array([1, 0, 0], np.float32))
    found = db.data.find().label_issues("chances", classes=["a", "b", "c"])
    assert sorted((issue.label, issue.suggested) for issue in found) == [("a", "c"), ("b", "a"), ("c", "b")]
    assert (found.compared, found.left_out) == (N + 1, 0)
    with pytest.raises(QueryError, match=r"the label 'a' in 'label' is none of 3 classes: give classes="):
        db.data.find().label_issues("chances")
    for classes in (["a", "b"], ["a", "b", "b"], "abc"):
        with pytest.raises(QueryError, match="classes= must be 3 different labels"):
            db.data.find().label_issues("chances", classes=classes)


def test_what_are_no_probabilities(db):
    with db.data.writer("d") as w:
        w.add_many(label=np.arange(6) % 3, chances=np.ones((6, 3), np.float32), n=np.ones((6, 3), int), one=np.zeros(6))
    for name, match in (("chances", "must be probabilities.*found a sum of 3"), ("n", "found int64"), ("one", "found")):
        with pytest.raises(QueryError, match=match):
            db.data.find().label_issues(name)
    with pytest.raises(QueryError, match="two fields"):
        db.data.find().label_issues("label")
    with pytest.raises(QueryError, match="has both"):
        db.data.find({"label": 9}).label_issues("chances")
    with pytest.raises(QueryError, match="only samples have labels"):
        db.logs.find({"run": "r"}).label_issues("chances")


def photos(db: TensorDB) -> list[ObjectId]:
    schema = {"image": Image(), "text": str, "label": int}
    with db.data.writer("photos", schema=schema) as w:
        return [w.add(image=PNG, text=f"photo {i}", label=i) for i in range(3)]


def answered(tasks: list[Any], *answers: Any) -> list[Any]:
    """What Label Studio exports when people have answered."""
    return [
        {**task, "id": n, "annotations": answer} for n, (task, answer) in enumerate(zip(tasks, answers, strict=True))
    ]


def choice(value: Any, name: str = "label", by: int = 7, at: str = "2026-01-01", **more: Any) -> Any:
    result = [{"from_name": name, "to_name": "image", "type": "choices", "value": {"choices": [value]}}]
    return {"completed_by": by, "updated_at": at, "was_cancelled": False, "result": result, **more}


def test_a_round_trip(db, tmp_path):
    ids = photos(db)
    file = tmp_path / "tasks.json"
    assert db.data.find().to_label_studio(file, ["image", "text"], predictions={"label": "image"}) == 3
    tasks = json.loads(file.read_text())
    assert tasks[1]["data"]["text"] == "photo 1" and tasks[1]["data"]["tensordb_id"] == str(ids[1])
    assert tasks[1]["data"]["image"].startswith("data:image/png;base64,")
    assert tasks[1]["predictions"][0]["result"][0]["value"] == {"choices": ["1"]}
    where = {"x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0, "rectanglelabels": ["cat"]}
    size = {"original_width": 4, "original_height": 4}
    box = {"type": "rectanglelabels", "from_name": "boxes", "to_name": "image", **size, "value": where}
    stars = {"type": "rating", "from_name": "quality", "value": {"rating": 4}}
    note = {"type": "textarea", "from_name": "note", "value": {"text": ["dark"]}}
    first = [choice("5", at="2026-01-01"), choice("8", by=9, at="2026-01-02")]
    second = [{**choice("2"), "result": [box, box, stars, note, {"type": "relation"}]}]
    third = [choice("1", was_cancelled=True)]
    foreign = {"id": 9, "data": {"text": "of another project"}, "annotations": [choice("1")]}
    file.write_text(json.dumps([*answered(tasks, first, second, third), foreign]))
    done = db.data.import_label_studio(file)
    assert (done.changed, done.unknown, done.open, done.conflicts, done.foreign) == (2, (), 1, (ids[0],), 1)
    one, two, three = db.data.find().all()
    assert (one["label"], one["provenance"]["label"]["source"]) == (8, "label-studio:9")
    assert two["label"] == 1 and three["label"] == 2 and two["quality"] == 4 and two["note"] == "dark"
    assert [region["rectanglelabels"] for region in two["boxes"]] == [["cat"], ["cat"]]
    assert two["boxes"][0]["original_width"] == 4 and two["provenance"]["boxes"]["source"] == "label-studio:7"
    assert db.data.import_label_studio(file, fields={"label": "label"}).changed == 1


def test_what_choices_stand_for(db, tmp_path):
    photos(db)
    file, back = tmp_path / "tasks.json", tmp_path / "back.json"
    db.data.find({"label": 0}).to_label_studio(file, ["text"])
    task = json.loads(file.read_text())
    back.write_text(json.dumps(answered(task, [choice("cat", "animal")])))
    with pytest.raises(SchemaError, match="'label' holds integers, found 'cat'"):
        db.data.import_label_studio(back, {"animal": "label"})
    with pytest.raises(SchemaError, match="not among the values= of it, dog"):
        db.data.import_label_studio(back, {"animal": "label"}, values={"label": {"dog": 1}})
    assert db.data.import_label_studio(back, {"animal": "label"}, values={"label": {"cat": 4}}).changed == 1
    assert db.data.find({"label": 4}).count() == 1
    assert db.data.import_label_studio(back).changed == 1 and db.data.find({"animal": "cat"}).count() == 1


def test_files_that_are_none(db, tmp_path):
    photos(db)
    file = tmp_path / "a.json"
    with pytest.raises(StorageError, match="cannot be read"):
        db.data.import_label_studio(file)
    for content, match in (("{", "is no JSON"), ("[" * 100_000, "is no JSON"), ("{}", "a list of tasks; found a dict")):
        file.write_text(content)
        with pytest.raises(SchemaError, match=match):
            db.data.import_label_studio(file)
    id = str(db.data.find().first().id)
    broken = [5, None, {"data": 5}, {"data": {"tensordb_id": "x"}}, {"data": {"tensordb_id": id}, "annotations": 5},
              {"data": {"tensordb_id": id}, "annotations": [5, {"result": 5}]}]  # fmt: skip
    file.write_text(json.dumps(broken))
    done = db.data.import_label_studio(file)
    assert (done.changed, done.foreign, done.open) == (0, 4, 1)
    file.write_text(json.dumps([{"data": {"tensordb_id": id}, "annotations": [{"result": [{"from_name": "a"}]}]}]))
    with pytest.raises(SchemaError, match="it is not of Label Studio"):
        db.data.import_label_studio(file)
    stranger = {"data": {"tensordb_id": str(ObjectId())}, "annotations": [choice("1")]}
    file.write_text(json.dumps([stranger]))
    assert len(db.data.import_label_studio(file).unknown) == 1


def test_tasks_that_cannot_be_written(db, tmp_path):
    fill(db, [])
    file = tmp_path / "a.json"
    for fields, options, match in (
        ([], {}, "fields="), ("x", {}, "fields="), (["chances"], {}, "shows images, texts and values"),
        (["none"], {}, "none"), (["x"], {"predictions": {"label": "image"}}, "which fields= does not name"),
        (["x"], {"predictions": {"chances": "x"}}, "is a blob"),
    ):  # fmt: skip
        with pytest.raises(QueryError, match=match):
            db.data.find().to_label_studio(file, fields, **options)
        assert not Path(file).exists()
    file.write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        db.data.find().to_label_studio(file, ["x"])
    assert file.read_text() == "mine"
    with db.data.writer("e") as w:
        w.add(score=float("nan"))
    with pytest.raises(SchemaError, match="JSON"):
        db.data.find({"dataset": "e"}).to_label_studio(tmp_path / "b.json", ["score"])
    assert not (tmp_path / "b.json").exists()

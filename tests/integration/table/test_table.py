"""A Selection as a table, against a real server: counts, summaries, random entities, aggregations."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import Any

import numpy as np
import pytest

from tensordb_data import NotFoundError, Query, QueryError, Scalar, TensorDB

LABELS = [0, 0, 0, 1, 1, 2, 0, 1, 0, 3]


@pytest.fixture
def digits(db: TensorDB) -> TensorDB:
    with db.data.writer("digits", schema={"image": np_image(), "label": int, "score": Scalar("float", optional=True),
                                          "who": str, "meta": dict}) as writer:  # fmt: skip
        for i, label in enumerate(LABELS):
            score = [None, float("nan"), i / 10][min(i, 2)]
            meta = {"who": "xy"[i % 2], "boxes": [{"n": i % 2}, {"n": 7}]}
            tags = ["raw", "odd"][: 1 + i % 2]
            image = np.full((2, 2), i, np.uint8)
            writer.add(image=image, label=label, score=score, who="abc"[i % 3], meta=meta, tags=tags)
    return db


def np_image() -> Any:
    from tensordb_data import Array

    return Array("uint8", (2, 2))


def test_value_counts_are_those_of_a_counter(digits: TensorDB) -> None:
    sel = digits.data.find({"dataset": "digits"})
    assert list(sel.value_counts("label").items()) == [(0, 5), (1, 3), (2, 1), (3, 1)]
    assert sel.value_counts("tags") == {"raw": 10, "odd": 5}
    assert sel.value_counts("meta.who") == {"x": 5, "y": 5} and sel.value_counts("meta.boxes.n") == {7: 10, 0: 5, 1: 5}
    assert sel.value_counts("meta.boxes.0.n") == {0: 5, 1: 5}  # a position, which the server's expressions do not know
    assert sel.value_counts("dataset") == {"digits": 10} and len(sel.value_counts("_id")) == 10
    scores = sel.value_counts("score", missing=True)
    assert scores.pop(None) == 1 and sum(scores.values()) == 9 and sum(score != score for score in scores) == 1
    assert None not in sel.value_counts("score")
    assert sel.value_counts("provenance.label.source") == {}
    assert digits.data.find({"dataset": "none"}).value_counts("label") == {}


def test_value_counts_count_what_the_selection_holds(digits: TensorDB) -> None:
    digits.data.find(sort=[("score", -1)], limit=3).update({"$set": {"label": 9}})
    assert digits.data.find(sort=[("score", -1)], limit=4).value_counts("label") == {9: 3, 0: 1}
    assert digits.data.find({"label": 9}).value_counts("who") == {"b": 1, "c": 1, "a": 1}
    many = [f"{i:06d}" * 30 for i in range(100_000)] + ["a"]
    assert digits.data.find({"who": {"$in": many}}).value_counts("label") == {0: 2, 1: 1, 9: 1}
    other = TensorDB.over(digits.warehouse.in_project("other"))
    assert other.data.find().value_counts("dataset") == {}


def test_value_counts_of_other_entities(db: TensorDB) -> None:
    with db.logs.run("r") as log:
        for step in range(4):
            log.write(step, kind="train" if step else "valid", loss=step // 2, state=bool(step % 2))
    assert db.logs.find().value_counts("kind") == {"train": 3, "valid": 1}
    assert db.logs.find().value_counts("loss") == {0: 2, 1: 2} and db.logs.find().value_counts("nothing") == {}
    assert db.logs.find().value_counts("state") == {False: 2, True: 2}


def test_what_value_counts_refuse(digits: TensorDB) -> None:
    sel = digits.data.find({"dataset": "digits"})
    with pytest.raises(QueryError, match="'image' is a blob in dataset 'digits'"):
        sel.value_counts("image")
    with pytest.raises(QueryError, match="no selected dataset has a field 'lable'; did you mean 'label'"):
        sel.value_counts("lable")
    with pytest.raises(QueryError, match=r"'meta' holds a dict.*'meta\.who'"):
        sel.value_counts("meta")
    with pytest.raises(QueryError, match="internal"):
        sel.value_counts("_tdb.p")
    with digits.data.writer("mixed", schema={"x": Scalar("json")}) as writer:
        writer.add_many(x=[True, 1, 1])
    with pytest.raises(QueryError, match="truth values and numbers that are one key"):
        digits.data.find({"dataset": "mixed"}).value_counts("x")
    assert digits.data.find({"x": {"$type": "bool"}}).value_counts("x") == {True: 1}


def test_a_sample_is_a_function_of_the_seed(digits: TensorDB) -> None:
    sel = digits.data.find({"dataset": "digits"})
    drawn = [sample.id for sample in sel.sample(4)]
    assert drawn == [sample.id for sample in sel.sample(4, seed=0)] and len(set(drawn)) == 4
    assert set(drawn) <= set(sel.distinct("_id")) and drawn != [sample.id for sample in sel.sample(4, seed=1)]
    assert sorted(sample.id for sample in sel.sample(99)) == sorted(sel.distinct("_id"))
    assert (sel.sample(1)[0]["image"] == sel.sample(1)[0]["image"]).all()
    assert set(digits.data.find({"label": 0}, fields=["who"]).sample(2)[0]) == {"_id", "dataset", "tags", "who"}
    assert digits.data.find({"label": 77}).sample(3) == []
    counts = Counter(sample["label"] for seed in range(60) for sample in sel.sample(1, seed))
    assert counts[0] > counts[3] > 0
    for wrong in (0, True, 1.5):
        with pytest.raises(QueryError, match="n is a whole number from 1"):
            sel.sample(wrong)  # type: ignore[arg-type]
    assert [row["step"] for row in digits.logs.find().sample(1)] == []


def test_a_description_has_what_there_is(digits: TensorDB) -> None:
    found = digits.data.find({"dataset": "digits"}).describe()
    assert found.count == 10 and list(found) == ["image", "label", "score", "who", "meta", "tags"]
    label, score, image = found["label"], found["score"], found["image"]
    assert (label.kind, label.present, label.missing, label.min, label.max) == ("Scalar('int')", 10, 0, 0, 3)
    assert label.mean == pytest.approx(np.mean(LABELS)) and label.distinct == 4
    assert label.top == {0: 5, 1: 3, 2: 1, 3: 1}
    assert (score.present, score.missing, score.nan, score.min, score.max) == (9, 1, 1, 0.2, 0.9)
    assert (image.nbytes, image.min, image.max, image.mean) == (40, 4, 4, 4.0) and image.distinct is None
    assert found["who"].top == {"a": 4, "b": 3, "c": 3} and found["who"].min is None
    assert found["meta"].top == {} and found["tags"].top == {"raw": 10, "odd": 5}
    text = str(found)
    assert text.splitlines()[0].startswith("10 of Query('data', {'dataset': 'digits'})") and "40 B in all" in text
    assert "1 + 1 NaN" in text and "a=4, b=3, c=3" in text
    assert list(digits.data.find(fields=["label", "image"]).describe()) == ["image", "label", "tags"]
    assert digits.data.find({"label": 77}).describe().count == 0
    assert digits.data.find(sort=[("score", -1)], limit=2).describe()["score"].min == 0.8


def test_a_description_over_datasets_and_without_a_schema(digits: TensorDB) -> None:
    with digits.data.writer("notes", live=True) as writer:
        writer.add(label="seven", at=dt.datetime(2026, 11, 30), raw=b"12345")
    found = digits.data.find().describe()
    assert found["dataset"].top == {"digits": 10, "notes": 1} and found["label"].kind == "Scalar('int') | Scalar('str')"
    assert found["label"].min is None and found["label"].mean is None
    assert (found["raw"].nbytes, found["raw"].missing) == (5, 10)
    assert found["at"].min == found["at"].max == dt.datetime(2026, 11, 30)
    with digits.logs.run("r") as log:
        log.write(1, loss=0.5)
        log.write(2, acc=0.25, note="\x1b[2Jevil")
    logs = digits.logs.find().describe()
    assert (logs["acc"].present, logs["acc"].missing, logs["loss"].missing) == (1, 1, 1)
    assert logs["step"].max == 2 and "\x1b" not in str(logs)
    assert str(digits.jobs.find().describe()).startswith("0 of Query('jobs'")


def test_aggregate_sees_the_selection_and_nothing_else(digits: TensorDB) -> None:
    other = TensorDB.over(digits.warehouse.in_project("other"))
    with other.data.writer("digits") as writer:
        writer.add(label=0, secret="s")
    sel = digits.data.find({"dataset": "digits"})
    rows = sel.aggregate([{"$group": {"_id": "$label", "n": {"$sum": 1}}}, {"$sort": {"_id": 1}}])
    assert rows == [{"_id": 0, "n": 5}, {"_id": 1, "n": 3}, {"_id": 2, "n": 1}, {"_id": 3, "n": 1}]
    whole = digits.data.find().aggregate([])
    assert len(whole) == 10 and all("_tdb" not in row and "secret" not in row for row in whole)
    assert set(digits.data.find(fields=["label"]).aggregate([])[0]) == {"_id", "dataset", "tags", "label"}
    assert digits.data.find(fields=["label"]).aggregate([{"$group": {"_id": "$who"}}]) == [{"_id": None}]
    top = digits.data.find(sort=[("score", -1)], limit=2)
    assert [row["score"] for row in top.aggregate([{"$match": {"score": {"$gt": 0}}}])] == [0.9, 0.8]
    assert top.aggregate([{"$match": {"label": 77}}]) == []
    id = sel.first().id
    assert sel.aggregate([{"$match": {"_id": str(id)}}, {"$count": "n"}]) == [{"n": 1}]
    assert sel.aggregate([{"$match": {"image": {"$exists": True}}}, {"$count": "n"}]) == [{"n": 10}]
    assert sel.aggregate([{"$set": {"image": {"$add": ["$label", 1]}}}, {"$match": {"image": 4}}, {"$count": "n"}]) == [
        {"n": 1}
    ]
    facet = sel.aggregate([{"$facet": {"a": [{"$match": {"label": 0}}, {"$count": "n"}], "b": [{"$limit": 1}]}}])[0]
    assert facet["a"] == [{"n": 5}] and len(facet["b"]) == 1


def test_aggregate_over_rows_and_parameters(db: TensorDB) -> None:
    for step, acc in enumerate((0.5, float("nan"), 0.9)):
        db.params.save({"w": np.zeros(1)}, run="r", step=step, acc=acc)
    best = db.params.find(sort=[("acc", -1)], limit=1).aggregate([])
    assert [row["step"] for row in best] == [2] and "_tdb_order" not in best[0] and "_tdb" not in best[0]


REFUSED: list[tuple[Any, str]] = [
    ([{"$out": "x"}], r"\$out is refused: it writes"),
    ([{"$merge": {"into": "data"}}], r"\$merge is refused"),
    ([{"$lookup": {"from": "data", "as": "x", "pipeline": []}}], r"\$lookup is refused: it reads other collections"),
    ([{"$unionWith": "data"}], r"\$unionWith"),
    ([{"$graphLookup": {}}], r"\$graphLookup"),
    ([{"$facet": {"a": [{"$unionWith": "data"}]}}], r"\$unionWith is refused"),
    ([{"$facet": {"a": [{"$group": {"_id": None, "x": {"$accumulator": {}}}}]}}], r"\$accumulator runs code"),
    ([{"$currentOp": {}}], r"\$currentOp"),
    ([{"$collStats": {}}], r"\$collStats"),
    ([{"$match": {"$where": "1"}}], r"\$where runs code"),
    ([{"$limit": 1}, {"$match": {"$where": "1"}}], r"\$where runs code"),
    ([{"$set": {"x": {"$function": {"body": "", "args": [], "lang": "js"}}}}], r"\$function runs code"),
    ([{"$project": {"x": {"$_internalJsEmit": {"eval": "f", "this": "$$ROOT"}}}}], "for itself"),
    ([{"$_internalInhibitOptimization": {}}], "for itself"),
    ([{"$project": {"x": {"$meta": "indexKey"}}}], r"\$meta 'indexKey' is refused"),
    ([{"$project": {"x": "$_tdb.p"}}], "internal"),
    ([{"$project": {"x": {"$getField": "_tdb"}}}], "internal"),
    ([{"$limit": 1}, {"$match": {"_tdb.p": "other"}}], "internal"),
    ([{"$grup": {"_id": 1}}], r"no stage '\$grup'; did you mean '\$group'"),
    ([{"$group": {"_id": "$image"}}], "'image' is a blob"),
    ([{"$group": {"_id": "$$ROOT.image"}}], "'image' is a blob"),
    ([{"$sort": {"image": 1}}], "'image' is a blob"),
    ([{"$set": {"x": {"$getField": "image"}}}], "'image' is a blob"),
    ([{"$set": {"x": {"$getField": {"field": "image", "input": "$$ROOT"}}}}], "'image' is a blob"),
    ([{"$facet": {"a": [{"$project": {"image": 1}}]}}], "'image' is a blob"),
    ({"$limit": 1}, r"a pipeline is a list of stages.*write \["),
    ([{"$limit": 1, "$skip": 1}], "stage 0: a stage is a dict with one key"),
    (["$limit"], "stage 0: a stage"),
    ([{"$facet": []}], r"\$facet takes a dict"),
    ([{"$limit": "x"}], "the server refused"),
]


def test_what_aggregate_refuses(digits: TensorDB) -> None:
    for pipeline, message in REFUSED:
        with pytest.raises(QueryError, match=message):
            digits.data.find({"dataset": "digits"}).aggregate(pipeline)


def test_a_filter_has_no_operators_of_the_server_itself(digits: TensorDB) -> None:
    with pytest.raises(QueryError, match=r"_internalJsEmit is an operator that the server has for itself"):
        Query("data", {"$expr": {"$_internalJsEmit": {"eval": "function() {}", "this": "$$ROOT"}}})


def test_the_first_entity(digits: TensorDB) -> None:
    assert digits.data.find({"label": 1}).first()["label"] == 1
    with pytest.raises(NotFoundError):
        digits.data.find({"label": 77}).first()

"""Search: all kinds, by name, tag and text; ranked; right after edits; and cheap for writers."""

from __future__ import annotations

import datetime as dt

import mongomock
import numpy as np
import pymongo
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo.errors import ExecutionTimeout
from typer.testing import CliRunner

from tensordb_data import QueryError, TensorDB
from tensordb_data.cli.main import app
from tensordb_data.search.tokenize import words


def kinds(hits):
    return [hit.kind for hit in hits]


@pytest.fixture
def full(db):
    with db.data.writer("ct") as w:
        for year in (2023, 2024):
            w.add_many(scan=np.zeros((4, 2), np.int16), site=["St. Mary", "Charité"] * 2, tags=["chest", str(year)])
        w.add(scan=np.zeros(2, np.int16), site="St. Mary")
    db.params.save({"w": np.ones(3)}, run="resnet50", step=1, tags=["chest", "2024"], note="after the fix")
    db.architectures.save("ResNet", factory="mypkg.nets:resnet", tags=["cnn"])
    with db.logs.run("resnet50", tags=["chest"]) as log:
        log.write(1, loss=0.5)
        log.write(2, remark="diverged")
    return db


def test_all_kinds_and_the_ranking(full):
    hits = full.search("resnet chest 2024")
    assert hits[0].kind == "params" and hits[0].entity.step == 1  # the only one that has all three
    assert set(kinds(hits)) == {"data", "params", "architectures", "logs"}
    assert kinds(full.search("resnet"))[0] == "architectures"  # the whole word, in a name
    (data, *_) = full.search("chest 2024", kind="data")
    assert (data.name, data.tags, data.selection.count()) == ("ct", ("2024", "chest"), 4)
    assert data["dataset"] == "ct" and data.id == data.entity.id
    assert full.select(data.query).count() == 4
    assert [hit.kind for hit in full.search("diverged")] == ["logs"]
    assert full.search("diverged")[0].selection.first().step == 2
    assert full.search("FIX")[0].kind == "params"
    site = full.search("charite")[0]
    assert site.query.filter == {"dataset": "ct", "site": "Charité"} and site.selection.count() == 4
    assert full.search("mypkg")[0].kind == "architectures"


def test_filters(full):
    assert set(kinds(full.search("chest", kind=["logs", "params"]))) == {"logs", "params"}
    assert full.search("chest", limit=1) == full.search("chest")[:1]
    other = TensorDB.over(full.warehouse.in_project("shoes"))
    assert other.search("chest") == []
    (hit, *_) = other.search("chest", kind="data", project="default")
    assert hit.selection.count() == 4
    with other.data.writer("boots") as w:
        w.add(label=1, tags=["chest"])
    assert [hit.name for hit in full.search("chest", kind="data", project="shoes")] == ["boots"]


def test_beginnings_and_odd_characters(full):
    assert full.search("che 202")[0].kind in ("data", "params")
    assert full.search("") == [] == full.search("  ") == full.search("nothing at all here")
    full.data.find({"dataset": "ct"}).tag("a.b$c", "🙂", "C++", "日本語", "^.*", "x" * 500, "--")
    for text in ("a.b$c", "🙂", "c++", "日本", "^.*", "x" * 500, "X" * 60, "--"):
        assert [hit for hit in full.search(text) if hit.kind == "data"], text
    assert full.search(".*") == [] and full.search("$where") == []
    for bad in ({"words": 3}, {"words": "a", "kind": "datas"}, {"words": "a", "kind": []}, {"words": "a", "limit": 0}):
        with pytest.raises(QueryError):
            full.search(**bad)


def test_tags_and_texts_that_change(full):
    full.data.find({"tags": "2024"}).tag("clean")
    assert full.search("clean")[0].selection.count() == 4
    full.data.find({"tags": "2024"}, limit=1).tag("golden")
    assert full.search("golden")[0].selection.count() == 1
    full.data.find({"dataset": "ct"}).untag("chest")
    assert full.search("chest", kind="data") == []
    full.data.find({"dataset": "ct"}).update({"$set": {"site": "Guy's"}})
    assert full.search("guy")[0].selection.count() == 9 and full.search("charite") == []
    full.params.find({"run": "resnet50"}).tag("best")
    assert kinds(full.search("best")) == ["params"]
    full.params.find({"run": "resnet50"}).update({"$set": {"note": "stable"}})
    full.params.find({"run": "resnet50"}).untag("best")
    assert kinds(full.search("stable 2024"))[0] == "params" and full.search("best") == [] == full.search("fix")
    full.logs.find({"run": "resnet50"}).tag("kept")
    assert full.search("kept")[0].selection.count() == 2
    full.data.find({"dataset": "ct"}).delete()
    assert full.search("ct", kind="data") == []


def test_what_stands_for_a_group_may_go(full):
    for gone in (lambda one: one.delete(), lambda one: one.untag("2024"), lambda one: one.untag("2024")):
        (before, *_) = full.search("ct chest 2024", kind="data")
        count = before.selection.count()
        gone(full.data.find({"_id": before.id}))
        (after, *_) = full.search("ct chest 2024", kind="data")
        assert after.tags == before.tags and after.id != before.id
        assert "2024" in after["tags"] and after.selection.count() == count - 1
    full.data.find({"site": "Charité"}).delete()
    assert full.search("charite") == []


def test_a_hit_that_cannot_be_read_in_time_is_still_a_hit(full, monkeypatch):
    (hit, *_) = full.search("ct chest 2024", kind="data")
    full.data.find({"_id": hit.id}).delete()

    def slow(*_, **limit):
        assert limit["max_time_ms"] < 1000
        raise ExecutionTimeout("operation exceeded time limit", 50)

    monkeypatch.setattr(pymongo.collection.Collection, "find_one", slow)
    (found, *_) = full.search("ct chest 2024", kind="data")
    monkeypatch.undo()
    assert found.query == hit.query and found.id is None and found.selection.count() == 3


def test_rare_together_though_each_is_frequent(db):
    with db.data.writer("d") as w:
        w.add(label=0, tags=["alpha", "beta", "rare"])
        for word in ("alpha", "beta"):
            for i in range(150):
                w.add(label=1, tags=[word, f"n{i}"])
    for text in ("alpha beta", "alph bet", "beta alph"):
        assert db.search(text)[0].tags == ("alpha", "beta", "rare"), text


def test_edits_by_other_tools_are_found_after_touch(full):
    full.database["data"].update_many({"dataset": "ct"}, {"$push": {"tags": "elsewhere"}})
    assert full.search("elsewhere") == []
    full.touch("ct")
    assert full.search("elsewhere", kind="data")


def test_entries_of_what_is_gone_go_after_a_day(full):
    store = full.database["search"]
    full.params.find({"run": "resnet50"}).delete()
    full.search("resnet50")
    assert store.count_documents({"k": "params"}) == 1
    store.update_many({}, {"$set": {"at": dt.datetime(2020, 1, 1)}})
    before = store.count_documents({})
    full.search("resnet50")
    assert store.count_documents({"k": "params"}) == 0 and store.count_documents({}) == before - 1


def test_a_set_of_tags_is_one_entry_however_many_samples(db):
    with db.data.writer("d") as w:
        w.add_many(label=np.arange(900), name=[f"text {i}" for i in range(900)], tags=["a", "b"])
        w.add_many(label=np.arange(10), name=["text"] * 10, tags=["b", "a"])
    store = db.database["search"]
    assert store.count_documents({"f": None}) == 1 and store.count_documents({"f": {"$ne": None}}) == 901


def captions(n):
    """Of three words each: a few frequent ones, more of the others."""
    return [f"{('A', 'The')[i % 2]} {COLORS[i % 7]} Zug-{i % 1300}, {PLACES[i % 10]}." for i in range(n)]


COLORS = ["red", "green", "blue", "Réd", "white", "black", "grey"]
PLACES = ["near Köln", "in 東京", "on a bridge", "котик", "by night", "in snow", "+-+ 🚂 far", "redder", "", "at sea"]


def test_every_word_of_any_number_of_captions(db):
    texts = captions(3000)
    with db.data.writer("trains") as w:
        for low in range(0, 3000, 750):  # from the thousandth on, by words
            w.add_many(label=np.arange(750), caption=texts[low : low + 750], split=["train", "valid", "test"] * 250)
    for text, found in {"koln": "köln", "東京": "東京", "1299": "1299", "🚂": "🚂", "GREY": "grey"}.items():
        hits = db.search(text)
        assert hits[0].selection.count() == sum(found in text.lower() for text in texts), text
        assert found in hits[0]["caption"].lower()
    (red,) = db.search("red")  # in any spelling, but not "redder"
    assert red.selection.count() == sum(" red " in text or " Réd " in text for text in texts)
    assert db.search("кот")[0].selection.count() == sum("котик" in text for text in texts)
    together = db.search("sea green")[0]
    assert together.selection.count() == sum("green" in text and "at sea" in text for text in texts) > 0
    assert db.search("brid blu zug")[0].selection.count() == sum("blue" in t and "bridge" in t for t in texts) > 0
    assert [hit.selection.count() > 0 for hit in db.search("1299 1298")] == [True, True]  # in no text together
    assert db.search("trains 1299")[0].selection.count() == sum("1299" in text for text in texts)
    (valid, *_) = db.search("valid")
    assert valid.query.filter == {"dataset": "trains", "split": "valid"}  # a field of few texts goes by texts
    assert db.database["search"].count_documents({"f.n": "caption", "f.v": {"$exists": True}}) == 0


def test_words_of_captions_that_come_later_and_that_go(db, mongo_uri, warehouse_dir):
    with db.data.writer("trains") as w:
        w.add_many(caption=captions(1200))
    with TensorDB(mongo_uri) as other, other.data.writer("trains") as w:
        (id,) = w.add_many(caption=["A yellow one, with steam"])
    assert db.search("steam yellow")[0].id == id
    db.data.find({"_id": id}).update({"$set": {"caption": "a purple one"}})
    assert db.search("purple")[0].id == id and db.search("steam") == []
    db.data.annotate({id: {"caption": "an orange one"}}, source="model:1")
    assert db.search("orange one")[0].id == id and db.search("purple") == []
    assert db.database["search"].count_documents({"f.v": {"$exists": True}}) == 0


def test_a_long_text_is_found_by_its_words(db):
    with db.data.writer("reports") as w:
        w.add_many(report=["short", f"{'and so on ' * 80}pneumothorax"])
    assert db.search("pneumothorax")[0].selection.count() == 1 == db.search("short")[0].selection.count()


def test_texts_of_annotations(full):
    sample, best = full.data.find({"dataset": "ct"}).first(), full.params.find().first()
    full.data.annotate({sample.id: {"finding": "Pleural effusion"}}, source="model:1")
    (hit,) = full.search("effusion")
    assert hit.query.filter == {"dataset": "ct", "finding": "Pleural effusion"} and hit.id == sample.id
    full.params.annotate({best.id: {"verdict": "overfits", "acc": 0.5}}, source="evaluator")
    assert [hit.id for hit in full.search("overfits")] == [best.id]
    full.params.annotate({best.id: {"verdict": "generalises"}}, source="evaluator")
    assert [hit.id for hit in full.search("generalises")] == [best.id] and full.search("overfits") == []


def test_a_dataset_is_found_by_its_name_however_many_texts_it_has(db):
    with db.data.writer("chest ct") as w:
        w.add_many(path=[f"cat/{i}.png" for i in range(400)], tags=["scan"])
    whole = {"dataset": "chest ct", "tags": "scan"}
    for text in ("chest", "ct", "chest ct", "chest scan", "che"):
        assert [hit.query.filter for hit in db.search(text)] == [whole], text
    (hit,) = db.search("chest 399", limit=1)
    assert hit.query.filter == {"dataset": "chest ct", "path": "cat/399.png"}
    assert hit.query.filter in [found.query.filter for found in db.search("399 ct")]
    assert len(db.search("cat", limit=50)) == 50


def test_the_command_does_not_count_for_long(full, mongo_uri, monkeypatch):
    def found():
        return CliRunner().invoke(app, ["search", "diverged", "--db", mongo_uri]).stdout

    real = pymongo.collection.Collection.count_documents

    def slow(self, *args, **limit):
        if limit.get("maxTimeMS", 1000) < 1000:
            raise ExecutionTimeout("operation exceeded time limit", 50)
        return real(self, *args, **limit)

    assert "many" not in found()
    monkeypatch.setattr(pymongo.collection.Collection, "count_documents", slow)
    assert "many" in found()


def test_mongomock():
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as db:
        with db.data.writer("ct") as w:
            w.add(label=1, tags=["chest"], text="short")
            w.add(label=1, text="long " * 100 + "enough (to be) Split")
        assert db.search("ches")[0].name == "ct"
        assert db.search("enough split")[0].selection.count() == 1 == db.search("be")[0].selection.count()


def test_words():
    assert words("ResNet-50_Café", "cnn cnn") == ["resnet", "50", "cafe", "cnn"]
    assert words("ＣＴ straße") == ["ct", "strasse"] and words("++ 🙂") == ["++", "🙂"] and words(" \n") == []


@given(st.text(max_size=50))
def test_cutting_twice_changes_nothing(text):
    once = words(text)
    assert words(" ".join(once)) == once and all(once)


@pytest.mark.parametrize(
    ("name", "found_by"),
    [
        ("模型训练", ["训练", "模型", "型训", "模型训练", "训", "练"]),
        ("BestModelB0", ["Model", "best", "MODEL", "bestmodelb0", "bestm", "BestModel"]),
        ("ResNet50", ["resnet", "50", "net", "resnet50"]),
        ("HTTPServer", ["http", "server"]),
        ("МояМодель", ["модель", "моя"]),
        ("画像のデータ", ["データ", "画像", "デ"]),
        ("이미지분류", ["분류", "이미지", "류"]),
        ("การฝึกโมเดล", ["ฝึก", "โมเดล"]),
    ],
)
def test_words_within_words(db, name, found_by):
    with db.data.writer(name) as writer:
        writer.add(x=1, note="plain")
    with db.data.writer("other") as writer:
        writer.add(x=1, site=f"{name} at home", tags=[f"tag{name}"])
    db.jobs.push("k", entry="a:b", tags=[name])
    for text in found_by:
        assert {(hit.kind, hit.name) for hit in db.search(text)} == {("data", name), ("data", "other"), ("jobs", "k")}
    assert db.search("fish 鱼") == []


def test_words_within_the_words_of_captions(db):
    with db.data.writer("c") as writer:
        writer.add_many(caption=[f"第{i}张图片的模型训练 {i}" for i in range(1200)])
    assert db.search("训练")[0].selection.count() > 0
    assert db.search("1199")[0].selection.count() == 1


def test_entries_of_the_first_version_are_found_as_before_and_then_by_parts(db):
    with db.data.writer("BestModelB0") as writer:
        writer.add(x=1, site="模型训练")
    old = {"BestModelB0": ["bestmodelb0"], "模型训练": ["模型训练", " bestmodelb0"]}
    for entry in db.database["search"].find():
        words = old[entry["x"][0] if entry["x"] else entry["n"]]
        db.database["search"].update_one({"_id": entry["_id"]}, {"$set": {"w": words}, "$unset": {"g": ""}})
    with TensorDB(str(db.warehouse.address.uri), read_only=True, blobs=None) as reader:
        assert reader.search("模型训练") and reader.search("bestmodelb0") and not reader.search("model")
    assert db.search("训练")[0].selection.first()["site"] == "模型训练"
    assert db.search("model")[0].name == "BestModelB0"

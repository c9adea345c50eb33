"""What objects show in notebooks: everything is escaped and bounded, and nothing raises."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from typing import Any

import cv2
import mongomock
import numpy as np
import pytest

from tensordb_data import Image, Keep, TensorDB
from tensordb_data.common.html import IMAGE, Figures, Shown, image, table
from tensordb_data.table import notebook

EVIL = "<script>alert('x')</script>\x1b[2J\u202e\" onload=\"y"
TAGS = {"div", "p", "table", "thead", "tbody", "tr", "th", "td", "img", "pre"}


class Checked(HTMLParser):
    """Refuses what a notebook would remove, or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.images = "", 0
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attrs:
            if tag == "img":
                assert name in ("src", "alt", "title")
                assert name != "src" or re.fullmatch(r"data:image/(png|jpeg);base64,[\w+/=]+", value or "")
            else:
                assert name == "style" and re.fullmatch(r"text-align:(left|right);padding:2px 8px", value or "")
        if tag == "img":
            self.images += 1
        else:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        assert not re.search("[\x00-\x08\x1b\u202e]", data)
        self.text += data + "\n"


def shown(thing: Any) -> Checked:
    found = thing._repr_html_()
    assert len(found) < 200_000 and "<script" not in found
    return Checked(found)


@pytest.fixture
def filled(db: TensorDB) -> TensorDB:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 3, 60, 60), np.uint8)
    with db.data.writer("x", schema={"image": Image(), "grid": np_array(), "note": str, "meta": dict}) as writer:
        for i in range(8):
            writer.add(image=cv2.imencode(".png", pixels[i].transpose(1, 2, 0))[1].tobytes(), note=EVIL, tags=[EVIL],
                       grid=np.full((6, 6), i, np.float32), meta={EVIL: [EVIL] * 99})  # fmt: skip
    db.params.save({"w": np.ones(2000, "f4")}, run=EVIL, step=1, acc=0.5, note=EVIL)
    with db.logs.run(EVIL, config={"text": EVIL}, tags=[EVIL]) as log:
        log.write(1, loss=0.5, text=EVIL)
    db.jobs.push("t", entry="json:loads", args={"text": EVIL}, tags=[EVIL])
    db.architectures.save("cnn", factory="json:loads", kwargs={"text": EVIL}, tags=[EVIL])
    return db


def np_array() -> Any:
    from tensordb_data import Array

    return Array("float32", (6, 6))


def test_everything_that_a_person_meets_shows_itself(filled: TensorDB) -> None:
    db = filled
    things = [
        db, db.data, db.architectures, db.params, db.jobs, db.logs, db.data.find(), db.data.find().first(),
        db.params.find(),
        db.params.find().first(), db.logs.find(), db.logs.find().first(), db.jobs.find(), db.jobs.find().first(),
        db.architectures.find(), db.architectures.find().first(), db.runs(), db.runs().first(), db.data.datasets(),
        db.data.datasets()[0], db.storage(), db.data.schema("x"), db.data.find().describe(), db.data.find().page(2),
        db.data.find().estimate(), db.data.find().facets(["note"])["note"], db.params.find().first().tensors,
        db.params.lineage(db.params.find().first()), db.jobs.workers(), db.data.find({"note": EVIL}),
        db.data.find().split({EVIL: 1.0}), db.gc(dry_run=True), db.fsck(), db.data.compact("x"),
        db.params.prune(EVIL, Keep(last=1)), db.data.find().stream(batch_size=2, passes=1).stats(),
        db.data.find({"note": "none"}), db.runs({"name": "none"}), db.data.annotate({}, source=EVIL),
    ]  # fmt: skip
    for thing in things:
        assert shown(thing).text.strip(), type(thing)


def test_a_selection_has_five_rows_and_pictures(filled: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shown(filled.data.find({"dataset": "x"}))
    assert found.images == 10 and "8 of Query('data', {'dataset': 'x'})" in found.text
    assert len(re.findall(r"[0-9a-f]{24}", found.text)) == 5
    assert shown(filled.data.find(limit=3)).images == 6 and "3 of Query" in shown(filled.data.find(limit=3)).text
    assert shown(filled.data.find(fields=["note"])).images == 0
    assert shown(filled.data.find().first()).images == 2
    monkeypatch.setattr(notebook, "_COUNTED", 6)
    assert "more than 6 of Query" in shown(filled.data.find()).text
    monkeypatch.setattr(type(filled.warehouse.blobs), "near", False)
    assert shown(filled.data.find()).images == 0


def test_one_that_is_slow_says_so(filled: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"$range": [0, {"$add": [100_000, {"$strLenCP": "$note"}]}]}
    total = {"$reduce": {"input": numbers, "initialValue": 0, "in": {"$add": ["$$value", "$$this"]}}}
    slow = filled.data.find({"$expr": {"$gte": [total, 0]}})
    monkeypatch.setattr(notebook, "_SECONDS", 0.02)
    text = shown(slow).text
    assert "<Selection Query" in text and "TimeLimitError" in text
    monkeypatch.setattr(notebook, "_SECONDS", 30.0)
    monkeypatch.setattr(notebook, "_COUNT_SECONDS", 0.001)
    assert "many of Query" in shown(slow).text


def test_a_server_that_is_away_is_a_line(filled: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: Any, **kwargs: Any) -> Any:
        from pymongo.errors import AutoReconnect

        raise AutoReconnect("away: <b>")

    from pymongo.collection import Collection

    for name in ("find", "aggregate", "count_documents", "distinct"):
        monkeypatch.setattr(Collection, name, away)
    for thing in (filled, filled.data, filled.jobs, filled.data.find(), filled.runs()):
        found = shown(thing)
        assert "away: <b>" in found.text and repr(thing)[:40] in found.text
    monkeypatch.undo()


def test_damaged_blobs_are_left_out(filled: TensorDB) -> None:
    sample = filled.data.find().first()
    filled.database["data"].update_one({"_id": sample.id}, {"$set": {"_tdb.b.image": {"d": b"x", "n": 1, "x": 5}}})
    filled.database["data"].update_one({"_id": sample.id}, {"$set": {"_tdb.b.grid": 7}})
    assert shown(filled.data.find()).images == 8 and shown(filled.data.find().first()).images == 0


def test_keys_are_completed(filled: TensorDB) -> None:
    assert {"image", "note", "_id"} <= set(filled.data.find().first()._ipython_key_completions_())
    assert "acc" in filled.params.find().first()._ipython_key_completions_()
    assert "image" in (filled.data.schema("x") or filled.data)._ipython_key_completions_()  # type: ignore[union-attr]
    assert "image" in filled.data.find().describe()._ipython_key_completions_()


def test_a_password_is_not_shown() -> None:
    db = TensorDB(client=mongomock.MongoClient("mongodb://me:s3cret@host"), blobs="memory://")
    assert "s3cret" not in shown(db).text and "s3cret" not in shown(db.data).text


def test_tables_and_images_are_bounded() -> None:
    wide = table([f"c{i}" for i in range(40)], [[EVIL * 99] * 40] * 500, ["c0"])
    assert Checked(wide).text.count("\n") < 1000 and len(wide) < 60_000
    assert "480 more rows" in wide and "columns c12" in wide
    assert "img" not in image("image/png", bytes(IMAGE + 1), "big") and "img" not in image("text/html", b"x", "other")
    assert "img" not in image("image/png", b"", "none")
    assert base64.b64encode(b"x").decode() in image("image/png", b"x", EVIL)
    Checked(image("image/png", b"x", EVIL))
    deep: Any = 1
    for _ in range(80):
        deep = [deep, {"a": deep}]
    shown(Figures({"deep": deep, "in": {"side": EVIL}}))


def test_nothing_raises() -> None:
    class Bad(Shown):
        def _html(self) -> Any:
            raise ValueError(Worse())

        def __repr__(self) -> str:
            raise RuntimeError

    class Worse:
        def __str__(self) -> str:
            raise RuntimeError

    assert shown(Bad()).text.split() == ["<Bad>", "ValueError:"]

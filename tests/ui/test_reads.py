"""What the page reads, and how often."""

from __future__ import annotations

import html
import re
import threading
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tensordb_data import TensorDB
from tensordb_data.blobs.reader.reader import BlobReader
from tensordb_data.samples.pictures.encode import png
from tensordb_data.ui import make_app
from tensordb_data.ui.pages import curves
from tests.ui.conftest import TOKEN, enter


def of(db: TensorDB, **options: Any) -> TestClient:
    return enter(TestClient(make_app(db, token=TOKEN, **options), base_url="http://127.0.0.1"))


def test_each_blob_of_a_sample_is_read_once(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    with db.data.writer("scans") as writer:
        writer.add(
            scan=rng.integers(0, 255, (5, 64, 64)).astype(np.uint8), small=png(np.zeros((8, 8, 3), np.uint8)),
            note=b"\x01" * 10,
        )  # fmt: skip
    asked: list[int] = []
    read = BlobReader.read

    def counting(reader: Any, refs: Any, *rest: Any) -> Any:
        asked.append(len(refs))
        return read(reader, refs, *rest)

    monkeypatch.setattr(BlobReader, "read", counting)
    client = of(db)
    sample = db.data.find().first()
    page = client.get(f"/sample?id={sample.id}")
    assert page.status_code == 200 and sum(asked) == len(sample.blobs) == 3
    for field in sample.blobs:
        assert client.get(f"/blob?id={sample.id}&field={field}").status_code == 200
    pictures = {client.get(f"/blob?id={sample.id}&field=scan&slice={number}").content for number in range(5)}
    assert len(pictures) == 5 and sum(asked) == 3
    # Another value in its place is another blob.
    db.data.find().delete(all=True)
    with db.data.writer("scans") as writer:
        small = png(np.ones((8, 8, 3), np.uint8))
        writer.add(_id=sample.id, scan=np.zeros((5, 64, 64), np.uint8), small=small, note=b"\x02" * 10)
    client.get(f"/sample?id={sample.id}")
    assert sum(asked) == 6
    assert client.get(f"/blob?id={sample.id}&field=scan").content not in pictures


def test_a_poll_of_curves_reads_what_is_new(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    client = of(db)
    with db.logs.run("r") as log:
        for step in range(10):
            log.write(step, loss=float(step))
            log.write(step, kind="system", loss=5.0)
    found = client.get("/curves?run=r&metric=loss").json()
    asked = f"/fresh?run=r&metric=loss&after={found['newest']}"
    assert client.get(asked).json() == {"more": False, "lines": [], "newest": found["newest"]}
    with db.logs.run("r") as log:
        log.write(10, loss=3.0)
        log.write(11, loss=float("nan"))
        log.write(12, other=1.0)
        log.write(12, kind="valid", loss=7.0)
        log.write(12, kind="system", loss=7.0)
    with db.logs.run("other") as log:
        log.write(1, loss=9.0)
    fresh = client.get(asked).json()
    assert {line["kind"]: (line["run"], line["step"], line["value"]) for line in fresh["lines"]} == {
        "train": ("r", [10, 11], [3.0, None]), "valid": ("r", [12], [7.0]),
    }  # fmt: skip
    again = client.get(f"/fresh?run=r&metric=loss&kind=train&after={fresh['newest']}").json()
    assert again["lines"] == [] and not again["more"]
    monkeypatch.setattr(curves, "_FRESH", 2)
    assert client.get(asked).json() == {"more": True}
    for wrong in ("/fresh?run=r&metric=loss", "/fresh?run=r&metric=loss&after=x", "/fresh?metric=loss&after=x"):
        assert client.get(wrong).status_code == 400, wrong


def test_sampled_curves_are_not_held_up_by_exact_ones(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    with db.logs.run("r") as log:
        log.write(1, loss=1.0)
    client = of(db)
    arrived, go = threading.Semaphore(0), threading.Event()
    numbers = curves._numbers

    def late(column: Any) -> Any:
        arrived.release()
        assert go.wait(60)
        return numbers(column)

    monkeypatch.setattr(curves, "_numbers", late)
    with client:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.get("/curves?run=r&metric=loss").status_code))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for _ in range(2):  # all that may take long at a time
            assert arrived.acquire(timeout=60)
        assert client.get("/sampled?run=r&metric=loss").json()["lines"][0]["rows"] == 1
        assert answers == []
        go.set()
        for thread in threads:
            thread.join()
        assert answers == [200, 200, 200]


def test_garbage_is_looked_for_on_a_button_only(db: TensorDB) -> None:
    with db.data.writer("digits") as writer:
        writer.add_many(image=np.ones((9, 1000), np.uint8), label=np.arange(9))
    db.data.find({"dataset": "digits"}).delete()
    reading = of(db)
    assert "garbage" in reading.get("/storage").text and 'data-post="garbage"' not in reading.get("/storage").text
    assert reading.post("/garbage", json={}).status_code == 403
    client = of(db, write=True)
    page = client.get("/storage").text
    assert 'data-post="garbage"' in page
    (csrf,) = re.findall(r'<meta name="csrf" content="([^"]+)"', page)
    states = [each["state"] for each in db.warehouse.index["segments"].find()]
    answer = client.post("/garbage", json={"id": ""}, headers={"X-CSRF": html.unescape(csrf)})
    assert answer.status_code == 200 and "a gc would mark" in answer.json()["said"], answer.text
    assert [each["state"] for each in db.warehouse.index["segments"].find()] == states
    assert client.get("/garbage").status_code in (404, 405)

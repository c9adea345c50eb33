"""The pages of a dataset and of a sample, and what they may change."""

from __future__ import annotations

import datetime as dt
import html
import json
import re
import struct
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from starlette.testclient import TestClient

from tensordb_data import Array, Bytes, Image, Scalar, TensorDB, Text
from tensordb_data.ui import make_app
from tests.ui.conftest import TOKEN, enter


class Links(HTMLParser):
    """The addresses of a page by the titles of their links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a" and given.get("title") and given.get("href"):
            self.found[str(given["title"])] = str(given["href"])


def addresses(text: str) -> dict[str, str]:
    return Links(text).found


def query_of(address: str) -> Any:
    q = parse_qs(urlsplit(address).query).get("q")
    return None if q is None else json.loads(q[0])


def of(db: TensorDB, **options: Any) -> TestClient:
    return enter(TestClient(make_app(db, token=TOKEN, **options), base_url="http://127.0.0.1"))


def packed(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        length, kind = struct.unpack_from("<IB", data, at)
        yield kind, data[at + 5 : at + 5 + length]
        at += 5 + length


def test_a_dataset_by_blocks(client: TestClient, filled: TensorDB) -> None:
    page = client.get("/data?dataset=digits").text
    ids = re.findall(r'class="item tile" data-id="(\w+)"', page)
    assert len(ids) == 100 and "&lt;script&gt;" in page and "<script>alert" not in page
    after = re.findall(r'data-next="([^"]+)"', page)[0]
    rest = client.get(f"/tiles?dataset=digits&after={after}").text
    ids += re.findall(r'class="item tile" data-id="(\w+)"', rest)
    assert ids == [str(sample.id) for sample in filled.data.find({"dataset": "digits"})]
    assert 'data-next=""' in rest and "href" not in rest.split('class="block', 1)[0]
    table = client.get("/data?dataset=digits&view=table&sort=-conf").text
    assert "sort=conf" in table and table.index("n119") < table.index("n118")
    assert len(re.findall('<tr class="item"', table)) == 100


def test_queries_of_a_dataset(client: TestClient, filled: TensorDB) -> None:
    assert len(re.findall('class="item', client.get('/data?dataset=digits&q={"label": 3}').text)) == 12
    empty = client.get('/data?dataset=digits&q={"label": 77}')
    assert empty.status_code == 200 and "Nothing matches" in empty.text
    cases = {
        '{"$where": "1"}': "refused", '{"_tdb.s": 1}': "_tdb", "{": "not JSON", "[]": "JSON object",
        '{"image": 3}': "blob", '{"label": {"$nope": 1}}': "nope",
    }  # fmt: skip
    for q, words in cases.items():
        answer = client.get("/data", params={"dataset": "digits", "q": q})
        assert answer.status_code == 400 and words in answer.text, q
        assert html.escape(q, quote=False).replace('"', "&#34;") in answer.text  # the box keeps it
    unknown = client.get("/data?dataset=digit")
    assert unknown.status_code == 404 and "digits" in unknown.text
    assert client.get("/data?dataset=digits&after=nonsense").status_code == 400
    source = client.get("/python", params={"dataset": "digits", "q": '{"label": 3}', "sort": "-conf"}).json()["python"]
    assert source == filled.data.find({"dataset": "digits", "label": 3}, sort=[("conf", -1)]).python()
    assert client.get("/count", params={"dataset": "digits", "q": '{"label": 3}'}).json() == {"count": 12}
    explained = client.get("/explain", params={"dataset": "digits", "q": '{"label": 3}'}).json()
    assert explained["returned"] == 12 and "raw" not in explained


def test_a_query_that_burns_ends(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensordb_data.ui import view
    from tensordb_data.ui.pages import samples

    monkeypatch.setattr(view, "SECONDS", 0.3)
    monkeypatch.setattr(samples, "_FACET_SECONDS", 0.3)
    monkeypatch.setattr(samples, "_COUNT_SECONDS", 0.3)
    row = {"$sum": {"$range": [0, {"$add": [3000, "$label"]}]}}
    work = {"$expr": {"$gt": [{"$sum": {"$map": {"input": {"$range": [0, 3000]}, "in": row}}}, -1]}}
    monkeypatch.setattr(samples, "_SORT_SECONDS", 0.3)
    for page in ("facets", "count", "explain"):
        answer = client.get(f"/{page}", params={"dataset": "digits", "q": json.dumps(work)})
        assert answer.status_code in (400, 503), page
    for sort in ("", "conf"):
        answer = client.get("/data", params={"dataset": "digits", "q": json.dumps(work), "sort": sort})
        assert answer.status_code in (200, 400, 503), sort
        assert not sort or "create_index" in answer.text


def test_facets_are_filters(client: TestClient) -> None:
    page = client.get("/facets?dataset=digits").text
    assert "<b>" in page and ">120</span></b> samples" in page and "Histogram of conf" in page
    links = addresses(page)
    assert query_of(links["3"]) == {"label": 3} and query_of(links["hard"]) == {"tags": "hard"}
    chosen = client.get("/facets", params={"dataset": "digits", "q": '{"label": 3, "tags": "scan"}'}).text
    assert ">12</span></b> samples" in chosen and chosen.count('class="chosen"') == 2
    assert query_of(addresses(chosen)["3"]) == {"tags": "scan"}  # once more takes it away
    bars = [query_of(html.unescape(each)) for each in re.findall(r'<a href="([^"]*)"[^>]*data-low', page)]
    assert all(set(bar["conf"]) == {"$gte", "$lt"} for bar in bars[:-1]) and set(bars[-1]["conf"]) == {"$gte", "$lte"}
    assert "120</span> different" in page  # names that occur once each are not listed


def test_facets_of_dates_truth_and_what_is_missing(db: TensorDB) -> None:
    schema = {"at": Scalar("datetime"), "ok": Scalar("bool"), "note": Scalar("str", optional=True)}
    with db.data.writer("times", schema=schema) as writer:
        for day in range(1, 15):
            writer.add(at=dt.datetime(2026, 1, day), ok=day % 2 == 0, note="x" if day > 3 else None)
    client = of(db)
    page = client.get("/facets?dataset=times").text
    links = [html.unescape(each) for each in re.findall(r'href="(\./data[^"]*)"', page)]
    counts = {}
    for link in links:
        rows = client.get(link[1:])
        assert rows.status_code == 200, link
        counts[json.dumps(query_of(link))] = len(re.findall(r'class="item', rows.text))
    assert counts['{"ok": true}'] == 7 and counts['{"note": null}'] == 3 and counts['{"note": "x"}'] == 11
    assert sum(n for q, n in counts.items() if '"at"' in q) == 14


def test_thumbnails_come_packed(client: TestClient, filled: TensorDB) -> None:
    samples = filled.data.find({"dataset": "digits"}).head(3)
    gone = "6b0da669074f47d0d3700ff3"
    ids = [str(samples[0].id), gone, str(samples[2].id)]
    answer = client.get("/thumbs", params={"dataset": "digits", "field": "image", "id": ids})
    found = list(packed(answer.content))
    assert [kind for kind, _ in found] == [2, 0, 2] and found[0][1][:4] == b"\x89PNG"
    for wrong in ({"field": "label", "id": ids}, {"field": "image"}, {"field": "image", "id": ["x"]}):
        assert client.get("/thumbs", params={"dataset": "digits", **wrong}).status_code in (400, 404)
    one = client.get(f"/thumb?id={ids[0]}&field=image")
    assert one.headers["content-type"] == "image/png" and one.content == found[0][1]
    for wrong_id, field in ((gone, "image"), (ids[0], "label"), (ids[0], "")):
        assert client.get(f"/thumb?id={wrong_id}&field={field}").status_code in (400, 404)
    many = [f"{number:024x}" for number in range(201)]
    assert client.get("/thumbs", params={"dataset": "digits", "field": "image", "id": many}).status_code == 400


@pytest.fixture
def scans(db: TensorDB) -> TensorDB:
    """Samples with blobs of each kind."""
    cv2 = pytest.importorskip("cv2")
    ok, photo = cv2.imencode(".png", np.full((6, 8, 3), 200, np.uint8))
    assert ok
    schema = {
        "photo": Image(), "volume": Array("float32", (None, 4, 6)), "note": Text(), "raw": Bytes(),
        "label": Scalar("int"), "where": Scalar("json", optional=True), "vector": Array("float32", (3,)),
    }  # fmt: skip
    with db.data.writer("scans", schema=schema) as writer:
        volume = np.linspace(-1, 1, 120, dtype=np.float32).reshape(5, 4, 6)
        writer.add(
            photo=photo.tobytes(), volume=volume, note="<script>alert(1)</script>",
            raw=b"<svg onload=alert(1)>\x00\xff", label=1, where={"x": 1}, vector=np.ones(3, np.float32),
        )  # fmt: skip
        writer.add(photo=photo.tobytes(), volume=volume * np.nan, note="b", raw=b"\0", label=2, vector=np.ones(3, "f4"))
    return db


def test_a_sample(scans: TensorDB) -> None:
    cv2 = pytest.importorskip("cv2")
    one, two = scans.data.find({"dataset": "scans"}).all()
    client = of(scans)
    page = client.get(f"/sample?id={one.id}&dataset=scans").text
    assert "5 × 4 × 6" in page and 'max="4"' in page and "3c 73 76 67" in page and "[1.0, 1.0, 1.0]" in page
    assert "<script>alert" not in page and "alert(1)" in page and 'id="behind"' in page and 'id="before"' not in page
    back = client.get(f"/sample?id={two.id}&dataset=scans").text
    assert 'id="before"' in back and 'id="behind"' not in back
    turned = client.get(f"/sample?id={two.id}&dataset=scans&sort=-label").text
    assert 'id="behind"' in turned and 'id="before"' not in turned
    photo = client.get(f"/blob?id={one.id}&field=photo")
    assert photo.headers["content-type"] == "image/png" and photo.content == one.encoded("photo")
    for number in range(5):
        data = client.get(f"/blob?id={one.id}&field=volume&slice={number}").content
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert pixels.shape == (4, 6) and (pixels[0, 0], pixels[-1, -1]) == (0, 255)
    assert client.get(f"/blob?id={two.id}&field=volume").status_code == 200  # all nan
    for field, more in (("raw", ""), ("note", ""), ("photo", "&raw=1")):
        kept = client.get(f"/blob?id={one.id}&field={field}{more}")
        assert kept.headers["content-type"] == "application/octet-stream"
        assert kept.headers["content-security-policy"] == "sandbox"
        assert kept.headers["content-disposition"] == "attachment"
    for wrong, status in (("label", 404), ("../x", 404), ("", 404), ("volume&slice=5", 400), ("volume&slice=-1", 400),
                          ("vector", 400), ("volume&channel=9", 400)):  # fmt: skip
        assert client.get(f"/blob?id={one.id}&field={wrong}").status_code == status, wrong


def test_rows_that_name_a_sample(client: TestClient, filled: TensorDB) -> None:
    worst, other = filled.data.find({"label": 3}).first(), filled.data.find({"label": 4}).first()
    page = client.get(f"/logged?id={worst.id}").text
    assert page.count("<tr>") == 3 and "cnn-lr0.01" in page and "worst" in page
    assert "None of the rows has it as worst" in client.get(f"/logged?id={other.id}").text
    assert f"logged?id={worst.id}" in client.get(f"/sample?id={worst.id}").text
    filled.logs.find().delete(all=True)
    assert "have logged no samples" in client.get(f"/logged?id={worst.id}").text


def test_a_sample_that_is_gone_or_damaged(scans: TensorDB, warehouse_dir: Any) -> None:
    one = scans.data.find({"dataset": "scans"}).first()
    client = of(scans)
    gone = client.get("/sample?id=6b0da669074f47d0d3700ff3")
    assert gone.status_code == 404 and "deleted" in gone.text
    for path in (warehouse_dir / "blobs").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(bytes(path.stat().st_size))
    page = client.get(f"/sample?id={one.id}")
    assert page.status_code == 200 and page.text.count('role="alert"') >= 4 and "label" in page.text
    assert client.get(f"/blob?id={one.id}&field=photo").status_code == 400
    thumbs = client.get(f"/thumbs?dataset=scans&field=photo&id={one.id}")
    ((kind, text),) = packed(thumbs.content)
    assert kind == 0 and b"photo" in text


def test_what_is_too_large_is_not_shown(scans: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensordb_data.ui.parts import pictures

    one = scans.data.find({"dataset": "scans"}).first()
    client = of(scans)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 40)
    answer = client.get(f"/blob?id={one.id}&field=photo")
    assert answer.status_code == 400 and "48 pixels" in answer.text
    monkeypatch.setattr(pictures, "MOST_BYTES", 10)
    assert "at most 10 are shown" in client.get(f"/sample?id={one.id}").text
    assert client.get(f"/blob?id={one.id}&field=raw").status_code == 400


def ids_of(db: TensorDB, **filter: Any) -> list[str]:
    return [str(sample.id) for sample in db.data.find({"dataset": "digits", **filter})]


def undo(editor: TestClient, answer: Any) -> None:
    for body in answer.json()["undo"]:
        assert editor.post("/edit", json=body).status_code == 200


def test_tags_and_their_undo(editor: TestClient, filled: TensorDB) -> None:
    ids = ids_of(filled, label=3)[:3]
    filled.data.find({"_id": ids[0]}).tag("review")
    answer = editor.post("/edit", json={"action": "tag", "tags": ["review"], "ids": ids})
    assert answer.json()["said"] == "2 samples changed: tagged review" and len(ids_of(filled, tags="review")) == 3
    undo(editor, answer)
    assert ids_of(filled, tags="review") == ids[:1]
    answer = editor.post("/edit", json={"action": "untag", "tags": ["review", "scan"], "ids": ids})
    assert answer.json()["changed"] == 3 and not ids_of(filled, tags="review")
    undo(editor, answer)
    assert ids_of(filled, tags="review") == ids[:1] and len(ids_of(filled, tags="scan")) == 120


def test_fields_and_their_undo(editor: TestClient, filled: TensorDB) -> None:
    ids = ids_of(filled)[:4]
    before = {str(sample.id): sample["label"] for sample in filled.data.find({"_id": {"$in": ids}})}
    answer = editor.post("/edit", json={"action": "set", "field": "label", "text": "7", "ids": ids})
    assert answer.status_code == 200 and len(ids_of(filled, label=7)) == 16
    undo(editor, answer)
    assert {str(sample.id): sample["label"] for sample in filled.data.find({"_id": {"$in": ids}})} == before
    wrong = editor.post("/edit", json={"action": "set", "field": "label", "text": "three", "ids": ids})
    assert wrong.status_code == 400 and "expected int" in wrong.json()["error"] and "'three'" in wrong.json()["error"]
    text = editor.post("/edit", json={"action": "set", "field": "name", "text": "7", "ids": ids[:1]})
    assert text.status_code == 200 and filled.data.find({"_id": ids[0]}).first()["name"] == "7"
    for bad in (
        {"action": "set", "field": "image", "text": "x"}, {"action": "set", "field": "_tdb", "text": "x"},
        {"action": "set", "field": "dataset", "text": "x"}, {"action": "set", "text": "x"}, {"action": "delete"},
        {"action": "tag", "tags": "x"}, {"action": "tag", "tags": [7]}, {"action": "set", "field": "label", "text": 7},
    ):  # fmt: skip
        assert editor.post("/edit", json={**bad, "ids": ids}).status_code == 400, bad
    for none in ([], ["x"], "x", [f"{number:024x}" for number in range(10_001)]):
        assert editor.post("/edit", json={"action": "tag", "tags": ["a"], "ids": none}).status_code == 400


def test_dates_come_back(db: TensorDB) -> None:
    with db.data.writer("times", schema={"at": Scalar("datetime", optional=True)}) as writer:
        writer.add(at=dt.datetime(2026, 1, 2, 3, 4, 5))
        writer.add(at=None)
    client = of(db, write=True)
    client.headers["X-CSRF"] = client.get("/").text.split('name="csrf" content="')[1].split('"')[0]
    ids = [str(sample.id) for sample in db.data.find()]
    answer = client.post("/edit", json={"action": "set", "field": "at", "text": "2027-01-01", "ids": ids})
    assert answer.status_code == 200 and db.data.find({"at": dt.datetime(2027, 1, 1)}).count() == 2
    undo(client, answer)
    assert [sample.get("at") for sample in db.data.find()] == [dt.datetime(2026, 1, 2, 3, 4, 5), None]
    assert client.post("/edit", json={"action": "set", "field": "at", "text": "soon", "ids": ids}).status_code == 400


def test_all_that_match_are_those_that_were_counted(editor: TestClient, filled: TensorDB) -> None:
    every = {"dataset": "digits", "q": '{"label": 3}', "count": 12}
    late = editor.post("/edit", json={"action": "tag", "tags": ["x"], "all": {**every, "count": 11}})
    assert late.status_code == 400 and "12 samples match now" in late.json()["error"]
    assert editor.post("/edit", json={"action": "tag", "tags": ["x"], "all": every}).json()["changed"] == 12
    assert len(ids_of(filled, tags="x")) == 12
    whole = {"dataset": None, "q": "", "count": 120}
    assert (
        "use the library" in editor.post("/edit", json={"action": "tag", "tags": ["x"], "all": whole}).json()["error"]
    )
    for wrong in ({"dataset": 7}, {"q": 7}, {"q": "{"}):
        assert editor.post("/edit", json={"action": "tag", "tags": ["x"], "all": {**every, **wrong}}).status_code == 400


def test_a_dataset_with_a_name_that_is_a_trap(db: TensorDB) -> None:
    name = "a/b ü&<i>"
    with db.data.writer(name) as writer:
        writer.add(label=1)
    client = of(db)
    page = client.get("/data", params={"dataset": name}).text
    assert "<i>" not in page and "dataset=a%2Fb%20%C3%BC%26%3Ci%3E" in page
    for link in re.findall(r'(?:href|data-src|data-more)="(\./(?:data|tiles|facets|sample)[^"]*)"', page):
        assert client.get(html.unescape(link)[1:]).status_code == 200, link


def test_the_history_of_a_sample(db: TensorDB) -> None:
    with db.data.writer("h") as writer:
        id = writer.add(text="<b>old</b>", label=1)
    one = db.data.find({"_id": id})
    one.update({"$set": {"text": "<i>new</i>"}})
    db.data.annotate({id: {"label": 2}}, source="model:<u>m</u>")
    client = of(db)
    assert f"history?id={id}" in client.get(f"/sample?id={id}").text
    page = client.get(f"/history?id={id}").text
    assert page.index("annotate") < page.index("update") < page.index(">add<")
    assert "&lt;b&gt;old" in page and "&lt;i&gt;new" in page and "model:&lt;u&gt;m" in page
    assert not any(tag in page for tag in ("<b>old", "<i>new", "<u>m"))
    one.delete()
    gone = client.get(f"/history?id={id}")
    assert gone.status_code == 200 and "deleted" in gone.text and ">delete<" in gone.text
    assert client.get("/history?id=6b0da669074f47d0d3700ff3").status_code == 404
    assert client.get("/history?id=x").status_code == 400


def test_frozen_sets(db: TensorDB) -> None:
    client = of(db)
    assert "There is none" in client.get("/frozen").text
    with db.data.writer("h") as writer:
        writer.add_many(label=[1, 2, 2])
    db.data.find({"dataset": "h", "label": 2}).freeze("v1", tags=["<i>t</i>"])
    db.data.find({"dataset": "h"}).freeze("v2 & more")
    page = client.get("/frozen").text
    assert page.index("v2 &amp; more") < page.index("v1") and "&lt;i&gt;t" in page and "<i>t" not in page
    assert 'href="data?dataset=h' in page.replace("./data", "data") and "frozen" in client.get("/").text

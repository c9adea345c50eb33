"""What the pages show, and what they say when there is nothing or something is wrong."""

from __future__ import annotations

import html
import json
import logging
import re
from typing import Any

import numpy as np
import pytest
from pymongo.errors import ExecutionTimeout, ServerSelectionTimeoutError
from starlette.testclient import TestClient

from tensordb_data import TensorDB
from tensordb_data.ui import make_app
from tests.ui.conftest import TOKEN, enter

HOSTILE = "<script>alert('x')</script>\"&<i>"


def test_home(client: TestClient) -> None:
    page = client.get("/").text
    for words in ("digits", "cnn-lr0.01", "read only", "project default"):
        assert words in page


def test_an_empty_warehouse_says_how_to_begin(db: TensorDB) -> None:
    client = enter(TestClient(make_app(db, token=TOKEN), base_url="http://127.0.0.1"))
    said = {
        "": "tensordb ingest", "storage": "Nothing is stored", "data": "There are no samples here",
        "runs": "db.logs.run", "jobs": "tensordb jobs push", "params": "db.params.save",
    }  # fmt: skip
    for page, words in said.items():
        answer = client.get(f"/{page}")
        assert answer.status_code == 200 and words in answer.text, page
    assert "No worker is alive" in client.get("/jobs").text


def test_runs(client: TestClient) -> None:
    page = client.get("/runs?run=cnn-lr0.01&run=cnn-lr0.1&metric=acc").text
    assert page.count(" checked") == 2 and "acc, last" in page and "Differences of the configurations" in page
    assert ">lr</th>" in page and "model.width" not in page
    one = client.get("/runs?run=cnn-lr0.1").text
    assert "model.width" in one and "loss, least" in one and "worst at step" in one
    assert client.get('/runs?q={"config.lr": {"$lt": 0.05}}').text.count('<tr data-key="') == 1
    assert "Nothing matches" in client.get('/runs?q={"name": "none"}').text
    assert "There is no run none" in client.get("/runs?run=none").text
    wrong = client.get('/runs?q={"name"')
    assert wrong.status_code == 400 and "this is not JSON" in wrong.text and "{&#34;name&#34;" in wrong.text


def test_runs_whose_metrics_take_too_long(
    client: TestClient, filled: TensorDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensordb_data.runs import listing

    def late(*given: Any) -> None:
        calls.append(given)
        raise ExecutionTimeout("operation exceeded time limit", 50)

    calls: list[Any] = []
    monkeypatch.setattr(listing, "_with_metrics", late)
    for _ in range(2):
        page = client.get("/runs?run=cnn-lr0.1&metric=loss")
        assert page.status_code == 200 and "takes too long here" in page.text
        assert f"{2.4 * np.exp(-4):.4g}" in page.text  # the newest value of the one that is ticked
    assert len(calls) == 1  # what took too long is not tried at each look


def test_pictures_that_a_run_has_logged(client: TestClient, filled: TensorDB) -> None:
    with filled.logs.run("cnn-lr0.1") as log:
        log.write(41, seen=np.arange(48, dtype=np.uint8).reshape(6, 8), weights=np.arange(9.0))
    page = client.get("/runs?run=cnn-lr0.1").text
    (address,) = re.findall(r'src="\.(/array[^"]*)"', page)
    answer = client.get(html.unescape(address))
    assert answer.headers["content-type"] == "image/png" and answer.content[16:24] == b"\0\0\0\x08\0\0\0\x06"
    for name in ("weights", "loss", "none", "run"):
        assert client.get(html.unescape(address).replace("seen", name)).status_code in (400, 404), name


def test_curves(client: TestClient) -> None:
    for page in ("curves", "sampled"):
        found = client.get(f"/{page}?run=cnn-lr0.1&run=cnn-lr0.01&metric=loss").json()
        assert [line["run"] for line in found["lines"]] == ["cnn-lr0.1", "cnn-lr0.01"]
        assert found["lines"][0]["step"] == list(range(1, 41)) and found["lines"][0]["rows"] == 40
        assert found["lines"][0]["mean"][0] == pytest.approx(2.4 * np.exp(-0.1))
    assert client.get("/curves?run=cnn-lr0.1&metric=val_acc&kind=valid").json()["lines"][0]["step"] == [40]
    wrong = client.get("/curves?run=cnn-lr0.1&metric=los", headers={"Accept": "*/*"})
    assert wrong.status_code == 404 and "acc, loss" in wrong.json()["error"]
    assert client.get("/curves?metric=loss").status_code == 400


def test_numbers_that_are_none_leave_a_gap(db: TensorDB) -> None:
    with db.logs.run("r") as log:
        for step, value in enumerate((1.0, float("nan"), float("inf"), 2.0)):
            log.write(step, loss=value)
    client = enter(TestClient(make_app(db, token=TOKEN), base_url="http://127.0.0.1"))
    for page in ("curves", "sampled"):
        (line,) = client.get(f"/{page}?run=r&metric=loss").json()["lines"]
        assert line["mean"] == [1.0, None, None, 2.0] and line["nonfinite"] == 2


def test_params_and_one_set(client: TestClient, filled: TensorDB) -> None:
    page = client.get('/params?q={"val_acc": {"$gt": 0.95}}').text
    assert page.count('<tr data-key="') == 1 and "cnn-lr0.1" in page and "val_acc=1" in page
    one = filled.params.find({"run": "cnn-lr0.1"}).first()
    page = client.get(f"/set?id={one.id}").text
    assert str(one.id) in page and "val_acc" in page and "code" in page
    assert client.get("/set?id=6b0da669074f47d0d3700ff3").status_code == 404
    wrong = client.get("/set?id=7")
    assert wrong.status_code == 400 and "24 hexadecimal digits" in wrong.text


def test_jobs_and_one_job(client: TestClient, filled: TensorDB) -> None:
    page = client.get("/jobs").text
    assert page.count('<tr data-key="') == 3 and "no worker is alive" in page and "waiting for job" in page
    assert page.index("ready, but") < page.index("waiting for job") < page.index("cancelled</span></td>")
    assert client.get("/jobs?status=cancelled").text.count('<tr data-key="') == 1
    assert client.get("/jobs?kind=evaluate").text.count('<tr data-key="') == 1
    job = filled.jobs.find({"status": "ready"}).first()
    page = client.get(f"/job?id={job.id}").text
    assert "mypkg.jobs:train" in page and "It has printed nothing" in page and "data-post" not in page
    with filled.logs.run(job.run) as log:
        log.write(1, kind="output", text=HOSTILE)
    page = client.get(f"/job?id={job.id}").text
    assert "alert(" in page and "<script>alert" not in page


def test_cancel_and_retry(editor: TestClient, filled: TensorDB) -> None:
    job = filled.jobs.find({"status": "ready"}).first()
    assert f'data-post="cancel" data-id="{job.id}"' in editor.get("/jobs").text
    assert editor.post("/cancel", json={"id": str(job.id)}).json() == {
        "said": f"job {job.id} is cancelled, and asked to end"
    }
    late = editor.post("/cancel", json={"id": str(job.id)})
    assert late.status_code == 400 and "it is cancelled" in late.json()["error"]
    assert editor.post("/retry", json={"id": str(job.id)}).status_code == 200 and job.status == "ready"
    late = editor.post("/retry", json={"id": str(job.id)})
    assert late.status_code == 400 and "is ready" in late.json()["error"]
    assert editor.post("/retry", json={}).status_code == 400


def test_search(client: TestClient) -> None:
    page = client.get("/search?words=cnn").text
    assert "cnn-lr0.1" in page and 'href="./runs?run=' in page
    assert "Nothing in project" in client.get("/search?words=nothinghasthis").text
    assert client.get("/search?words=cnn&kind=nonsense").status_code == 400


def test_what_users_choose_is_hostile(db: TensorDB) -> None:
    with db.logs.run(HOSTILE, config={HOSTILE: HOSTILE}, tags=[HOSTILE]) as log:
        log.write(1, kind=HOSTILE, loss=1.0)
    db.params.save({"w": np.ones(2)}, run=HOSTILE, step=1, tags=[HOSTILE], note=HOSTILE)
    job = db.jobs.push(HOSTILE, entry="a:b", args={"x": HOSTILE}, tags=[HOSTILE])
    client = enter(TestClient(make_app(db, token=TOKEN, write=True), base_url="http://127.0.0.1"))
    pages = [
        "", "runs", f"runs?run={HOSTILE}&metric={HOSTILE}".replace("&<", "%26<"), "params", "jobs", f"job?id={job.id}",
        f"set?id={db.params.find().first().id}", "search?words=alert", f"jobs?kind={HOSTILE}", f"params?q={HOSTILE}",
        f"runs?q={HOSTILE}", f"search?words={HOSTILE}",
    ]  # fmt: skip
    for page in pages:
        answer = client.get(f"/{page}")
        assert answer.status_code in (200, 400), page
        assert "alert" in answer.text and "<script>alert" not in answer.text and '"&<i>' not in answer.text, page


def test_documents_that_another_tool_has_spoilt_end_no_page(filled: TensorDB) -> None:
    mongo = filled.database
    mongo["jobs"].update_many({}, {"$set": {"progress": "half", "tags": 7, "attempts": None, "kind": {"a": 1}}})
    mongo["params"].update_many({}, {"$set": {"tags": {"a": 1}, "step": "x", "lineage": [1]}})
    mongo["runs"].update_many({}, {"$set": {"tags": 1, "config": 7, "attempts": [1, {"x": 2}]}})
    client = enter(TestClient(make_app(filled, token=TOKEN), base_url="http://127.0.0.1"))
    job, one = filled.database["jobs"].find_one(), filled.database["params"].find_one()
    assert job is not None and one is not None
    for page in ("", "runs", "runs?run=cnn-lr0.1", "jobs", "params", f"job?id={job['_id']}", f"set?id={one['_id']}"):
        assert client.get(f"/{page}").status_code == 200, page


def test_refused_and_endless_queries(client: TestClient) -> None:
    for refused in ('{"$where": "1"}', '{"_tdb.p": "x"}', '{"$expr": {"$function": {}}}', "[1]", "x" * 8001):
        answer = client.get("/params", params={"q": refused})
        assert answer.status_code == 400, refused
    assert client.get("/runs?" + "&".join(f"run={number}" for number in range(40))).status_code == 400


def test_a_query_ends_when_its_time_is_over(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensordb_data.ui import view

    monkeypatch.setattr(view, "SECONDS", 0.3)
    row = {"$sum": {"$range": [0, {"$add": [4000, {"$strLenBytes": {"$toString": "$_id"}}]}]}}
    work = {"$expr": {"$gt": [{"$sum": {"$map": {"input": {"$range": [0, 100_000]}, "in": row}}}, -1]}}
    for page in ("params", "jobs", "runs"):
        answer = client.get(f"/{page}", params={"q": json.dumps(work)})
        # The page, or already what it asks for: whichever limit is met first.
        told = "took longer" in answer.text or "give it more time" in answer.text
        assert answer.status_code == 503 and told, page


def test_a_fault_shows_its_number_only(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tensordb_data.ui.view import View

    def fail(self: object, *args: object, **values: object) -> None:
        raise KeyError("secret detail")

    monkeypatch.setattr(View, "page", fail)
    with caplog.at_level(logging.ERROR, "tensordb_data.ui"):
        answer = client.get("/runs")
    assert answer.status_code == 500 and "secret detail" not in answer.text and "Traceback" not in answer.text
    number = answer.text.split("number ")[1][:8]
    assert number in caplog.text and "secret detail" in caplog.text


def test_what_has_not_changed_is_not_sent_again(client: TestClient, filled: TensorDB) -> None:
    for page in ("/", "/runs", "/jobs", "/curves?run=cnn-lr0.1&metric=loss"):
        first = client.get(page)
        again = client.get(page, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b""), page
    first = client.get("/runs")
    filled.logs.run("new").close()
    with filled.logs.run("new") as log:
        log.write(1, loss=1.0)
    assert client.get("/runs", headers={"If-None-Match": first.headers["etag"]}).status_code == 200


def test_a_server_that_is_away(db: TensorDB) -> None:
    app = make_app(db, token=TOKEN)
    client = enter(TestClient(app, base_url="http://127.0.0.1"))
    assert client.get("/").status_code == 200

    class Away:
        def __getattr__(self, name: str) -> object:
            raise ServerSelectionTimeoutError("mongodb://me:hunter2@host: away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensordb_data.warehouse.index.Index.database", Away())
        answer = client.get("/runs")
    assert answer.status_code == 503 and "The database is away" in answer.text and "hunter2" not in answer.text
    assert 'http-equiv="refresh"' in answer.text


def test_projects_are_kept_apart_and_links_stay_in_one(db: TensorDB) -> None:
    other = TensorDB.over(db.warehouse.in_project("a/b ü&<i>"))
    with other.logs.run("theirs") as log:
        log.write(1, loss=1.0)
    client = enter(TestClient(make_app(db, token=TOKEN), base_url="http://127.0.0.1"))
    assert "theirs" not in client.get("/runs").text
    page = client.get("/runs", params={"project": "a/b ü&<i>"}).text
    assert "theirs" in page and "project=a%2Fb%20%C3%BC%26%3Ci%3E" in page and "<i>" not in page


def test_all_addresses_are_relative(client: TestClient, filled: TensorDB) -> None:
    job, one = filled.jobs.find().first(), filled.params.find().first()
    sample = filled.data.find().first()
    pages = [
        "",
        "runs",
        "jobs",
        "params",
        "search?words=cnn",
        "storage",
        "data?dataset=digits",
        "facets?dataset=digits",
    ]
    pages += [f"job?id={job.id}", f"set?id={one.id}", f"sample?id={sample.id}", "data?dataset=digits&view=table"]
    for page in pages:
        text = client.get(f"/{page}").text
        for address in re.findall(r'(?:href|src|action|data-src)="([^"]*)"', text):
            assert address.startswith(("./", "#", "data:,")), (page, address)


def test_behind_a_proxy_that_takes_its_prefix_away(filled: TensorDB) -> None:
    prefix, app = "/user/ann/proxy/8237", make_app(filled, token=TOKEN)

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"].startswith(f"{prefix}/"), scope["path"]
        path = scope["path"].removeprefix(prefix)
        await app({**scope, "path": path, "raw_path": path.encode(), "root_path": ""}, receive, send)

    client = TestClient(proxy, base_url="http://127.0.0.1")
    answer = client.get(f"{prefix}/?token={TOKEN}&next=runs")
    assert answer.status_code == 200 and answer.url.path == f"{prefix}/runs"
    (cookie,) = client.cookies.jar
    assert cookie.path == prefix
    for page in re.findall(r'(?:href|src|data-src)="\./([^"]*)"', answer.text):
        assert client.get(f"{prefix}/{html.unescape(page)}").status_code == 200, page


def test_storage(client: TestClient, filled: TensorDB) -> None:
    page = client.get("/storage").text
    assert "digits" in page and "cnn-lr0.1" in page and "file://" in page and "tensordb gc --dry-run" in page


def test_home_counts_again_what_has_changed(client: TestClient, filled: TensorDB) -> None:
    assert ">120</span></td>" in client.get("/").text
    filled.data.find({"label": 3}).delete()
    assert ">108</span></td>" in client.get("/").text


def test_on_what_a_set_was_scored(db: TensorDB) -> None:
    id = db.params.save({"w": np.zeros(3)}, run="r", step=1)
    with db.data.writer("d") as writer:
        writer.add_many(label=[1, 2])
    test = db.data.find({"dataset": "d", "label": {"$gt": 1}})
    db.params.annotate({id: {"acc": 0.5, "f1": 0.4}}, source="e", data=test)
    db.params.annotate({id: {"top": 0.9}}, source="e", data=test.freeze("<b>"))
    db.database["params"].update_one({"_id": id}, {"$set": {"provenance.x": 3, "provenance.y": {"data": 4}}})
    client = enter(TestClient(make_app(db, token=TOKEN), base_url="http://127.0.0.1"))
    page = client.get(f"/set?id={id}").text
    assert "<dt>acc, f1 on</dt>" in page and "<dt>top on</dt>" in page and "&lt;b&gt;" in page and "<b>" not in page

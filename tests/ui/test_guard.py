"""The rules of the door: who may ask for a page, and what every answer says to the browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tensordb_data import ConnectError, QueryError, TensorDB
from tensordb_data.errors import ReadOnlyError
from tensordb_data.ui import make_app
from tensordb_data.ui.guard import HEADERS
from tests.ui.conftest import TOKEN, enter

UI = Path(__file__).parents[2] / "tensordb_data/ui"


def client_of(db: TensorDB, base_url: str = "http://127.0.0.1", **options: object) -> TestClient:
    return TestClient(make_app(db, token=TOKEN, **options), base_url=base_url)  # type: ignore[arg-type]


def test_the_token_opens_the_page_and_nothing_else_does(db: TensorDB) -> None:
    client = client_of(db)
    for page in ("/", "/runs", "/static/main.js", "/nowhere", "/?token=", f"/?token={TOKEN}x", f"/runs?token={TOKEN}"):
        answer = client.get(page)
        assert answer.status_code == 401 and TOKEN not in answer.text, page
    answer = client.get(f"/?token={TOKEN}", follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "./"
    name, cookie = answer.headers["set-cookie"].split("=", 1)
    assert name.startswith("tensordb_") and TOKEN not in cookie
    assert sorted(cookie.split("; ")[1:]) == ["HttpOnly", "SameSite=Lax"]  # no path: the prefix of a proxy is it
    assert client.get("/").status_code == 200
    other = TestClient(make_app(db, token="another-token"), base_url="http://127.0.0.1")
    other.cookies = client.cookies
    assert (
        other.get("/").status_code == 401
        and other.get("/?token=é\udcff".encode(errors="replace").decode()).status_code == 401
    )


def test_under_tls_the_cookie_is_secure(db: TensorDB) -> None:
    answer = client_of(db, "https://127.0.0.1").get(f"/?token={TOKEN}", follow_redirects=False)
    assert "; Secure" in answer.headers["set-cookie"]


def test_a_program_sends_the_token_in_a_header(db: TensorDB) -> None:
    client = client_of(db)
    assert client.get("/runs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    for wrong in (f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN[:-1]}", TOKEN):
        assert client.get("/runs", headers={"Authorization": wrong}).status_code == 401


@pytest.mark.parametrize(
    "wanted", ["//evil.example", "https://evil.example", "/\\evil", "runs/../..", "", "runs%0d%0aX: 1", "javascript:x"]
)
def test_the_token_leads_to_no_other_server(db: TensorDB, wanted: str) -> None:
    answer = client_of(db).get(f"/?token={TOKEN}&next={wanted}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "./")


def test_the_token_leads_to_the_page_that_was_wanted(db: TensorDB) -> None:
    for wanted, place in (("runs", "./runs"), ("data%3Fdataset=a%2526b", "./data?dataset=a%26b")):
        answer = client_of(db).get(f"/?token={TOKEN}&next={wanted}", follow_redirects=False)
        assert answer.headers["location"] == place


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8237", "localhost", "LOCALHOST:1", "[::1]:8237", "localhost.", "lab.example"]
)
def test_names_of_this_machine_are_answered(db: TensorDB, host: str) -> None:
    assert client_of(db, hosts=["Lab.example:80"]).get("/", headers={"Host": host}).status_code == 401


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "", "localhost:80@evil", "lab.example, x", "10.0.0.1", "[::1", "0"],
)
def test_other_names_are_refused_whatever_they_know(db: TensorDB, host: str) -> None:
    client = enter(client_of(db, hosts=["lab.example"]))
    for page in ("/", f"/?token={TOKEN}"):
        answer = client.get(page, headers={"Host": host, "X-Forwarded-Host": "localhost"})
        assert answer.status_code == 421 and "--allow-host" in answer.text
        assert "set-cookie" not in answer.headers


def test_every_answer_is_sealed(editor: TestClient) -> None:
    answers = [editor.get(page) for page in ("/", "/runs", "/static/main.js", "/nowhere", "/runs?q={", "/job?id=x")]
    answers += [editor.get("/", headers={"Host": "evil"}), editor.put("/"), editor.post("/retry", json={"id": "x"})]
    answers += [editor.get(f"/?token={TOKEN}", follow_redirects=False), editor.get("/?token=x")]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, (answer.url, name)
        assert not [name for name in answer.headers if name.startswith("access-control")]
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy and "*" not in policy


def test_a_change_comes_from_our_own_page(editor: TestClient, filled: TensorDB) -> None:
    job = filled.jobs.find({"status": "ready"}).first()
    body = {"id": str(job.id)}
    mark = editor.headers["X-CSRF"]
    for headers in (
        {"X-CSRF": ""},
        {"X-CSRF": mark[:-1] + "x"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert editor.post("/cancel", json=body, headers=headers).status_code == 403, headers
    plain = {"Content-Type": "text/plain"}
    assert editor.post("/cancel", content=b"{}", headers=plain).status_code == 415
    assert (
        editor.post("/cancel", content=b"x" * 1_000_001, headers={"Content-Type": "application/json"}).status_code
        == 413
    )
    parts = (b"[" for _ in range(1_000_001))
    assert editor.post("/cancel", content=parts, headers={"Content-Type": "application/json"}).status_code == 413
    for wrong in (b"[]", b"{", b"", b"[" * 100_000):
        assert editor.post("/cancel", content=wrong, headers={"Content-Type": "application/json"}).status_code == 400
    assert editor.get("/cancel").status_code == 405 and editor.delete("/cancel").status_code == 405
    assert job.status == "ready"
    answer = editor.post("/cancel", json=body, headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 200 and job.status == "cancelled"


def test_without_write_there_are_no_changes(client: TestClient, filled: TensorDB) -> None:
    mark = client.get("/").text.split('<meta name="csrf" content="')[1].split('"')[0]
    job = filled.jobs.find({"status": "ready"}).first()
    for name in ("cancel", "retry", "edit", "undo"):
        assert client.post(f"/{name}", json={"id": str(job.id)}, headers={"X-CSRF": mark}).status_code == 404
    assert job.status == "ready"


def test_the_connection_of_the_pages_refuses_to_write(db: TensorDB) -> None:
    other = TensorDB.over(db.warehouse.in_project("other").only_reading())
    reading = TensorDB.over(db.warehouse.only_reading())
    assert (reading.project, other.project) == ("default", "other") and reading.jobs.find().count() == 0
    with pytest.raises(ReadOnlyError):
        reading.jobs.push("train", entry="a:b")


def test_the_connection_of_the_pages_is_closed_with_that_of_the_program(mongo_uri: str, warehouse_dir: Path) -> None:
    with TensorDB(mongo_uri, blobs=f"file://{warehouse_dir}/blobs") as opened:
        client = enter(client_of(opened))
        assert client.get("/runs").status_code == 200
    assert client.get("/runs").status_code == 503
    with pytest.raises(ConnectError):
        make_app(opened, token=TOKEN)


def test_no_page_leads_out_of_the_folder_of_files(client: TestClient) -> None:
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/",
        "/static/vendor",
    ):
        assert client.get(path).status_code == 404, path
    assert client.get("/runs/", follow_redirects=False).status_code == 404


def test_what_make_app_is_given(db: TensorDB) -> None:
    for wrong in ({"token": ""}, {"token": None}, {"token": "x", "hosts": "lab"}, {"token": "x", "hosts": [1]},
                  {"token": "x", "hosts": ["http://lab"]}, {"token": "x", "hosts": [""]}):  # fmt: skip
        with pytest.raises(QueryError):
            make_app(db, **wrong)  # type: ignore[arg-type]
    with pytest.raises(QueryError):
        make_app("./warehouse", token="x")  # type: ignore[arg-type]


def test_the_templates_switch_nothing_off() -> None:
    for path in (UI / "templates").glob("*.html"):
        text = path.read_text()
        assert not re.search(r"\|\s*safe\b|autoescape|Markup|<style|style=|\son[a-z]+=|javascript:", text), path.name
        for script in re.findall(r"<script[^>]*>", text):
            assert "src=" in script, path.name
        # Beside JSON in attributes, which is escaped twice.
        assert all("forceescape" in part for part in re.findall(r"\{\{[^}]*tojson[^}]*\}\}", text)), path.name
    for path in (UI / "static").glob("*.js"):
        text = path.read_text()
        made = re.findall(
            r"(?:inner|outer)HTML\s*=(?!=)|insertAdjacentHTML|document\.write|\beval\(|new Function", text
        )
        assert not made, path.name
    assert sum(path.read_text().count("createPolicy(") for path in (UI / "static").glob("*.js")) == 1


def test_the_scripts_are_small() -> None:
    assert sum(path.stat().st_size for path in (UI / "static").rglob("*.js")) < 100_000


def test_the_vendored_files_are_what_was_packed() -> None:
    import hashlib

    vendor = UI / "static/vendor"
    listed = dict(reversed(line.split()) for line in (vendor / "SHA256SUMS").read_text().splitlines())
    assert set(listed) == {path.name for path in vendor.iterdir()} - {"SHA256SUMS"} and "LICENSE.uPlot" in listed
    for name, digest in listed.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest, name

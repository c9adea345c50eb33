"""What tests of the page need: a warehouse with something of each kind, a client, and a browser."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tensordb_data import TensorDB
from tensordb_data.ui import make_app
from tests.conftest import NO_BROWSER
from tests.steady.unhurried import unhurried_pages as unhurried_pages

TOKEN = "a-token-of-these-tests-0123456789"
PATIENCE = 20_000  # milliseconds that a page may take for one step before it counts as hung
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def filled(db: TensorDB) -> TensorDB:
    """A warehouse with a few entities of each kind, some with names that are a trap for a page."""
    rng = np.random.default_rng(0)
    with db.data.writer("digits") as writer:
        for number in range(120):
            image = np.kron(rng.integers(0, 255, (4, 4)), np.ones((4, 4))).astype(np.uint8)
            tags = ["scan", "hard"] if number % 7 == 0 else ["scan"]
            name = "<script>alert(1)</script>" if number == 0 else f"n{number}"
            writer.add(image=image, label=number % 10, conf=number / 120, name=name, tags=tags)
    for lr in (0.01, 0.1):
        with db.logs.run(f"cnn-lr{lr}", config={"lr": lr, "model": {"width": 32}}, tags=["cnn"]) as log:
            for step in range(1, 41):
                log.write(step, loss=2.4 * np.exp(-step * lr), acc=step / 40)
            log.write(40, kind="valid", val_acc=0.9, worst=db.data.find({"label": 3}).first())
        db.params.save({"w": np.ones((4, 4), np.float32)}, run=f"cnn-lr{lr}", step=40, val_acc=0.9 + lr, tags=["best"])
    first = db.jobs.push("train", entry="mypkg.jobs:train", args={"lr": 0.1}, tags=["sweep"])
    db.jobs.push("evaluate", entry="mypkg.jobs:evaluate", after=[first])
    db.jobs.push("train", entry="mypkg.jobs:train").cancel("not needed")
    return db


def enter(client: TestClient) -> TestClient:
    """Let a client in, as the address with the token does."""
    assert client.get(f"/?token={TOKEN}", follow_redirects=False).status_code == 303
    client.headers["Accept"] = "text/html"
    return client


@pytest.fixture
def client(filled: TensorDB) -> TestClient:
    """A client of the page that only reads, which has been let in."""
    return enter(TestClient(make_app(filled, token=TOKEN), base_url="http://127.0.0.1"))


@pytest.fixture
def editor(filled: TensorDB) -> TestClient:
    """A client of the page that allows changes, which has been let in and sends what our own pages send."""
    found = enter(TestClient(make_app(filled, token=TOKEN, write=True), base_url="http://127.0.0.1"))
    page = found.get("/").text
    found.headers["X-CSRF"] = page.split('<meta name="csrf" content="')[1].split('"')[0]
    return found


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser for all tests of this process."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium: `make setup` installs it for root, elsewhere: apt-get install chromium")
        pytest.skip(NO_BROWSER)
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Serves an app in a thread; gives the address of its first page."""
    from tensordb_data.ui.serve import address_of, bind, make_server

    with contextlib.ExitStack() as open_:

        def start(app: Any) -> str:
            listening: socket.socket = open_.enter_context(bind("127.0.0.1", 0))
            server = make_server(app)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()

            def stop() -> None:
                server.should_exit = True
                thread.join()

            open_.callback(stop)
            return address_of(listening, "127.0.0.1")

        yield start


def is_fault(line: Any) -> bool:
    """Whether a line on the console is one; that a change was refused is said on the page, and there, too."""
    return line.type == "error" and "with a status of 400" not in line.text


@pytest.fixture
def opened(chromium: Any, serve: Callable[[Any], str]) -> Iterator[Callable[..., Any]]:
    """Opens an app in the browser. Whatever the page complains of, such as a breach of its policy, fails the test."""
    faults: list[str] = []
    with contextlib.ExitStack() as open_:

        def open_page(app: Any, page: str = "", **options: Any) -> Any:
            home = serve(app)
            context = chromium.new_context(viewport={"width": 1280, "height": 860}, **options)
            open_.callback(context.close)
            tab = context.new_page()
            tab.set_default_timeout(PATIENCE)
            tab.on("pageerror", lambda error: faults.append(f"error: {error}"))
            tab.on("console", lambda line: is_fault(line) and faults.append(f"console: {line.text}"))
            tab.on("request", lambda one: one.url.startswith((home, "blob:", "data:")) or faults.append(one.url))
            tab.goto(f"{home}?token={TOKEN}&next={page}" if page else f"{home}?token={TOKEN}")
            return tab

        yield open_page
    assert faults == []

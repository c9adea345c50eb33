"""`db.ui()`: a process that serves the page, and ends with the one that has started it."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tensordb_data import ConnectError, QueryError, TensorDB, UnsupportedError
from tests.steady.processes import Popen


def read(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with opener.open(url) as answer:
        return str(answer.read().decode())


def test_a_page_beside_the_program(db: TensorDB) -> None:
    with db.logs.run("cnn-1") as log:
        log.write(1, loss=1.0)
    with db.ui(open=False) as page:
        token = page.url.partition("token=")[2]
        assert len(token) == 32 and token not in repr(page) and token in page._repr_html_()
        assert "cnn-1" in read(page.url) and "read only" in read(page.url)
        assert f'<iframe src="{page.url}"' in page.embed()._repr_html_() and token not in repr(page.embed())
        # In no command line, which all users of the machine can read.
        command = Path(f"/proc/{page._process.pid}/cmdline")
        assert not command.exists() or token.encode() not in command.read_bytes()
        taken = int(page.url.split(":")[2].split("/")[0])
        with pytest.raises(ConnectError, match="cannot be served"):
            db.ui(taken, open=False)
    with pytest.raises(OSError, match="refused"):
        read(page.url)
    page.close()


def test_it_ends_with_its_program(db: TensorDB, mongo_uri: str, warehouse_dir: Path) -> None:
    db.logs.find().count()
    program = (
        f"import tensordb_data, os; db = tensordb_data.TensorDB({mongo_uri!r}, blobs='file://{warehouse_dir}/blobs')\n"
        "page = db.ui(open=False, write=True); print(page._process.pid, page.url, flush=True); os.kill(os.getpid(), 9)"
    )
    # What the page holds open of its own ends when it ends.
    with Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        pid, url = running.stdout.readline().split()
        running.wait()
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        page = os.pidfd_open(int(pid))
        select.select([page], [], [])
        os.close(page)
    with pytest.raises(OSError, match="refused"):
        read(url)


def test_what_it_refuses(db: TensorDB) -> None:
    import mongomock

    for wrong in ({"port": -1}, {"port": "80"}, {"port": True}, {"hosts": "lab"}):
        with pytest.raises(QueryError):
            db.ui(open=False, **wrong)  # type: ignore[arg-type]
    with TensorDB(client=mongomock.MongoClient(), blobs="memory://") as other, pytest.raises(UnsupportedError):
        other.ui(open=False)


def test_behind_a_hub(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_PUBLIC_URL", "https://hub.example/user/ann/")
    with db.ui(open=False) as page:
        assert page.url.startswith("https://hub.example/user/ann/proxy/")
        port = page.url.split("/proxy/")[1].split("/")[0]
        token = page.url.partition("token=")[2]
        headers = {"Host": "hub.example", "Authorization": f"Bearer {token}"}
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/", headers=headers)) as answer:
            assert answer.status == 200

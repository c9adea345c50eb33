"""The command `tensordb ui`: its one line, and what it refuses."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tensordb_data import TensorDB
from tensordb_data.cli.main import app
from tests.steady.processes import Popen


def test_one_line_on_a_pipe_opens_the_page(db: TensorDB, mongo_uri: str, tmp_path: Path) -> None:
    with db.logs.run("cnn-1") as log:
        log.write(1, loss=1.0)
    token = tmp_path / "token"
    token.write_text("0123456789abcdefghij\n")
    command = [sys.executable, "-m", "tensordb_data.cli.main", "ui", "--db", mongo_uri, "--token-file", str(token)]
    with Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stderr is not None
        line = running.stdout.readline()
        found = re.fullmatch(r"(http://127\.0\.0\.1:\d+/)\?token=0123456789abcdefghij\n", line)
        assert found is not None, line
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{found[1]}runs")
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(f"{found[0].strip()}&next=runs") as answer:
            assert answer.url == f"{found[1]}runs" and b"cnn-1" in answer.read()
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=60)
    assert (out, err, running.returncode) == ("", "", 0)


def test_what_it_refuses(mongo_uri: str, db: TensorDB, tmp_path: Path) -> None:
    (tmp_path / "short").write_text("abc")
    nothing = ["--token-file", str(tmp_path / "none")]
    cases = {
        ("--token-file", str(tmp_path / "short")): "at least 16", tuple(nothing): "cannot be read",
        ("--host", "203.0.113.1"): "cannot be served", ("--keyfile", "key.pem"): "--certfile",
        ("--certfile", str(tmp_path / "no.pem")): "there is no file",
    }  # fmt: skip
    for options, words in cases.items():
        done = CliRunner().invoke(app, ["ui", "--db", mongo_uri, *options])
        assert done.exit_code == 1 and words in done.stderr and "Traceback" not in done.output, done.output
    done = CliRunner().invoke(app, ["ui", "--db", str(tmp_path / "typo")])
    assert done.exit_code == 1 and "there is no warehouse" in done.stderr
    assert not (tmp_path / "typo").exists()


def test_another_interface_is_told_to_be_in_the_clear(
    db: TensorDB, mongo_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensordb_data.ui import serve

    served: list[Any] = []
    monkeypatch.setattr(serve.Server, "run", lambda self, sockets: served.append(self.config))
    options = ["ui", "--db", mongo_uri, "--host", "0.0.0.0", "--allow-host", "lab.example"]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0 and "--certfile" in done.stderr, done.output
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}\n", done.stdout)
    one = CliRunner().invoke(app, ["ui", "--db", mongo_uri])
    assert one.stderr == "" and one.stdout.partition("token=")[2] != done.stdout.partition("token=")[2]
    (tmp_path / "cert.pem").write_text("")
    done = CliRunner().invoke(app, [*options, "--certfile", str(tmp_path / "cert.pem")])
    assert done.exit_code == 1 and "is no certificate" in done.stderr and "Traceback" not in done.output
    monkeypatch.setattr("ssl.SSLContext.load_cert_chain", lambda *given, **options: None)
    done = CliRunner().invoke(app, [*options, "--certfile", str(tmp_path / "cert.pem")])
    assert done.stdout.startswith("https://") and done.stderr == ""
    assert [config.access_log for config in served] == [False] * 3 and not any(c.proxy_headers for c in served)


def test_without_its_packages_it_says_which_extra(mongo_uri: str) -> None:
    program = (
        "import sys; sys.modules['jinja2'] = None\n"
        f"from tensordb_data.cli.main import app; app(['ui', '--db', {mongo_uri!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "tensordb-data[ui]" in done.stderr and "Traceback" not in done.stderr, done.stderr

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tensordb_data.cli.main import app


def test_places_are_opened_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["roots", *words])
        return done.exit_code, done.output

    assert run("list") == (0, "")
    assert run("add", "lab", "s3://lab/blobs/")[0] == run("add", "bilder", str(tmp_path / "ü"))[0] == 0
    config = tmp_path / "config" / "tensordb" / "config.json"
    config.write_text(config.read_text().replace('{\n  "roots"', '{\n  "other": 1,\n  "roots"', 1))
    assert run("add", "lab", "s3://lab/blobs")[0] == 0
    code, text = run("add", "lab", "s3://lab/others")
    assert code == 1 and "taken by s3://lab/blobs" in text
    code, text = run("add", "x", "s3://key:secret@lab/blobs")
    assert code == 1 and "no credentials" in text and "secret" not in text
    assert run("list") == (0, f"bilder  {(tmp_path / 'ü').as_uri()}\nlab  s3://lab/blobs\n")
    code, text = run("remove", "lap")
    assert code == 1 and "did you mean 'lab'?" in text
    assert run("remove", "lab")[0] == 0
    assert run("list", "--json") == (0, f'{{"bilder": "{(tmp_path / "ü").as_uri()}"}}\n')
    assert '"other": 1' in config.read_text() and config.stat().st_mode & 0o77 == 0

"""What the config file names is what commands use."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tensordb_data import TensorDB
from tensordb_data.cli.main import app


def test_a_server_warehouse_is_made_as_the_file_says(
    mongo_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("TENSORDB", "TENSORDB_PROJECT", "TENSORDB_BLOBS", "TENSORDB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "rows.csv").write_text("label\n1\n2\n")

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, done.output
        return done.stdout

    for key, value in (("db", mongo_uri), ("project", "shoes"), ("blobs", str(tmp_path / "blobs"))):
        run("config", "set", key, value)
    run("ingest", str(tmp_path / "rows.csv"), "--dataset", "rows")
    assert "rows" in run("datasets") and "no datasets" in run("datasets", "--project", "hats")
    with TensorDB(mongo_uri, project="shoes", blobs=tmp_path / "blobs") as db:
        assert db.data.find({"dataset": "rows"}).count() == 2
        assert [root["url"] for root in db.warehouse.blobs.roots] == [(tmp_path / "blobs").as_uri()]
    with pytest.raises(Exception, match="no warehouse is named"):
        TensorDB()

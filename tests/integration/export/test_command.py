"""`tensordb export`."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from tensordb_data import TensorDB
from tensordb_data.cli.main import app
from tests.integration.export.samples import contents, fill, manifest


def test_the_command_writes_what_it_is_asked_for(db: TensorDB, mongo_uri: str, tmp_path: Path) -> None:
    rows = fill(db)

    def run(*arguments: str) -> tuple[int, str]:
        blobs = db.warehouse.blobs.roots[0]["url"]
        done = CliRunner().invoke(app, ["export", *arguments], env={"TENSORDB": mongo_uri, "TENSORDB_ROOTS": blobs})
        return done.exit_code, done.output

    out = tmp_path / "out"
    code, said = run(str(out), '{"label": 1}', "--dataset", "pets", "--format", "jsonl", "--fields", "image, score",
                     "--sort=-score", "--limit", "3", "--split", "", "--shard-bytes", "1MB", "--json")  # fmt: skip
    assert code == 0, said
    assert json.loads(said)["count"] == 3 and manifest(out)["query"]["limit"] == 3
    assert [row["score"] for row in contents(out, "jsonl")] == [7 / 3, 1.0, 1 / 3]
    assert contents(out, "jsonl")[0]["image"] == rows[7]["image"]
    code, said = run(str(out), "--format", "mds")
    assert code == 1 and said.count("\n") == 1 and "exists already" in said
    code, said = run(str(out), "--overwrite", "--fields", "label")
    assert code == 0 and "8 samples" in said and "parquet" in said

"""The commands of frozen sets, and the search for them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from tensordb_data import TensorDB
from tensordb_data.cli.main import app
from tests.integration.time.test_freeze import content, fill


@pytest.fixture
def run(db: TensorDB, mongo_uri: str, warehouse_dir: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TENSORDB_BLOBS", str(warehouse_dir / "blobs"))

    def call(*words: str, status: int = 0) -> str:
        found = CliRunner().invoke(app, [*words, "--db", mongo_uri])
        assert found.exit_code == status, found.output
        return found.output

    return call


def test_commands(db: TensorDB, run: Any) -> None:
    fill(db, 20)
    assert "v1: 20 samples are frozen" in run("freeze", '{"dataset": "mixed"}', "v1", "--tag", "release")
    card = json.loads(run("freeze", '{"dataset": "mixed"}', "v2", "--limit", "3", "--sort=-label", "--json"))
    assert card["name"] == "v2" and card["count"] == 3 and json.loads(card["query"])["limit"] == 3
    assert "already" in run("freeze", "{}", "v1", status=1)
    db.data.find({"dataset": "mixed", "label": 3}).update({"$set": {"label": 4, "name": "new"}})
    db.data.find({"dataset": "mixed", "label": 5}).delete()
    shown = run("diff", "v1", '{"dataset": "mixed"}')
    assert "removed" in shown and "3 -> 4" in shown
    first, *rest = map(json.loads, run("diff", "v1", '{"dataset": "mixed"}', "--json").splitlines())
    assert first == {"added": 0, "removed": 2, "changed": 2, "same": 16, "fields": {"label": 2, "name": 2}}
    assert [set(line) for line in rest] == [{"removed"}] * 2 + [{"changed", "fields"}] * 2
    assert rest[2]["fields"]["label"] == [3, 4]
    assert "more changed samples" in run("diff", "v1", '{"dataset": "mixed"}', "--limit", "1")
    listed = run("frozen")
    assert "v1" in listed and "release" in listed and "2 frozen sets" in listed
    assert [json.loads(line)["name"] for line in run("frozen", "--json").splitlines()] == ["v2", "v1"]
    assert "no frozen set" in run("diff", "v1", "v3", status=1)
    run("frozen", "--drop", "v2")
    assert [one.name for one in db.data.frozen()] == ["v1"]


def test_search_finds_frozen_sets(db: TensorDB, run: Any) -> None:
    fill(db, 5)
    frozen = db.data.find({"dataset": "mixed"}).freeze("chest 2026", tags=["release"])
    (hit,) = db.search("chest 2026")
    assert hit.kind == "data" and hit.name == "chest 2026" and hit.query == frozen.query and hit["count"] == 5
    assert content(hit.selection) == content(frozen)
    assert [found.name for found in db.search("release")] == ["chest 2026"]
    assert db.search("chest", kind="jobs") == [] and "chest 2026" in run("search", "chest")
    frozen.drop()
    assert db.search("chest 2026") == []

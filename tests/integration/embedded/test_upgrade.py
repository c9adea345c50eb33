"""`tensordb upgrade`: a backup, then one release after the other. The later mongods are stand-ins."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tensordb_data import TensorDB
from tensordb_data.cli.main import app
from tensordb_data.common.system.file_locks import wait_released
from tensordb_data.embedded import upgrade
from tensordb_data.embedded.binary import far_ahead
from tensordb_data.embedded.paths import locate
from tensordb_data.errors import EmbeddedServerError

STAND_IN = Path(__file__).with_name("stand_in.py")


def stand_in(folder: Path, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"mongod-{version}"
    path.write_text(f"#!{sys.executable}\n{STAND_IN.read_text()}")
    path.chmod(0o755)
    return path


def asked(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]


@pytest.fixture
def filled(folder: Path) -> Path:
    with TensorDB(folder) as db, db.data.writer("d") as writer:
        writer.add(label=1)
    wait_released(folder / "supervisor.lock")
    return folder


def test_step_by_step(filled: Path, tmp_path: Path, ended: Callable[[Path], None]) -> None:
    there = tmp_path / "bin"
    mongods = [stand_in(there, version) for version in ("7.0.12", "8.0.3", "7.0.9", "8.2.1")]
    options = [part for mongod in mongods for part in ("--mongod", str(mongod))]
    run = CliRunner()
    done = run.invoke(app, ["upgrade", "--db", str(filled), "--dry-run", *options])
    assert done.exit_code == 0 and done.stdout.splitlines() == [
        f"to 7.0 with {mongods[0]} (7.0.12)", f"to 8.0 with {mongods[1]} (8.0.3)"
    ], done  # fmt: skip
    assert not (there / "asked.jsonl").exists() and locate(filled).release() == "6.0"
    backup = tmp_path / "backup"
    done = run.invoke(app, ["upgrade", "--db", str(filled), "--backup", str(backup), *options])
    assert done.exit_code == 0 and f"backup in {backup}" in done.stdout, done
    assert asked(there) == [
        {"version": "7.0.12", "start": True},
        {"version": "7.0.12", "setFeatureCompatibilityVersion": "7.0", "confirm": True},
        {"version": "7.0.12", "stop": True},
        {"version": "8.0.3", "start": True},
        {"version": "8.0.3", "setFeatureCompatibilityVersion": "8.0", "confirm": True},
        {"version": "8.0.3", "stop": True},
    ]
    assert locate(filled).release() == "8.0" and upgrade.plan(filled) == []
    with pytest.raises(EmbeddedServerError, match=r"written by MongoDB 8\.0.*`tensordb upgrade`"):
        TensorDB(filled)
    TensorDB.restore(backup, tmp_path / "restored")
    with TensorDB(tmp_path / "restored") as db:
        assert db.data.find({"dataset": "d"}).count() == 1
    ended(tmp_path / "restored")


def test_killed_between_two_steps(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release was not noted: the step is taken again, and then the next."""
    there = tmp_path / "bin"
    mongods = [stand_in(there, version) for version in ("7.0.12", "8.0.3")]
    with monkeypatch.context() as patched:
        patched.setattr(upgrade, "note_release", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            upgrade.upgrade(filled, upgrade.plan(filled, mongods), print)
    assert (there / "fcv").read_text() == "7.0" and locate(filled).release() == "6.0"
    steps = upgrade.plan(filled, mongods)
    assert [step.release for step in steps] == ["7.0", "8.0"]
    upgrade.upgrade(filled, steps, print)
    assert locate(filled).release() == "8.0"


def test_refused(filled: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="does not run on this system"):
        upgrade.plan(filled, [tmp_path])
    later = stand_in(tmp_path / "bin", "7.0.12")
    with TensorDB(filled):
        done = CliRunner().invoke(app, ["upgrade", "--db", str(filled), "--mongod", str(later)])
        assert done.exit_code == 1 and "close what uses it" in done.stderr, done
    with pytest.raises(EmbeddedServerError, match="there is no warehouse"):
        upgrade.plan(tmp_path)


def test_one_that_is_too_new_is_named(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = stand_in(tmp_path / "bin", "8.0.3")
    shutil.copy(later, tmp_path / "bin" / "mongod")
    (tmp_path / "bin" / "mongod").write_text("#!/bin/sh\necho 'db version v8.0.3'\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    words = far_ahead("6.0")
    assert words is not None and "more than one release ahead" in words and "`tensordb upgrade`" in words
    assert far_ahead("7.0") is None
    done = CliRunner().invoke(app, ["status", "--db", str(filled)])
    assert words in done.stdout, done
    TensorDB(filled).close()

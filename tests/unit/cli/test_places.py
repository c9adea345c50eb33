"""Every command takes the warehouse, the project and the places in the same ways, and means the same by them."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from tensordb_data.cli import common
from tensordb_data.cli.main import app
from tensordb_data.cli.places import OF_THE_SERVER
from tensordb_data.errors import TensorDBError

WHERE = "mongodb://nowhere/x"
MEANT = {"project": "shoes", "blobs": "memory://b", "cache": "/tmp/c", "roots": {"r": "/mnt/r"}}
OF_ALL_PROJECTS = ("backup create", "shard")
WITHOUT = ("roots add", "roots list", "roots remove", "config set", "config unset", "config path")
"""Commands that are about this user's config file, and open no warehouse."""


def commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{above}{name} ")
        else:
            yield above + name, command


ROOT = typer.main.get_command(app)
COMMANDS = dict(commands(ROOT))
OPENING = [name for name in COMMANDS if name not in (*OF_THE_SERVER, *WITHOUT)]
ARGUMENTS: Mapping[str, list[str]] = {
    "ingest": [".", "--dataset", "d"], "import": ["mlflow", "."], "find": ["data"], "export": ["new-folder"],
    "freeze": ["{}", "v1"], "diff": ["a", "b"], "search": ["word"], "stream": ["{}"], "compact": ["d"],
    "changes": ["d"], "history": ["6565f0c2a5b8c1d2e3f40516"], "logs tail": ["run"], "logs plot": ["loss"],
    "logs export": ["a.csv"], "jobs list": [], "jobs show": ["6565f0c2a5b8c1d2e3f40516"],
    "jobs push": ["kind"], "jobs cancel": ["6565f0c2a5b8c1d2e3f40516"], "jobs retry": ["6565f0c2a5b8c1d2e3f40516"],
    "params prune": ["--run", "r", "--last", "1"], "params import": ["m.safetensors", "--run", "r"],
    "params export": ["{}", "m.safetensors"], "backup create": ["new-folder"],
    "evaluate": ["--score", "a:b", "--metric", "m", "--data", "{}"],
    "deploy": ["new-folder"], "forget": ["--dataset", "d", "--reason", "r", "--yes"],
}  # fmt: skip


class Opened(TensorDBError):
    pass


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, dict[str, Any]]]:
    """What warehouses were asked for, of which none is opened."""
    found: list[tuple[str, dict[str, Any]]] = []

    @contextlib.contextmanager
    def instead(where: str, **options: Any) -> Iterator[None]:
        found.append((where, {name: options[name] for name in MEANT}))
        raise Opened("seen")
        yield

    monkeypatch.setattr(common, "TensorDB", instead)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    Path("m.safetensors").write_bytes(b"")
    return found


def run(name: str, *options: str) -> None:
    with contextlib.suppress(typer.Exit, SystemExit):
        ROOT([*name.split(), *ARGUMENTS.get(name, []), *options])


@pytest.mark.parametrize("name", OPENING)
def test_options_variables_and_config_file_mean_the_same(
    name: str, seen: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project = [] if name in OF_ALL_PROJECTS else ["--project", "shoes"]
    places = ["--blobs", "memory://b", "--cache", "/tmp/c", "--root", "r=/mnt/r"]
    run(name, "--db", WHERE, *project, *places)
    meant = {**MEANT, "project": "shoes" if project else "default"}
    where, told = seen.pop()
    assert (where, {**told, "project": told["project"] or "default"}) == (WHERE, meant)

    config = tmp_path / "config/tensordb/config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"db": WHERE, "project": "shoes", "blobs": "memory://b", "cache": "/tmp/c"}))
    run(name)
    from_file = seen.pop()
    config.unlink()
    for variable, value in (("", WHERE), ("_PROJECT", "shoes"), ("_BLOBS", "memory://b"), ("_CACHE", "/tmp/c")):
        monkeypatch.setenv(f"TENSORDB{variable}", value)
    run(name)
    assert from_file == seen.pop() == (WHERE, {**MEANT, "roots": None})


def test_the_others_are_known_by_name() -> None:
    assert {*OF_THE_SERVER, *WITHOUT} < {*COMMANDS}
    for name in OF_THE_SERVER:
        assert "--db" in [option for each in COMMANDS[name].params for option in each.opts], name
    for name in WITHOUT:
        assert "db" not in inspect.signature(COMMANDS[name].callback).parameters, name

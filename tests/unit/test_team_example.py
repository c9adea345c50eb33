"""The files of `examples/team`: they are well formed, hold no secret, and open no port to the network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tensordb_data.mongo.address import parse

TEAM = Path(__file__).parents[2] / "examples/team"
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::\?[^}]*)?\}")


@pytest.fixture
def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    found: dict[str, Any] = yaml.safe_load((TEAM / "docker-compose.yml").read_text())
    return found


def test_each_variable_is_in_the_example_of_the_environment(compose: dict[str, Any]) -> None:
    lines = [line for line in (TEAM / "env.example").read_text().splitlines() if line and line[0] != "#"]
    known = dict(line.split("=", 1) for line in lines)
    assert set(VARIABLE.findall((TEAM / "docker-compose.yml").read_text())) == known.keys()
    assert not any(value for name, value in known.items() if name != "TEAM_HOST")


def test_ports_are_of_the_machine_alone_and_versions_are_fixed(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services.keys() == {"mongo", "s3", "page"}
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert re.search(r":\d", service.get("image", ":1")) and not service.get("image", "").endswith("latest"), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (TEAM / source).exists(), volume
        assert {each["source"] for each in service.get("configs", ())} <= compose["configs"].keys()
        assert set(service.get("secrets", ())) <= compose["secrets"].keys()
        assert set(service.get("depends_on", ())) <= services.keys()


def test_what_the_services_are_given_is_what_they_understand(compose: dict[str, Any]) -> None:
    users = json.loads(VARIABLE.sub("secret", compose["configs"]["s3"]["content"]))["identities"]
    assert {user["name"]: "Write" in user["actions"] for user in users} == {"writer": True, "viewer": False}
    page = compose["services"]["page"]
    address = parse(VARIABLE.sub("secret", page["environment"]["TENSORDB"]))
    assert address.folder is None
    words = VARIABLE.sub("secret", page["command"]).split()
    from typer.testing import CliRunner

    from tensordb_data.cli.main import app

    known = CliRunner().invoke(app, ["ui", "--help"], env={"COLUMNS": "200"}).output
    assert words[:2] == ["tensordb", "ui"] and all(word in known for word in words if word.startswith("--"))

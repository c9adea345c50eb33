from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tensordb_data.embedded import paths
from tensordb_data.embedded.paths import Layout, locate, private_directory, read_json, socket_uri, write_json
from tensordb_data.errors import EmbeddedServerError


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = locate(tmp_path / "w")
    made.prepare()
    return made


def test_state_of_another_folder_is_ignored(layout: Layout) -> None:
    state = layout.folder / "server.json"
    assert layout.state() is None
    write_json(state, {"identity": layout.identity(), "run": "/x"})
    assert layout.state() == {"identity": layout.identity(), "run": "/x"}
    for key in layout.identity():
        write_json(state, {"identity": layout.identity() | {key: "other"}, "run": "/x"})
        assert layout.state() is None
    state.write_text("{")
    assert layout.state() is None


def test_run_is_inside_when_it_fits(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_fits_a_socket", lambda path: True)
    assert layout.choose_run() == str(layout.folder / "run")


def test_run_is_elsewhere_when_it_does_not(tmp_path: Path) -> None:
    layout = locate(tmp_path / ("x" * 120))
    layout.prepare()
    run = Path(layout.choose_run())
    try:
        assert layout.folder not in run.parents
        assert len(os.fsencode(run)) < 100
        assert stat.S_IMODE(run.stat().st_mode) == 0o700
        write_json(layout.folder / "server.json", {"identity": layout.identity(), "run": str(run)})
        assert layout.choose_run() == str(run)
    finally:
        run.rmdir()


def test_private_directory(tmp_path: Path) -> None:
    path = tmp_path / "run"
    private_directory(path)
    path.chmod(0o755)
    private_directory(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(EmbeddedServerError, match="should be a directory of this user"):
        private_directory(link)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
        with pytest.raises(EmbeddedServerError, match="should be a directory of this user"):
            private_directory(path)


def test_written_files_are_private(tmp_path: Path) -> None:
    write_json(tmp_path / "x", {"a": 1})
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600
    assert read_json(tmp_path / "x") == {"a": 1}
    (tmp_path / "y").write_text(json.dumps([1]))
    assert read_json(tmp_path / "y") is None


def test_socket_uri_encodes() -> None:
    from pymongo.uri_parser import parse_uri

    uri = socket_uri(Path("/Tmp/a/mongod.sock"), {"user": "u", "password": "p/@:"})
    found = parse_uri(uri)
    assert found["nodelist"] == [("/Tmp/a/mongod.sock", None)]
    assert (found["username"], found["password"]) == ("u", "p/@:")

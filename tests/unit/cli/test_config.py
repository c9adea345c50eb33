from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tensordb_data.cli.config.settings import settings
from tensordb_data.cli.main import app

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("TENSORDB", "TENSORDB_PROJECT", "TENSORDB_BLOBS", "TENSORDB_CACHE", "TENSORDB_ROOTS"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["config", *words])
        return done.exit_code, done.output

    return run


def shown(run: Run, *words: str) -> dict[str, tuple[str | None, str]]:
    code, text = run(*words, "--json")
    assert code == 0, text
    rows = map(json.loads, text.splitlines())
    return {row["key"]: (row["value"], row["from"]) for row in rows}


def test_an_option_comes_before_a_variable_before_the_file_before_the_default(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(shown(run).values()) == {(None, "default")}
    assert run("set", "project", "shoes")[0] == 0
    assert shown(run)["project"] == ("shoes", "config file")
    monkeypatch.setenv("TENSORDB_PROJECT", "hats")
    assert shown(run)["project"] == ("hats", "variable TENSORDB_PROJECT")
    assert shown(run, "--project", "coats")["project"] == ("coats", "option --project")
    monkeypatch.setenv("TENSORDB_PROJECT", "")
    assert shown(run)["project"] == ("shoes", "config file")
    assert run("unset", "project")[0] == run("unset", "project")[0] == 0
    assert shown(run)["project"] == (None, "default")


def test_paths_are_noted_from_the_root_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for key in ("db", "blobs", "cache"):
        assert run("set", key, "./ü")[0] == 0
    here = tmp_path / "ü"
    assert shown(run) == {
        "db": (str(here), "config file"), "project": (None, "default"), "blobs": (here.as_uri(), "config file"),
        "cache": (str(here), "config file"),
    }  # fmt: skip
    config = Path(run("path")[1].strip())
    assert config == tmp_path / "config" / "tensordb" / "config.json" and config.stat().st_mode & 0o77 == 0


def test_the_blobs_of_the_file_belong_to_its_warehouse(run: Run, tmp_path: Path) -> None:
    assert run("set", "blobs", "s3://lab/blobs")[0] == 0
    assert shown(run, "--db", "mongodb://db2/lab")["blobs"] == ("s3://lab/blobs", "config file")
    assert run("set", "db", "mongodb://db1/lab")[0] == 0
    assert settings({})["blobs"].value == settings({"db": "mongodb://db1/lab"})["blobs"].value == "s3://lab/blobs"
    for other in ("mongodb://db1/other", str(tmp_path), "mongodb://[", None):
        expected = "s3://lab/blobs" if other is None else None
        assert settings({"db": other})["blobs"].value == expected, other
    assert settings({"db": str(tmp_path), "blobs": "s3://x"})["blobs"].value == "s3://x"


def test_no_password_is_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = run("set", "db", "mongodb://me:ge%2Fheim@db1/lab?replicaSet=rs0")
    assert code == 0 and "me:***@db1" in text and "which nobody else may read" in text
    monkeypatch.setenv("TENSORDB_ROOTS", "s3://key:ge/heim@lab, s3://ok/x")
    texts = [text, run()[1], run("--json")[1], run("--db", "mongodb://me:ge/heim@@x")[1]]
    texts += [run("set", key, "mongodb://me:ge/heim@x y")[1] for key in ("db", "blobs", "cache", "project")]
    assert not [text for text in texts if "heim" in text]
    assert "mongodb://me:***@db1/lab?replicaSet=rs0" in texts[1] and "s3://ok/x" in texts[1]
    assert "ge%2Fheim" in settings({})["db"].value


def test_roots_are_shown_and_set_by_their_own_command(run: Run) -> None:
    assert CliRunner().invoke(app, ["roots", "add", "lab", "s3://lab/blobs"]).exit_code == 0
    assert shown(run)["roots.lab"] == ("s3://lab/blobs", "config file")
    for words in (("set", "roots", "x"), ("unset", "roots")):
        code, text = run(*words)
        assert code == 1 and "tensordb roots add" in text
    assert run("set", "project", "shoes")[0] == 0
    assert shown(run)["roots.lab"] == ("s3://lab/blobs", "config file")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("set", "dbs", "x"), "did you mean 'db'?"),
        (("unset", "nonsense"), "there is no setting 'nonsense'"),
        (("set", "project", " "), "cannot be empty"),
        (("set", "db", "postgres://x"), "is not an address of a MongoDB"),
        (("set", "blobs", "ftp://x"), "no store for ftp://"),
        (("set", "cache", "s3://x/y"), "a folder on a local disk"),
    ],
)
def test_a_wrong_key_or_value_is_named(run: Run, words: tuple[str, ...], said: str) -> None:
    code, text = run(*words)
    assert code == 1 and said in text and len(text.splitlines()) == 1
    assert not Path(run("path")[1].strip()).exists()


@pytest.mark.parametrize(
    ("content", "said", "mended"),
    [
        ('{"dbs": "x"}', "no setting 'dbs'; did you mean 'db'?", True),
        ('{"db": ["x"]}', "expected a text for 'db', found list", True),
        ('{"db": ""}', "expected a text for 'db'", True),
        ("{", "expected JSON", False),
        ("[]", "expected a JSON object, found list", False),
        ("\x00\xff", "expected JSON", False),
    ],
)
def test_a_malformed_file_is_named_by_all_that_need_it(run: Run, content: str, said: str, mended: bool) -> None:
    path = Path(run("path")[1].strip())
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode("latin-1"))
    for words in (["config"], ["datasets"], ["status"]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 1 and said in done.output and str(path) in done.output, done.output
    assert path.read_bytes() == content.encode("latin-1")
    key = "dbs" if "dbs" in content else "db"
    assert run("unset", key)[0] == (0 if mended else 1)
    assert run()[0] == (0 if mended else 1)

"""The record of a shake: rounds are kept by what was run on which state of the tree, and none is run twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import shake
from tests.shake import Record, busy, failures, marked, state_of


def test_rounds_are_kept_by_state_and_selection(tmp_path: Path) -> None:
    path = tmp_path / "build" / "shake.json"
    record = Record(path, "abc", ["tests/unit"])
    assert record.rounds == []
    record.add([], 3.2)
    record.add(["tests.unit::test_a"], 4)
    again = Record(path, "abc", ["tests/unit"])
    assert again.rounds == [{"failed": [], "seconds": 3}, {"failed": ["tests.unit::test_a"], "seconds": 4}]
    assert Record(path, "abd", ["tests/unit"]).rounds == [] == Record(path, "abc", ["tests"]).rounds
    assert [file.name for file in path.parent.iterdir()] == ["shake.json"] and json.loads(path.read_text())


def test_a_shake_that_is_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, outcomes = tmp_path / "shake.json", iter([[], KeyboardInterrupt, ["x::test_y"], [], AssertionError])

    def one_round(arguments: object, pauses: bool) -> list[str]:
        outcome = next(outcomes)
        if isinstance(outcome, list):
            return outcome
        raise outcome

    monkeypatch.setattr(shake, "one_round", one_round)
    with pytest.raises(KeyboardInterrupt):
        shake.shake(Record(path, "abc", []), 3, [])
    assert len(Record(path, "abc", []).rounds) == 1
    assert shake.shake(Record(path, "abc", []), 3, []) == 1
    told = capsys.readouterr().out
    assert "1 of 3 rounds were run before" in told and "round 2, 0 s: x::test_y" in told
    assert shake.shake(Record(path, "abc", []), 1, []) == 0  # all that is asked for is there, and none failed


def test_a_tree_that_differs_is_another_state(tmp_path: Path) -> None:
    def git(*command: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    clean = state_of(tmp_path)
    assert "+" not in clean
    (tmp_path / "file").write_text("2")
    changed = state_of(tmp_path)
    (tmp_path / "new").write_text("3")
    added = state_of(tmp_path)
    assert len({clean, changed, added}) == 3 and changed.startswith(f"{clean}+") and added.startswith(f"{clean}+")
    (tmp_path / "file").write_text("1")
    (tmp_path / "new").unlink()
    assert state_of(tmp_path) == clean


def test_what_failed_is_read_from_the_report(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="fine"/>'
        '<testcase classname="a" name="fails"><failure message="no"/></testcase>'
        '<testcase classname="b" name="leaks"><error message="left"/></testcase></testsuite></testsuites>'
    )
    assert failures(report) == ["a::fails", "b::leaks"]


def test_the_load_ends_with_its_block() -> None:
    before = set(psutil.Process().children())
    with pytest.raises(KeyboardInterrupt), busy(2):
        assert len(set(psutil.Process().children()) - before) == 2
        raise KeyboardInterrupt
    assert set(psutil.Process().children()) == before


def test_processes_of_a_round_are_stopped_for_moments_and_go_on() -> None:
    with marked(pauses=True, every=0.01) as environment:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment)
        while psutil.Process(child.pid).status() != psutil.STATUS_STOPPED:
            assert child.poll() is None
    assert psutil.Process(child.pid).status() != psutil.STATUS_STOPPED
    child.communicate(b"\n")
    assert child.returncode == 0
    with marked(pauses=False) as environment:
        assert shake.MARK not in environment

"""A benchmark is compared with its committed figure by ratios."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "shared" / "check.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_check"] = module
    spec.loader.exec_module(module)
    return module


def result(ours: list[float], **other: Any) -> dict[str, Any]:
    rates = {"ours": {"samples_per_s": ours}, "bare": {"samples_per_s": [10.0] * len(ours)}, "peer": {"missing": "no"}}
    verdicts = [{"contender": name, "baseline": "bare", "ratio": 0, "target": 1} for name in ("ours", "peer")]
    machine = {"cpu": "a", "gpu": None, "cores": 2, "python": "3.11"}
    return {"quick": False, "context": {"n": 1}, "machine": machine, "rates": rates, "verdicts": verdicts, **other}


def run(check: ModuleType, folder: Path, now: dict[str, Any], before: dict[str, Any]) -> int:
    for name, content in (("now", now), ("before", before)):
        (folder / name).mkdir()
        (folder / name / "b.json").write_text(json.dumps(content))
    status: int = check.main(["--results", str(folder / "now"), "--figures", str(folder / "before")])
    return status


@pytest.mark.parametrize(("now", "status"), [([7, 7.5, 7], 1), ([7, 8.1, 9], 0), ([20, 20, 20], 0)])
def test_what_fell_by_more_than_its_spread(
    check: ModuleType, tmp_path: Path, now: list[float], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(check, tmp_path, result(now), result([8.0, 9.0, 8.5])) == status
    told = capsys.readouterr().out
    assert "ours / bare" in told and "peer" not in told and ("fell" in told) == (status == 1)


@pytest.mark.parametrize(
    ("other", "reason"),
    [({"quick": True}, "--quick"), ({"machine": {"cpu": "b"}}, "another kind"), ({"context": {}}, "other data")],
)
def test_what_cannot_be_compared_is_said(
    check: ModuleType, tmp_path: Path, other: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(check, tmp_path, result([8.0], **other), result([8.0])) == 2
    assert reason in capsys.readouterr().out

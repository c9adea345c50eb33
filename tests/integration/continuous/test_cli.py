"""`tensordb evaluate` and `tensordb deploy`, as a person or a service runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tensordb_data import TensorDB
from tensordb_data.continuous import load_deployed
from tests.integration.continuous.programs import save

CODE = """
def mean(state, batches):
    return float(state["w"].mean()) / sum(len(batch["label"]) for batch in batches)

def smoke(state, about):
    assert about["step"] != 3, "it smokes"
"""


def test_evaluate_then_deploy(db: TensorDB, mongo_uri: str, tmp_path: Path) -> None:
    (tmp_path / "scores.py").write_text(CODE)
    with db.data.writer("d") as writer:
        writer.add_many(label=list(range(10)))
    for step in (1, 2, 3):
        save(db, step)

    def tensordb(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("tensordb")), *words, "--db", mongo_uri]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)

    evaluate = ("evaluate", "--filter", '{"run": "r"}', "--metric", "acc", "--data", '{"dataset": "d"}', "--once",
                "--score", "scores:mean")  # fmt: skip
    refused = tensordb(*evaluate)
    assert refused.returncode == 1 and "scores is not on the list" in refused.stderr
    done = tensordb(*evaluate, "--allow", "scores")
    assert done.returncode == 0, done.stderr
    assert "acc = 0.3" in done.stderr
    assert {found["step"]: found["acc"] for found in db.params.find()} == {1: 0.1, 2: 0.2, 3: 0.3}

    deploy = ("deploy", "models", "--filter", '{"run": "r"}', "--sort", "-acc", "--once", "--check", "scores:smoke",
              "--allow", "scores", "--name", "here")  # fmt: skip
    assert tensordb("deploy", "models").returncode == 2
    done = tensordb(*deploy)
    assert done.returncode == 0, done.stderr
    assert load_deployed(tmp_path / "models").about["step"] == 2
    listed = [json.loads(line) for line in tensordb("deploy", "--list", "--json").stdout.splitlines()]
    assert {one["step"]: (one["state"], one["reason"]) for one in listed} == {
        2: ("live", None), 3: ("refused", "check raised AssertionError: it smokes"),
    }  # fmt: skip
    assert "it smokes" in tensordb("deploy", "--list").stdout.replace("\n", " ")
    failed = tensordb(*deploy, "--roll-back", "slow")
    assert failed.returncode == 1 and "none before" in failed.stderr
    assert load_deployed(tmp_path / "models").about["step"] == 2

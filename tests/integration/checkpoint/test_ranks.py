"""Several processes train: one stores, all restore the same, and a signal to one of them stops all at the same step."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch

from tensordb_data.torch import StepCheckpointer
from tests import warm
from tests.integration.checkpoint.loops import fill

SCRIPT = Path(__file__).with_name("rank.py")


@pytest.fixture
def launch(db, mongo_uri, warehouse_dir, tmp_path):
    """Has two ranks train; gives where each began and its losses, run by run, and the exit status."""
    fill(db)

    def run(kind, *runs):
        store = str(tmp_path / uuid.uuid4().hex)
        arguments = [store, kind, *(str(word) for each in runs for word in each)]
        ranks = [
            warm.Popen(
                [sys.executable, str(SCRIPT), mongo_uri, f"file://{warehouse_dir}/blobs", str(rank), *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        said = [rank.communicate(timeout=100) for rank in ranks]
        for rank, (out, err) in zip(ranks, said, strict=True):
            assert rank.returncode in (0, 143) and out, err
        of_rank = [json.loads(out.splitlines()[-1]) for out, _ in said]
        found = []
        for first, second in zip(*of_rank, strict=True):
            assert first[0] == second[0]
            found.append((first[0], [{int(step): loss for step, loss in each[1].items()} for each in (first, second)]))
        return found, ranks[0].returncode

    return run


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_one_stores_and_all_resume_exactly(db, launch, kind):
    ((_, whole), _, (start, rest)), _ = launch(kind, ("whole", 14, 0), ("cut", 10, 0), ("cut", 14, 0))
    assert whole[0] != whole[1]  # each has its own batches and its own dropout
    assert start == 8
    assert rest == [{step: losses[step] for step in range(9, 15)} for losses in whole]
    assert sorted(db.params.find({"run": "whole"}).distinct("step")) == [4, 8, 12]
    assert db.params.find({"run": "whole"}).count() == 3  # once, not by each rank
    if kind == "fsdp":
        goes_on_in_one_process(db)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(db, launch):
    ((_, losses),), status = launch("ddp", ("r", 1000, 6))
    assert status == 143 and [max(each) for each in losses] == [6, 6]
    assert sorted(db.params.find({"run": "r"}).distinct("step")) == [4, 6]


def goes_on_in_one_process(db):
    """What was sharded fits a plain module and its optimizer."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with StepCheckpointer(db, run="whole", model=model, optimizer=optimizer, every=4) as ckpt:
        with pytest.warns(UserWarning, match="has stream too"):
            assert ckpt.restore() == 12
    found = db.params.find({"run": "whole", "step": 12}).first()
    assert {name: value.shape for name, value in found.load().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert torch.equal(model[0].weight, found.load()["0.weight"])
    moments = found.load("optimizer")["state"][0]
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], moments["exp_avg"])

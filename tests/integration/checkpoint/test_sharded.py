"""Each process stores and restores its own parts of a sharded model, for any number of processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import warm
from tests.integration.checkpoint.sharded import WIDTH, net, train

SCRIPT = Path(__file__).with_name("sharded.py")
STATE = 3 * 4 * (8 * WIDTH + WIDTH + 2 * WIDTH + WIDTH * WIDTH + WIDTH + WIDTH + 1)
"""Bytes of the parameters and the two moments of each."""


@pytest.fixture
def ranks(mongo_uri, warehouse_dir, tmp_path):
    """Runs the two ranks; gives what each has printed."""

    def run():
        command = [sys.executable, str(SCRIPT), mongo_uri, f"file://{warehouse_dir}/blobs"]
        started = [
            warm.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        try:
            said = [rank.communicate(timeout=100)[0] for rank in started]
        finally:
            for rank in started:
                rank.kill()
        assert [rank.returncode for rank in started] == [0, 0]
        return [json.loads(out.splitlines()[-1]) for out in said]

    return run


def test_losses_are_those_of_one_process_whatever_their_number(db, ranks):
    start, losses = train(db, "reference", net(), 6)
    assert start == 0
    train(db, "one", net(), 3)
    plain = net()
    db.params.save({name: value.numpy() for name, value in plain.state_dict().items()}, run="plain")
    found = ranks()
    assert found[0]["two"] == found[1]["two"] == [0, losses[:5]]
    assert found[0]["one"] == found[1]["one"] == [2, losses[2:]]
    assert found[0]["replica"] == found[1]["replica"] == [0, losses[:3]]
    assert found[0]["shards"] == found[1]["shards"] == [2, losses[2:]]
    assert found[0]["again"] == found[1]["again"] == [4, losses[4:]]
    assert found[0]["loaded"] == [value.sum().item() for value in plain.parameters()]
    assert not db.fsck().findings

    saved = db.params.find({"run": "two", "step": 2}).first()
    db.params.find({"run": "two", "step": {"$gt": 2}}).delete()
    assert train(db, "two", net(), 6) == (2, losses[2:])
    assert saved.lineage["model"] == "torch.nn.modules.container.Sequential"
    other, same = net(), net()
    assert saved.load_into(other).matched and saved.nbytes > STATE
    db.params.find({"run": "reference", "step": 2}).first().load_into(same)
    assert all(map(torch.equal, other.state_dict().values(), same.state_dict().values()))
    assert found[0]["busy"] == found[1]["busy"] and found[0]["busy"]["saves"] < 8
    assert db.params.find({"run": "busy"}).count() == found[0]["busy"]["saves"]
    for one in found:
        counts_its_own_part(one)


def counts_its_own_part(found):
    """A process copies and reads half of the state, and sends no part of it."""
    moved = found["moved"]
    assert STATE * 0.4 < moved["save"]["copied"] < STATE * 0.6
    assert STATE * 0.4 < moved["restore"]["read"] < STATE * 0.6
    assert all(each.get("sent", 0) < STATE * 0.05 for each in moved.values())
    assert found["threads"] == ["MainThread"]

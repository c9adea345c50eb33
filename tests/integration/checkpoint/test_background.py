"""What happens while a save is stored: the loop goes on, memory runs out, the store fails, the process is killed."""

from __future__ import annotations

import copy
import random
import signal
import sys
import threading

import numpy as np
import pytest
import torch

from tensordb_data import SaveOptions
from tensordb_data.errors import CheckpointError
from tensordb_data.tensors import write as write_module
from tensordb_data.torch import StepCheckpointer
from tests import warm


class Ema:
    """Something of the user's with a state of its own: arrays, tensors, numbers, nested."""

    def __init__(self, model):
        self.state = {"shadow": [p.detach().clone() for p in model.parameters()], "n": 0, "seen": {"a": np.zeros(400)}}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def scramble(value):
    """Changes everything in place, as a loop that goes on might."""
    if torch.is_tensor(value):
        value.copy_(torch.randint(0, 2, value.shape) if value.dtype == torch.bool else -torch.ones(value.shape))
    elif isinstance(value, np.ndarray):
        value[...] = -1
    elif isinstance(value, dict):
        for key in value:
            if isinstance(value[key], (int, float)) and not isinstance(value[key], bool):
                value[key] = -1
            else:
                scramble(value[key])
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if isinstance(item, (int, float)):
                value[i] = -1
            else:
                scramble(item)


def equal(a, b):
    if torch.is_tensor(a):
        return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@torch.no_grad()
def test_no_save_is_torn(db):
    """Every part changes right after step() returns; each set is what there was when step() was called."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.BatchNorm1d(40), torch.nn.Linear(40, 3))
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=500)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    ema = Ema(model)
    everything = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema}
    wanted = {}
    with StepCheckpointer(
        db, run="r", model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, extra={"ema": ema}, every=1
    ) as ckpt:
        for step in range(1, 31):
            with torch.enable_grad():
                scaler.scale(model(torch.randn(8, 40)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            ema.state["n"] = step
            ema.state["seen"]["a"][:] = step
            wanted[step] = {name: copy.deepcopy(value.state_dict()) for name, value in everything.items()}
            wanted[step]["rng"] = {"torch": torch.get_rng_state(), "python": random.getstate()}
            before = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict(), model.state_dict()))
            ckpt.step()
            for value in everything.values():
                scramble(value.state_dict())
            scramble(optimizer.param_groups)
            torch.rand(1), random.random()
            optimizer.load_state_dict(before[0])  # so that the loop can go on
            scheduler.load_state_dict(before[1])
            model.load_state_dict(before[2])
    for found in db.params.find({"run": "r"}):
        for name in everything:
            assert equal(found.load(name), wanted[found.step][name]), (found.step, name)
        rng = found.load("rng")
        assert all(equal(rng[name], wanted[found.step]["rng"][name]) for name in ("torch", "python"))
    assert sorted(wanted) == sorted(db.params.find({"run": "r"}).distinct("step"))


@pytest.fixture
def gate(db, monkeypatch):
    """Holds the store until it is opened; says when a save has come to it."""
    store = db.warehouse.blobs.store()
    put, opened, reached = store.put, threading.Event(), threading.Semaphore(0)

    def held(key, parts, **options):
        reached.release()
        assert opened.wait(60)
        put(key, parts, **options)

    monkeypatch.setattr(store, "put", held)
    yield opened, reached
    opened.set()


def trained(model):
    with torch.no_grad():
        model.weight.add_(1)


def test_skip_leaves_out_what_comes_too_early_and_counts_it(db, gate):
    opened, _ = gate
    model = torch.nn.Linear(100, 10)
    with StepCheckpointer(db, run="r", model=model, every=1, options=SaveOptions(when_busy="skip")) as ckpt:
        for _ in range(6):
            trained(model)
            ckpt.step()  # never waits: the test would end at its time limit
        assert ckpt.stats()["skipped"] == 4 and ckpt.stats()["waited"] == 0
        opened.set()
        ckpt.wait()
        trained(model)
        ckpt.step()
        ckpt.wait()
        assert ckpt.stats()["durable"] == 3
    assert db.params.find({"run": "r"}).distinct("step") == [1, 2, 7]


def test_several_are_under_way_within_their_memory(db, gate):
    opened, reached = gate
    model = torch.nn.Linear(2500, 10, bias=False)
    options = SaveOptions(memory="450kB", when_busy="skip")
    with StepCheckpointer(db, run="r", model=model, every=1, options=options) as ckpt:
        for _ in range(6):
            trained(model)
            ckpt.step()
        assert reached.acquire(timeout=60)
        assert ckpt.stats()["saves"] == 4 and ckpt.stats()["skipped"] == 2  # of 100 kB each, and a little
        opened.set()
    assert db.params.find({"run": "r"}).distinct("step") == [1, 2, 3, 4]
    with StepCheckpointer(db, run="s", model=model, every=1, options=SaveOptions(memory="50kB")) as ckpt:
        with pytest.raises(CheckpointError, match="memory= allows 50,000 bytes, and one copy of the state takes 1"):
            ckpt.step()
    with pytest.raises(CheckpointError, match="memory"):
        SaveOptions(memory="much")
    with pytest.raises(CheckpointError, match="when_busy"):
        SaveOptions(when_busy="panic")


def test_a_forced_save_is_never_skipped(db, gate):
    opened, _ = gate
    model = torch.nn.Linear(100, 10)
    with StepCheckpointer(db, run="r", model=model, every=1, options=SaveOptions(when_busy="skip")) as ckpt:
        for _ in range(3):
            trained(model)
            ckpt.step()
        opened.set()
        ckpt.save()
    assert db.params.find({"run": "r"}).distinct("step") == [1, 2, 3]


def test_an_error_is_raised_by_the_next_step_and_training_may_go_on(db, monkeypatch):
    failed = threading.Event()
    model = torch.nn.Linear(100, 10)
    store = db.warehouse.blobs.store()

    def full(*args, **options):
        failed.set()
        raise OSError("no space left")

    with StepCheckpointer(db, run="r", model=model, every=2) as ckpt:
        monkeypatch.setattr(store, "put", full)
        ckpt.step()
        ckpt.step()
        assert failed.wait(60)
        while ckpt.stats()["failed"] == 0:
            threading.Event().wait(0.01)
        monkeypatch.undo()
        with pytest.raises(CheckpointError, match="no space left"):
            ckpt.step()
        trained(model)
        ckpt.step()
    assert db.params.find({"run": "r"}).distinct("step") == [4]


KILLED = """
import os, signal, sys
import numpy as np
from tensordb_data import TensorDB
from tensordb_data.tensors import write

write.OBJECT = 100_000
db = TensorDB(sys.argv[1], blobs=sys.argv[2])
store, sent = db.warehouse.blobs.store(), []
put = store.put
def dying(key, parts, **options):
    if len(sent) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    put(key, parts, **options)
    sent.append(key)
store.put = dying
db.params.save({str(i): np.random.default_rng(i).random(10_000, "f4") for i in range(10)}, run="r", step=1)
"""


def test_what_was_sent_before_a_kill_is_not_sent_again(db, mongo_uri, warehouse_dir, monkeypatch):
    done = warm.run([sys.executable, "-c", KILLED, mongo_uri, f"file://{warehouse_dir}/blobs"])
    assert done.returncode == -signal.SIGKILL
    assert db.params.find().count() == 0  # no half set
    monkeypatch.setattr(write_module, "OBJECT", 100_000)
    store = db.warehouse.blobs.store()
    before = dict(store.list("params/"))
    state = {str(i): np.random.default_rng(i).random(10_000, "f4") for i in range(10)}
    db.params.save(state, run="r", step=1)
    sent = sum(size for key, size in store.list("params/") if key not in before)
    assert sum(before.values()) >= 6 * 40_000 and 4 * 40_000 <= sent < 5 * 40_000
    back = db.params.find({"run": "r"}).first().load()
    assert all(np.array_equal(back[name], state[name]) for name in state)


def test_an_object_for_each_portion(db, monkeypatch):
    monkeypatch.setattr(write_module, "OBJECT", 2000)
    large = np.random.default_rng(0).random(5000, "f4")
    state = {"small": np.zeros(100, "f4"), "large": large, "other": np.full(100, 2, "f4")}
    id = db.params.save(state)
    keys = sorted(key for key, _ in db.warehouse.blobs.store().list("params/"))
    assert len(keys) == 3 and keys[-1] == f"params/{id}.safetensors"
    assert all(np.array_equal(db.params.find().first().load()[name], state[name]) for name in state)

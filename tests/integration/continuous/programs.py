"""The loops as processes of their own, that say what they do in lines of JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tensordb_data import TensorDB
from tensordb_data.continuous import Deployer, Evaluator, Trainer
from tests import warm

PATIENCE = 60.0  # seconds until something that must happen is given up


def say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message, default=str) + "\n")
    sys.stdout.flush()


class Program:
    """One of the functions below in a process of its own."""

    def __init__(self, function: Callable[..., None], *arguments: object) -> None:
        command = [sys.executable, "-m", __name__, function.__name__, *map(str, arguments)]
        self.process = warm.Popen(command, stdout=subprocess.PIPE, text=True)

    def hear(self, **expected: Any) -> dict[str, Any]:
        """The next message, or the next one with these values."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message: dict[str, Any] = json.loads(line)
            if all(message.get(name) == value for name, value in expected.items()):
                return message
        raise AssertionError(f"it ended with {self.process.wait(PATIENCE)} and without {expected}")

    def end(self, number: signal.Signals) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


@contextmanager
def running(function: Callable[..., None], *arguments: object) -> Iterator[Program]:
    program = Program(function, *arguments)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.end(signal.SIGKILL)


def kill_server(folder: Path) -> None:
    os.kill(json.loads((folder / "server.json").read_text())["mongod"], signal.SIGKILL)


def save(db: TensorDB, value: int, **metrics: Any) -> Any:
    """A set whose every number is its step."""
    return db.params.save({"w": np.full(1000, value, "f4")}, run="r", step=value, **metrics)


# --- the programs -----------------------------------------------------------------------------------------------------


def deploy(address: str, to: str, die_at: str = "") -> None:
    """A deployer; with `die_at` it is killed right before its call of this number that changes names."""
    if die_at:
        left = [int(die_at)]
        for name in ("rename", "replace", "symlink", "fsync", "mkdir"):
            setattr(os, name, _deadly(getattr(os, name), left))

    def smoke(state: Any, about: Mapping[str, Any]) -> None:
        assert (state["w"] == about["step"]).all()

    with TensorDB(address) as db:
        best = db.params.find({"run": "r"}, sort=[("acc", -1)])
        with Deployer(db, best, to, check=smoke, notify=lambda about: say(live=about["step"])) as deployer:
            say(ready=True)
            deployer.run()
    say(drained=True)


def evaluate(address: str, name: str, hang_at: str = "-1", die_at: str = "-1", lease: str = "1.0") -> None:
    """An evaluator, that hangs or is killed in the middle of the set of some step."""

    def score(state: Any, batches: Iterable[Mapping[str, Any]]) -> float:
        step = int(state["w"][0])
        say(scoring=step)
        seen = sum(len(batch["label"]) for batch in batches)
        if step == int(hang_at):
            threading.Event().wait()
        if step == int(die_at):
            os.kill(os.getpid(), signal.SIGKILL)
        return step + seen / 1000

    with TensorDB(address) as db:
        valid, sets = db.data.find({"dataset": "d"}), db.params.find({"run": "r"})
        evaluator = Evaluator(db, sets, score, metric="acc", data=valid, name=name, lease=float(lease))
        say(ready=True)
        evaluator.run()
    say(drained=True)


class Sum:
    """Learns the sum of what it has seen, and how many samples that were."""

    def __init__(self) -> None:
        self.seen, self.total = 0, np.zeros(1)

    def step(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        self.seen += len(batch["number"])
        self.total += batch["number"].sum()
        say(seen=self.seen)
        return {"seen": self.seen}

    def state_dict(self) -> dict[str, Any]:
        return {"model": {"total": self.total, "seen": self.seen}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen, self.total = state["model"]["seen"], state["model"]["total"]


def train(address: str, every: str) -> None:
    with TensorDB(address) as db:
        stream = db.data.find({"dataset": "d"}).stream(batch_size=8, follow=True)
        trainer = Trainer(db, "sum", Sum(), stream, every=int(every))
        say(ready=True)
        step = trainer.run()
    say(drained=step)


def _deadly(call: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def deadly(*arguments: Any, **options: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return call(*arguments, **options)

    return deadly


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])

"""Learning that never stops, in four processes on one machine; each of them is killed once, and nothing else happens.

A labeller inserts digits all the time, a trainer follows them, an evaluator scores what the trainer saves, and a
deployer serves the best. What the deployed model gets right on digits that nobody else has seen is drawn over time.
After each kill it is waited until a set that was saved since has its score: then all of them are at work again. For a
while nothing may be deployed, since nothing better has been learned.

    python examples/continuous/run.py continuous --seconds 120
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from tensordb_data import ParameterSet, TensorDB
from tensordb_data.continuous import Deployer, Evaluator, Trainer, load_deployed

ROLES = ("labeller", "trainer", "evaluator", "deployer")
SAMPLES_A_SECOND = 300
PATIENCE = 120.0  # seconds until something that must happen is given up
TRAIN, VALID = slice(0, 1000), slice(1000, 1400)  # the rest is what the deployed model is measured with


def labeller(db: TensorDB, folder: Path) -> None:
    digits, dice = load_digits(), np.random.default_rng()
    with db.data.writer("digits", live=True) as writer:
        while True:
            image, label = digits.images[TRAIN], digits.target[TRAIN]
            i = dice.integers(len(label))
            shifted = np.roll(image[i], dice.integers(-1, 2), axis=1)
            writer.add(image=shifted.astype("uint8"), label=int(label[i]), split="train")
            time.sleep(1 / SAMPLES_A_SECOND)


class Softmax:
    """A linear classifier, trained by gradient descent."""

    def __init__(self) -> None:
        self.weight = np.zeros((64, 10))

    def step(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        x = batch["image"].reshape(len(batch["label"]), 64) / 16
        chances = np.exp(x @ self.weight)
        chances /= chances.sum(1, keepdims=True)
        loss = -np.log(chances[np.arange(len(x)), batch["label"]]).mean()
        chances[np.arange(len(x)), batch["label"]] -= 1
        self.weight -= 0.02 * x.T @ chances / len(x)
        return {"loss": float(loss)}

    def state_dict(self) -> dict[str, Any]:
        return {"model": {"weight": self.weight}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weight = state["model"]["weight"]


def accuracy(state: Any, batches: Iterable[Mapping[str, Any]]) -> float:
    right = [predict(state, batch["image"]) == batch["label"] for batch in batches]
    return float(np.concatenate(right).mean())


def predict(state: Any, images: Any) -> Any:
    return (images.reshape(len(images), 64) @ state["weight"]).argmax(1)


def trainer(db: TensorDB, folder: Path) -> None:
    stream = db.data.find({"dataset": "digits", "split": "train"}).stream(batch_size=32, follow=True)
    Trainer(db, "digits", Softmax(), stream, every=10).run()


def evaluator(db: TensorDB, folder: Path) -> None:
    valid = db.data.find({"dataset": "digits", "split": "valid"})
    Evaluator(db, db.params.find({"run": "digits"}), accuracy, metric="val_acc", data=valid, lease=5.0).run()


def deployer(db: TensorDB, folder: Path) -> None:
    digits = load_digits()
    images, labels = digits.images[VALID.stop :], digits.target[VALID.stop :]

    def check(state: Any, about: Mapping[str, Any]) -> None:
        assert set(predict(state, images[:8])) <= set(range(10))

    def serve(about: Mapping[str, Any]) -> None:
        served = load_deployed(folder / "models")
        right = float((predict(served.state, images) == labels).mean())
        with (folder / "served.jsonl").open("a") as file:
            file.write(json.dumps({"at": time.time(), "step": about["step"], "accuracy": right}) + "\n")

    best = db.params.find({"run": "digits"}, sort=[("val_acc", -1)])
    with Deployer(db, best, folder / "models", check=check, notify=serve) as running:
        running.run()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the warehouse, the models and the picture")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--role", choices=ROLES, help="be one of the four processes")
    options = parser.parse_args()
    with TensorDB(options.folder / "warehouse") as db:
        if options.role:
            (options.folder / f"{options.role}.pid").write_text(f"{os.getpid()}\n")
            globals()[options.role](db, options.folder)
            return 0
        digits = load_digits()
        with db.data.writer("digits") as writer:
            images, labels = digits.images[VALID].astype("uint8"), digits.target[VALID]
            writer.add_many(image=images, label=labels, split=["valid"] * len(labels))
        kills = conduct(db, options.folder, options.seconds)
        scored = db.params.find({"run": "digits", "val_acc": {"$exists": True}}, sort=[("step", 1)]).all()
    served = [json.loads(line) for line in (options.folder / "served.jsonl").read_text().splitlines()]
    print(draw(options.folder / "continuous.png", served, scored, kills))
    first, last = served[0]["accuracy"], served[-1]["accuracy"]
    print(f"{len(scored)} sets were scored, {len(served)} deployed, all four were killed once")
    print(f"accuracy of the deployed model {first:.3f} -> {last:.3f}")
    return 0


def conduct(db: TensorDB, folder: Path, seconds: float) -> dict[str, float]:
    """Runs the four, kills each once and starts it again; returns when each was killed."""
    part, kills = seconds / (len(ROLES) + 1), {}
    running: dict[str, subprocess.Popen[bytes]] = {}

    def start(role: str) -> None:
        process = running[role] = subprocess.Popen([sys.executable, __file__, str(folder), "--role", role])
        noted = folder / f"{role}.pid"
        until(lambda: noted.exists() and noted.read_text() == f"{process.pid}\n", f"the {role} did not start")

    try:
        for role in ROLES:
            start(role)
        at_work(db, "the start", part)
        until((folder / "served.jsonl").exists, "nothing was deployed")
        for role in ROLES:
            print(f"kill -9 {role}", flush=True)
            running[role].kill()
            assert running[role].wait() == -signal.SIGKILL, f"the {role} had ended by itself"
            kills[role] = time.time()
            start(role)
            at_work(db, f"the {role} was killed", part)
        for role in ROLES[1:]:
            assert running[role].poll() is None, f"the {role} has ended by itself"
            running[role].terminate()
        for role in ROLES[1:]:
            assert running[role].wait(PATIENCE) == 0, f"the {role} did not end as it should"
    finally:
        for process in running.values():  # the labeller has no end but this one
            process.kill()
            process.wait()
    return kills


def at_work(db: TensorDB, since: str, seconds: float) -> None:
    """Lets them work for so long, and until a set that was saved since has a score."""
    newest = db.params.find({"run": "digits"}, sort=[("step", -1)]).head(1)
    before = newest[0]["step"] if newest else 0
    time.sleep(seconds)
    newer = db.params.find({"run": "digits", "step": {"$gt": before}, "val_acc": {"$exists": True}})
    until(lambda: newer.count() > 0, f"no set was saved and scored since {since}")


def until(reached: Callable[[], bool], complaint: str) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, f"{complaint}, for {PATIENCE:.0f} seconds"
        time.sleep(0.1)


def draw(path: Path, served: list[dict[str, Any]], scored: list[ParameterSet], kills: Mapping[str, float]) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    begin = served[0]["at"]
    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    times = [found.id.generation_time.timestamp() - begin for found in scored]
    axes.plot(
        times,
        [found["val_acc"] for found in scored],
        ".",
        color="lightgrey",
        label="each set saved, on the valid split",
    )
    axes.step(
        [one["at"] - begin for one in served], [one["accuracy"] for one in served], where="post",
        label="the deployed one, on digits of nobody else",
    )  # fmt: skip
    for role, at in kills.items():
        axes.axvline(at - begin, color="grey", linestyle=":")
        axes.annotate(f" kill -9 {role}", (at - begin, 0.02), xycoords=("data", "axes fraction"), fontsize=8)
    axes.set_xlabel("seconds since the first deployment")
    axes.set_ylabel("accuracy")
    axes.legend(loc="center right")
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    sys.exit(main())

"""The parameter sets of the chaos: who scores and serves them, and what must hold of that.

A set's only number is its score, so that each score, and each model that is served, can be told from a wrong one.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tensordb_data import TensorDB
from tensordb_data.continuous import Deployer, Evaluator, load_deployed
from tensordb_data.errors import NotFoundError

SAMPLES = 100
_NONE, _NAN, _RAISE = range(3)


def prepare(db: TensorDB) -> None:
    """The validation samples."""
    with db.data.writer("valid") as writer:
        writer.add_many(number=np.arange(SAMPLES))


def save(db: TensorDB, step: int, dice: random.Random) -> None:
    fault = dice.choices([_NONE, _NAN, _RAISE], [18, 1, 1])[0]
    db.params.save({"w": np.full(20_000, dice.random()), "fault": fault}, run="chaos", step=step)


def open_sets(db: TensorDB) -> int:
    """How many have neither a score nor a reason why not."""
    return db.params.find({"score": {"$exists": False}, "score_error": {"$exists": False}}).count()


# --- the processes ----------------------------------------------------------------------------------------------------


def evaluator(folder: Path, name: str, lease: float) -> None:
    def score(state: Any, batches: Iterable[Mapping[str, Any]]) -> float:
        seen = sum(len(batch["number"]) for batch in batches)
        assert seen == SAMPLES, f"{seen} samples of {SAMPLES}"
        time.sleep(random.uniform(0, 0.5))  # where most of the kills meet it
        if state["fault"] == _RAISE:
            raise ValueError("as planned")
        return float("nan") if state["fault"] == _NAN else float(state["w"][0])

    with TensorDB(folder / "w") as db:
        valid, sets = db.data.find({"dataset": "valid"}), db.params.find({"run": "chaos"})
        Evaluator(db, sets, score, metric="score", data=valid, name=name, lease=lease).run()


def deployer(folder: Path) -> None:
    with TensorDB(folder / "w") as db:
        best = db.params.find({"run": "chaos"}, sort=[("score", -1)])
        with Deployer(db, best, folder / "models", check=lambda state, about: whole(state, about)) as running:
            running.run()


# --- what must hold ---------------------------------------------------------------------------------------------------


def whole(state: Any, about: Mapping[str, Any]) -> bool:
    return bool((state["w"] == about["score"]).all())


class Served(threading.Thread):
    """Reads what is deployed, again and again, as a server would."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder / "models"
        self.ended = threading.Event()
        self.faults: list[str] = []
        self.scores: list[float] = []
        self.reads = 0

    def run(self) -> None:
        while not self.ended.wait(0.02):
            try:
                found = load_deployed(self.folder)
            except NotFoundError as error:
                if self.scores:
                    self.faults.append(f"nothing was deployed any more: {error}")
            except Exception as error:
                self.faults.append(f"what is deployed cannot be read: {error!r}")
            else:
                self._seen(found.state, found.about)

    def _seen(self, state: Any, about: Mapping[str, Any]) -> None:
        self.reads += 1
        score = about["score"]
        if not whole(state, about):
            self.faults.append(f"the model served is not the one of step {about['step']}")
        if not self.scores or score != self.scores[-1]:
            if self.scores and score < self.scores[-1]:
                self.faults.append(f"a worse model replaced a better one: {score} after {self.scores[-1]}")
            self.scores.append(score)

    def stop(self) -> None:
        self.ended.set()
        self.join()


def settled(db: TensorDB, served: Served) -> bool:
    """Whether all are scored and the best is served."""
    best = db.params.find({"run": "chaos", "score": {"$exists": True}}, sort=[("score", -1)], limit=1).head(1)
    return not open_sets(db) and (not best or served.scores[-1:] == [best[0]["score"]])


def wrong(db: TensorDB, saved: int, served: Served, changes: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the sets, their history and their reader say."""
    found = db.params.find({"run": "chaos"}).all()
    faults = [*served.faults] if len(found) == saved else [f"{saved} sets were saved, {len(found)} are there"]
    written: Counter[Any] = Counter()
    for change in changes:
        names = change["updateDescription"]["updatedFields"]
        written[change["documentKey"]["_id"]] += "score" in names or "score_error" in names
    for one in found:
        if written[one.id] != 1:
            faults.append(f"set {one['step']} was given a score {written[one.id]} times")
        if "score" in one and one["score"] != one.load()["w"][0]:
            faults.append(f"set {one['step']} has the score of another: {one['score']}")
    if not settled(db, served):
        faults.append(f"{open_sets(db)} sets have no score; served are {served.scores[-1:]}")
    return faults


if __name__ == "__main__":
    role, where, *more = sys.argv[1:]
    if role == "evaluator":
        evaluator(Path(where), more[0], float(more[1]))
    else:
        deployer(Path(where))

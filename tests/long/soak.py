"""Soak: a program that saves, prunes and collects is killed at random points; then everything that is left is checked.

    make soak                                               # 200 kills
    .venv/bin/python tests/long/soak.py --kills 10 --seed 7      # as the tests run it

Kills fall into snapshot, upload, commit, prune and gc, in turn: after a random one of these has begun, at any moment of
the time that it took last. After each, the newest set is loaded, and every set that a query finds: each whole, its
checksums right, all of it of one step, and no step that was acknowledged as durable is lost. A collection beside that
takes nothing of it. At the end all sets are deleted, and nothing may be left in the store or in the index.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tensordb_data import Keep, SaveOptions, TensorDB
from tensordb_data.blobs.stores.local import FileStore
from tensordb_data.checkpoint import background, staging
from tensordb_data.checkpoint.checkpointer import Checkpointer
from tensordb_data.embedded import join
from tensordb_data.housekeeping import gc
from tensordb_data.warehouse.index import Index

PHASES = ("snapshot", "upload", "commit", "prune", "gc")
SIZE = 100_000
KEEP = Keep(last=2, every=10)
MARGIN = dt.timedelta(seconds=1)  # a mark takes milliseconds here
FORKS = multiprocessing.get_context("forkserver")  # which imports all of this once


def state(step: int) -> dict[str, Any]:
    """Some of it changes at each step, some now and then, some never: objects are shared by sets."""
    model = {
        "each": np.full(SIZE, step, "f4"),
        "sometimes": np.full(SIZE, step // 4, "f4"),
        "never": np.arange(SIZE, dtype="f4"),
        "small": np.full(3, step, "f4"),
    }
    return {"model": model, "training": {"step": step}}


def check_state(parts: dict[str, Any]) -> int:
    """The one step that all of a loaded state is of."""
    step = int(parts["training"]["step"])
    for name, expected in state(step)["model"].items():
        assert np.array_equal(np.asarray(parts["model"][name]), expected), f"{name} is not of step {step}"
    return step


# --- the program that is killed ---------------------------------------------------------------------------------------


_out = 1


def say_to(out: Connection) -> None:
    """Where this process says what it does."""
    global _out
    _out = out.fileno()


def say(**message: Any) -> None:
    os.write(_out, json.dumps(message).encode() + b"\n")


def announced(owner: Any, name: str, phase: str) -> None:
    """Says when a function begins and when it has returned."""
    real: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        say(begin=phase)
        try:
            return real(*args, **kwargs)
        finally:
            say(end=phase)

    setattr(owner, name, call)


def train(uri: str, blobs: str, out: Connection) -> None:
    """Saves every step, keeps few, and collects beside the saver."""
    say_to(out)
    gc._MARGIN = MARGIN
    announced(staging.StagingBuffer, "take", "snapshot")
    announced(FileStore, "put", "upload")
    announced(Index, "transaction", "commit")
    announced(background, "prune", "prune")
    with TensorDB(uri, blobs=blobs) as db:
        checkpointer = Checkpointer(db.warehouse, "soak", state, every=1, keep=KEEP, options=SaveOptions(signals=False))
        found = checkpointer.load(None)
        step = check_state(dict(found[1])) if found else 0
        say(restored=step)
        checkpointer.start_at(step, found[0]["_id"] if found else None)
        while True:
            step += 1
            checkpointer.end_step(step, {})
            if step % 3 == 0:
                say(begin="gc")
                db.gc(grace=0)
                say(end="gc")
            if step % 5 == 0:
                checkpointer.wait()
                say(durable=step)


# --- the one who kills ------------------------------------------------------------------------------------------------


class Killed:
    """One run of the program, until a moment of a phase."""

    def __init__(self, program: Callable[[str, str, Connection], None], uri: str, blobs: str) -> None:
        self._in, out = FORKS.Pipe(duplex=False)
        self.process = FORKS.Process(target=program, args=(uri, blobs, out), daemon=True)
        self.process.start()
        out.close()
        self.restored = self.durable = -1
        self.heard: list[dict[str, Any]] = []

    def messages(self) -> Iterator[dict[str, Any]]:
        with open(self._in.fileno(), "rb", closefd=False) as lines:
            for line in lines:
                if line.endswith(b"\n"):  # else it was killed in the middle of it
                    message = json.loads(line)
                    self.heard.append(message)
                    self.restored = message.get("restored", self.restored)
                    self.durable = message.get("durable", self.durable)
                    yield message

    def run(self, phase: str, nth: int, dice: random.Random, took: dict[str, float]) -> None:
        """Until some time after `phase` has begun for the `nth` time."""
        begun: dict[str, float] = {}
        messages = self.messages()
        for message in messages:
            now = time.monotonic()
            if "begin" in message:
                begun[message["begin"]] = now
                nth -= message["begin"] == phase
                if nth == 0:
                    break
            elif "end" in message and message["end"] in begun:
                took[message["end"]] = min(0.2, now - begun[message["end"]])
        else:
            raise AssertionError("it ended by itself")
        time.sleep(dice.uniform(0, took.get(phase, 0.002)))
        self.process.kill()
        for _ in messages:
            pass
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self._in.close()


def check(db: TensorDB, least: int) -> int:
    """Everything that a query finds is whole, before and after a collection; returns the newest step."""
    checkpointer = Checkpointer(db.warehouse, "soak", state, every=1, options=SaveOptions(signals=False))
    newest = 0
    for _ in range(2):
        steps = [
            check_state({part: each.load(part) for part in each.parts}) for each in db.params.find({"run": "soak"})
        ]
        found = checkpointer.load(None)
        newest = check_state(dict(found[1])) if found else 0
        assert newest == max(steps, default=0) >= least, f"step {least} was durable, {newest} is the newest"
        assert len(set(steps)) == len(steps)
        db.gc(grace=0)
    checkpointer.close()
    return newest


def end_leases(db: TensorDB) -> None:
    """Those of the dead, which a collection would otherwise wait for; and their tombstones."""
    db.database["leases"].update_many({"state": "held"}, {"$set": {"until": dt.datetime(2020, 1, 1)}})
    db.database["tombstones"].update_many({"state": "writing"}, {"$set": {"created": dt.datetime(2020, 1, 1)}})


def left(db: TensorDB) -> list[str]:
    """What is in the store and in the index when all sets have been deleted and collected."""
    end_leases(db)
    db.params.find({"run": "soak"}).delete()
    for _ in range(2):
        db.gc(grace=0)
    names = ("tensors", "leases", "segments", "tombstones")
    documents = [f"{name}: {doc}" for name in names for doc in db.database[name].find()]
    return [*documents, *(key for key, _ in db.warehouse.blobs.store().list())]


def soak(folder: Path, kills: int, seed: int, until: float) -> Counter[str]:
    """Returns how many kills fell into each phase."""
    dice, took, done = random.Random(seed), dict[str, float](), Counter[str]()
    blobs = (folder / "blobs").as_uri()
    with join(folder / "server") as server:
        uri = "/soak?".join(server.uri.rsplit("/?", 1))
        newest = 0
        with TensorDB(uri, blobs=blobs) as db:
            for number in range(kills):
                if time.time() > until:
                    break
                phase = PHASES[number % len(PHASES)]
                killed = Killed(train, uri, blobs)
                try:
                    killed.run(phase, dice.randint(1, 4), dice, took)
                finally:
                    killed.close()
                assert killed.restored in (-1, newest), f"restored {killed.restored}; {newest} was the newest"
                end_leases(db)
                newest = check(db, max(newest, killed.durable))
                done[phase] += 1
                print(f"{number + 1} of {kills}: killed in {phase}, at step {newest}", flush=True)
            rest = left(db)
            assert not rest, f"left: {rest}"
    return done


def main(about: str, soak: Callable[[Path, int, int, float], Counter[str]], found: str) -> None:
    """Run a soak in a folder of its own: with the kills, the seed and until the time that the command line says."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=1e9, help="end after so long, with fewer kills")
    asked = parser.parse_args()
    gc._MARGIN = MARGIN
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    print(f"seed {seed}")
    folder = Path(tempfile.mkdtemp(prefix="tdbk"))
    began = time.monotonic()
    try:
        done = soak(folder, asked.kills, seed, time.time() + asked.seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{done.total()} kills in {time.monotonic() - began:.0f} s: {dict(done)}; {found}")


if __name__ == "__main__":
    main(__doc__, soak, "every state whole, nothing left over")

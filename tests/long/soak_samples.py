"""Soak of samples: a program that does everything to a warehouse is killed at random points, beside files of others.

    make soak                                                       # 200 kills, after those of tests/long/soak.py
    .venv/bin/python tests/long/soak_samples.py --kills 14 --seed 7      # as the tests run it

Kills fall into the phases in turn, as in tests/long/soak.py: a writer, a live writer, a deletion, an update,
a compaction, a rename, a gc, a save, and the upgrade of a warehouse of format 1. After each:

- no sample is lost whose commit was acknowledged, and none is there twice or with other bytes; of a commit that was not
  acknowledged, all samples are there or none;
- what was deleted with an acknowledgement stays deleted, and an update was made that was acknowledged;
- no checkpoint is lost that was acknowledged;
- a warehouse is of format 1 or 2, each as a whole;
- fsck finds nothing but leftovers, and 1,000 files of others beside the blobs and among them are as they were.
"""

from __future__ import annotations

import datetime as dt
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tensordb_data import Keep, TensorDB
from tensordb_data.embedded import join
from tensordb_data.housekeeping import gc
from tensordb_data.samples import mutations
from tensordb_data.schema.schema import MARK
from tensordb_data.warehouse import catalog
from tensordb_data.warehouse.upgrade import STOP
from tests.integration.housekeeping.test_canary import content, plant
from tests.long.soak import MARGIN, Killed, end_leases, main, say, say_to

PHASES = ("write", "live", "delete", "update", "compact", "rename", "gc", "save", "upgrade")
COUNT = 12
HOME, AWAY = "w", "away"


def come_home(db: TensorDB) -> None:
    """Finish a rename that was stopped, so that all samples are in one dataset."""
    for old, new in ((HOME, AWAY), (AWAY, HOME)):
        doc = db.database["datasets"].find_one({"_id.d": old})
        if doc is not None and (old == AWAY or "leaving" in doc):
            db.data.rename(old, new)


def work(uri: str, blobs: str, out: Connection) -> None:
    """All phases, one after the other, in an order of chance, for ever."""
    say_to(out)
    gc._MARGIN = MARGIN
    mutations.LIMIT = 5  # so that changes take several transactions
    real = catalog.upgrade

    def upgrade(mongo: Any) -> None:
        say(begin="upgrade")
        real(mongo)
        say(end="upgrade")

    catalog.upgrade = upgrade
    dice = random.Random()
    with TensorDB(uri, blobs=blobs) as db:
        come_home(db)
        first = max(db.data.find().distinct("n"), default=-1) + 1
        step = max(db.params.find({"run": "r"}).distinct("step"), default=0)
        while True:
            phase = dice.choice(PHASES[:-1]) if first else "write"
            say(begin=phase)
            if phase in ("write", "live"):
                numbers = list(range(first, first + COUNT))
                first += COUNT
                say(writing=numbers)
                with db.data.writer(HOME, live=phase == "live", flush_every=None) as writer:
                    x = np.repeat(np.array(numbers, np.float32)[:, None], 50, 1)
                    writer.add_many(x=x, n=numbers, label=[0] * COUNT)
                say(written=numbers)
            elif phase in ("delete", "update"):
                known = db.data.find().distinct("n")
                some = sorted(dice.sample(known, min(len(known), 12)))
                chosen = db.data.find({"dataset": HOME, "n": {"$in": some}})
                say(**{phase: some})
                if phase == "delete":
                    chosen.delete()
                else:
                    chosen.update({"$set": {"label": 1}})
                say(**{f"{phase}d": some})
            elif phase == "compact":
                db.data.compact(HOME)
            elif phase == "rename":
                db.data.rename(HOME, AWAY)
                db.data.rename(AWAY, HOME)
            elif phase == "gc":
                db.gc(grace=0)
            else:
                step += 1
                db.params.save({"w": np.full(2000, step), "same": np.ones(2000)}, run="r", step=step)
                say(saved=step)
                db.params.prune("r", Keep(last=3))
            say(end=phase)


@dataclass
class Known:
    """What was acknowledged, and what may have happened."""

    there: set[int] = field(default_factory=set)
    maybe: list[list[int]] = field(default_factory=list)
    """Commits that were not acknowledged."""
    maybe_gone: set[int] = field(default_factory=set)
    labelled: set[int] = field(default_factory=set)
    saved: int = 0

    def hear(self, message: dict[str, Any]) -> None:
        """Take one message of the program into account."""
        if "writing" in message:
            self.maybe.append(message["writing"])
        elif "written" in message:
            self.maybe.remove(message["written"])
            self.there |= set(message["written"])
        elif "delete" in message:
            self.maybe_gone = set(message["delete"])
        elif "deleted" in message:
            self.there -= self.maybe_gone
            self.labelled -= self.maybe_gone  # a later life may write samples of these numbers again
            self.maybe_gone = set()
        elif "updated" in message:
            self.labelled |= set(message["updated"])
        elif "saved" in message:
            self.saved = message["saved"]

    def check(self, db: TensorDB) -> None:
        """Compare with what is there, which is what is known from now on."""
        found = db.data.find({}, sort=[("n", 1)]).all()
        numbers = [sample["n"] for sample in found]
        assert len(set(numbers)) == len(numbers), "a sample is there twice"
        lost = self.there - set(numbers) - self.maybe_gone
        assert not lost, f"acknowledged, and lost: {sorted(lost)}"
        for commit in self.maybe:
            assert len(set(commit) & set(numbers)) in (0, len(commit)), f"a part of a commit: {commit}"
        extra = set(numbers) - self.there - {number for commit in self.maybe for number in commit}
        assert not extra, f"deleted, and there: {sorted(extra)}"
        for sample in found:
            assert sample["x"].shape == (50,) and (sample["x"] == sample["n"]).all(), f"other bytes: {sample['n']}"
            assert sample["label"] == 1 or sample["n"] not in self.labelled, f"an update is lost: {sample['n']}"
        sets = db.params.find({"run": "r"}, sort=[("step", -1)]).all()
        newest = sets[0]["step"] if sets else 0
        assert newest >= self.saved, f"step {self.saved} was saved, {newest} is the newest"
        assert all((each.load()["w"] == each["step"]).all() for each in sets)
        self.there, self.maybe, self.maybe_gone, self.saved = set(numbers), [], set(), newest
        self.labelled &= self.there


def make_old(mongo: Any) -> None:
    """As a warehouse of 0.1 is."""
    mongo["datasets"].update_many({}, {"$unset": {f"schema.{MARK}": ""}})
    mongo["datasets"].update_many({"schema": {}}, {"$set": {"schema": None}})
    mongo["leases"].delete_one({"_id": STOP})
    mongo["warehouse"].update_one({}, {"$set": {"format": 1}})


def is_whole(mongo: Any) -> int:
    """The format, all of it."""
    format = mongo["warehouse"].find_one({})["format"]
    marked = [MARK in (doc["schema"] or {}) for doc in mongo["datasets"].find()]
    stops = mongo["leases"].find_one({"_id": STOP}) is not None
    # One that was made with format 2 has no reason to stop anybody.
    assert {*marked} <= {format == 2} and not (format == 1 and stops), f"format {format} in part: {marked}, {stops}"
    return int(format)


def soak(folder: Path, kills: int, seed: int, until: float) -> Counter[str]:
    """Returns how many kills fell into each phase."""
    dice, took, done, known = random.Random(seed), dict[str, float](), Counter[str](), Known()
    place = folder / "blobs"
    plant(place, 400, 1)
    plant(folder / "beside", 600, 2)
    before = content(place, folder / "beside")
    assert len(before) == 1000
    with join(folder / "server") as server:
        uri = "/soak?".join(server.uri.rsplit("/?", 1))
        TensorDB(uri, blobs=place.as_uri()).close()
        for number in range(kills):
            if time.time() > until:
                break
            phase = PHASES[number % len(PHASES)]
            with TensorDB(uri, blobs=place.as_uri(), read_only=True) as db:
                client = db.database.client
                if phase == "upgrade":
                    make_old(client["soak"])
            killed = Killed(work, uri, place.as_uri())
            try:
                killed.run(phase, 1 if phase == "upgrade" else dice.randint(1, 3), dice, took)
            finally:
                killed.close()
            for message in killed.heard:
                known.hear(message)
            done[phase] += 1
            with TensorDB(uri, blobs=place.as_uri(), read_only=True) as db:
                format = is_whole(db.database)
            with TensorDB(uri, blobs=place.as_uri()) as db:
                end_leases(db)
                # And of their changes, which others would wait for.
                db.database["mutations"].update_many({}, {"$set": {"until": dt.datetime(2020, 1, 1)}})
                known.check(db)
                kinds = {finding.kind for finding in db.fsck().findings} - {"leftover", "unknown object"}
                assert not kinds, kinds
                now = content(place, folder / "beside")
            assert {path: now.get(path) for path in before} == before, "a file of others was touched"
            print(
                f"{number + 1} of {kills}: killed in {phase}, format {format}, {len(known.there)} samples", flush=True
            )
    return done


if __name__ == "__main__":
    main(__doc__, soak, "nothing lost, nothing foreign touched")

"""All that goes on in a warehouse at once, each part with a client of its own; then everything is accounted for.

Samples are written, updated and followed, streamed from a cursor and from a plan, parameter sets are saved, and rows
are logged, while something fails again and again. All must get on after each failure. What must hold:

- what was acknowledged is there, once, with its bytes; what was not acknowledged is there whole, or not at all;
- an update was made once, and a pass has each sample once;
- nobody has seen an error.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

from tensordb_data import TensorDB

COUNT = 12
FIXED = 400


class Part:
    """One who works, with a connection of its own."""

    def __init__(self, name: str, uri: str, blobs: str, work: Callable[[TensorDB, Part], None]) -> None:
        self.name, self.steps, self.longest = name, 0, 0.0
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._given, self._work = (uri, blobs), work
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def step(self) -> None:
        """Something was done."""
        now = time.monotonic()
        self.longest, self._last = max(self.longest, now - self._last), now
        self.steps += 1

    def end(self) -> None:
        self.ended.set()
        self._thread.join(120)
        assert not self._thread.is_alive(), f"{self.name} does not end"

    def check(self) -> None:
        if self.error is not None:
            raise AssertionError(f"{self.name}: {type(self.error).__name__}: {self.error}") from self.error

    def _run(self) -> None:
        uri, blobs = self._given
        try:
            with TensorDB(uri, blobs=blobs) as db:
                self._work(db, self)
        except BaseException as error:
            self.error = error


class Account:
    """What those who take part have been told."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.updates = 0
        self.saved: list[int] = []
        self.rows = 0
        self.followed: Counter[int] = Counter()

    def write(self, db: TensorDB, part: Part) -> None:
        """Commits of a few samples."""
        first = 0
        with db.data.writer("new", flush_every=None) as writer:
            while not part.ended.wait(0.02):
                numbers = np.arange(first, first + COUNT)
                writer.add_many(x=np.repeat(numbers[:, None], 300, 1).astype("f4"), n=numbers)
                writer.flush()
                self.written += numbers.tolist()
                first += COUNT
                part.step()

    def update(self, db: TensorDB, part: Part) -> None:
        """Updates that count themselves."""
        some = db.data.find({"dataset": "fixed", "n": {"$lt": 10}})
        while not part.ended.wait(0.02):
            some.update({"$inc": {"hits": 1}})
            self.updates += 1
            part.step()

    def follow(self, db: TensorDB, part: Part) -> None:
        """A stream of what is written."""
        stream = db.data.find({"dataset": "new"}).stream(batch_size=1, fields=["n", "x"], follow=True)
        watch = threading.Thread(target=lambda: (part.ended.wait(), stream.close()), daemon=True)
        watch.start()
        for batch in stream:
            assert (batch["x"] == batch["n"][:, None]).all()
            self.followed.update(batch["n"].tolist())
            part.step()

    def save(self, db: TensorDB, part: Part) -> None:
        """Parameter sets."""
        step = 0
        while not part.ended.wait(0.05):
            step += 1
            db.params.save({"w": np.full(5000, step, "f4"), "same": np.ones(5000, "f4")}, run="r", step=step)
            self.saved.append(step)
            part.step()

    def log(self, db: TensorDB, part: Part) -> None:
        """Rows of a run."""
        with db.logs.run("r") as log:
            while not part.ended.wait(0.01):
                self.rows += 1
                log.write(self.rows, loss=float(self.rows))
                part.step()

    def wrong(self, db: TensorDB) -> list[str]:
        """What is not as they were told."""
        found = []
        new = db.data.find({"dataset": "new"})
        there = Counter(int(n) for sample in new.all() for n in [sample["n"]])
        if lost := set(self.written) - there.keys():
            found.append(f"samples lost: {sorted(lost)[:20]}")
        if twice := [n for n, times in there.items() if times > 1]:
            found.append(f"samples twice: {twice[:20]}")
        if len(there) % COUNT:
            found.append(f"{len(there)} samples, of commits of {COUNT}")
        for batch in new.stream(batch_size=100, passes=1):
            if not (batch["x"] == batch["n"][:, None]).all():
                found.append("other bytes")
        if missed := set(self.written) - self.followed.keys():
            found.append(f"samples that were not followed: {sorted(missed)[:20]}")
        if twice := [n for n, times in self.followed.items() if times > 1]:
            found.append(f"samples that were followed twice: {twice[:20]}")
        hits = db.data.find({"dataset": "fixed", "n": {"$lt": 10}}).distinct("hits")
        if hits != [self.updates]:
            found.append(f"{self.updates} updates were made, and counted as {hits}")
        steps = {found.step: found.load() for found in db.params.find({"run": "r"}).all()}
        if lost := set(self.saved) - steps.keys():
            found.append(f"parameter sets lost: {sorted(lost)[:20]}")
        if bad := [step for step, state in steps.items() if not (state["w"] == step).all()]:
            found.append(f"parameter sets with other bytes: {bad[:20]}")
        rows = Counter(row["step"] for row in db.logs.find({"run": "r", "kind": "train"}).all())
        if rows != Counter(range(1, self.rows + 1)):
            found.append(f"{self.rows} rows were logged, {sum(rows.values())} are there, {len(rows)} different ones")
        return found


def streams(shuffle: bool) -> Callable[[TensorDB, Part], None]:
    """Passes over samples that stay as they are."""

    def work(db: TensorDB, part: Part) -> None:
        fixed = db.data.find({"dataset": "fixed"})
        while not part.ended.is_set():
            seen: Counter[int] = Counter()
            options: dict[str, Any] = {"shuffle": True, "seed": part.steps} if shuffle else {}
            for batch in fixed.stream(batch_size=16, fields=["n", "x"], passes=1, **options):
                assert (batch["x"] == batch["n"][:, None]).all()
                seen.update(batch["n"].tolist())
                part.step()
                if part.ended.wait(0.002):
                    return
            assert seen == Counter(range(FIXED)), f"a pass has {len(seen)} samples, {sum(seen.values())} in all"

    return work


def account_for(
    uri: str, blobs: str, faults: Iterable[tuple[str, Callable[[], object]]], tell: Callable[[str], object] = print
) -> list[str]:
    """Let everything go on while one fault after the other is made. Returns what is wrong at the end."""
    account, done = Account(), Counter[str]()
    with TensorDB(uri, blobs=blobs) as db:
        numbers = np.arange(FIXED)
        with db.data.writer("fixed") as writer:
            x = np.repeat(numbers[:, None], 300, 1).astype("f4")
            writer.add_many(x=x, n=numbers, hits=np.zeros(FIXED, int))
        works = {
            "writer": account.write, "update": account.update, "follow": account.follow, "save": account.save,
            "log": account.log, "cursor": streams(False), "plan": streams(True),
        }  # fmt: skip
        parts = {name: Part(name, uri, blobs, work) for name, work in works.items()}
        _settle(parts.values())
        for fault, strike in faults:
            before = time.monotonic()
            strike()
            _settle(parts.values())
            done[fault] += 1
            tell(f"round {done.total()}: {fault}; all went on {time.monotonic() - before:.1f} s after it began")
        follower = parts.pop("follow")
        for part in parts.values():
            part.end()
        _wait(lambda: set(account.written) <= account.followed.keys(), [follower])
        parts["follow"] = follower
        follower.end()
        for part in parts.values():
            part.check()
        waits = ", ".join(f"{part.name} {part.longest:.1f} s" for part in parts.values())
        tell(f"{dict(done)}; the longest waits: {waits}")
        return account.wrong(db)


def _settle(parts: Collection[Part]) -> None:
    """Return once everybody has got on, and has raised nothing."""
    goals = {part: part.steps + 3 for part in parts}
    _wait(lambda: all(part.steps >= goal for part, goal in goals.items()), parts)


def _wait(condition: Callable[[], bool], parts: Collection[Part], seconds: float = 90.0) -> None:
    """Return once it is so; an error if one of the parts has failed, or it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        for part in parts:
            part.check()
        assert time.monotonic() < end, {part.name: part.steps for part in parts}
        time.sleep(0.02)

"""kill -9 of trainer, writer and server at random moments: what was acknowledged is there, whole, and nothing else.

One warehouse folder over all rounds. A writer and a trainer run at full speed in processes of their own and report
each flush that returned and each save that became durable. Each round kills one of them, at times once more while it
starts again, or mongod, or its supervisor; after it, every claim is checked against the folder, and all go on.

KILLS_SEED repeats a choice of victims and moments, as far as the machine's timing allows.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensordb_data import TensorDB

ROUNDS = 20 if os.environ.get("MATRICES") == "all" else 7  # each victim of VICTIMS once
EVERY = 20  # steps between two saves
TRAINED = 200  # samples that are trained on
AHEAD = 20  # messages that a program may be ahead of the one who listens, so that checks do not chase what they check
PATIENCE = 60.0  # seconds until something that must happen is given up
VICTIMS = ("writer", "trainer", "mongod", "writer", "trainer", "mongod", "supervisor")
EVENTS = ("flushed", "taken", "durable")


def pixels(writer: Any, number: Any) -> np.ndarray[Any, Any]:
    """What the image of a sample must hold; for arrays, of many samples."""
    seed = np.asarray(writer, np.int64) * 7919 + np.asarray(number, np.int64) * 104729
    places = np.arange(256, dtype=np.int64)
    return ((seed[..., None] ^ places * 2654435761) >> 5 & 255).astype(np.uint8).reshape(*seed.shape, 16, 16)


def note(writer: int, number: int) -> bytes:
    return f"{writer}/{number} ".encode() * ((number + 1) % 40)


def checksum(tensors: Any) -> int:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]), zlib.crc32(name.encode(), crc))
    return crc


# --- the two programs -------------------------------------------------------------------------------------------------


said = 0


def say(**message: int) -> None:
    global said
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
    said += 1
    if said > AHEAD:
        sys.stdin.read(1)


def write(folder: str, writer: int) -> None:
    dice = random.Random(writer)
    number = 0
    with TensorDB(folder) as db, db.data.writer("d", flush_every=None) as w:
        flush = 0
        while True:
            size = dice.randint(1, 20)
            for _ in range(size):
                w.add(image=pixels(writer, number), note=note(writer, number),
                      writer=writer, number=number, flush=flush, size=size)  # fmt: skip
                number += 1
            w.flush()
            say(flushed=flush, number=number)
            flush += 1


def train(folder: str, _: int) -> None:
    import torch
    from torch.utils.data import DataLoader

    from tensordb_data.torch import QueryDataset, StepCheckpointer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with TensorDB(folder) as db:
        # A part that no longer grows, of a dataset that does.
        images = db.data.find({"dataset": "d", "writer": 0, "number": {"$lt": TRAINED}}, fields=["image", "number"])
        loader = DataLoader(QueryDataset(images, batch_size=16, shuffle=True, seed=0), batch_size=None, num_workers=1)
        model = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(256, 8), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)
        )
        opt = torch.optim.Adam(model.parameters())
        with StepCheckpointer(db, run="r", model=model, optimizer=opt, every=EVERY, stream=loader) as ckpt:
            start = ckpt.restore()
            say(restored=start, checksum=checksum(model.state_dict()))
            taken: list[int] = []
            durable = 0
            for step, batch in enumerate(loader, start + 1):
                opt.zero_grad()
                loss = ((model(batch["image"].float() / 255)[:, 0] - batch["number"] % 2) ** 2).mean()
                loss.backward()
                opt.step()
                if step % EVERY == 0:
                    taken.append(step)
                    say(taken=step, checksum=checksum(model.state_dict()))
                ckpt.step(loss=loss)
                if step % EVERY == EVERY // 2:
                    for saved in taken[durable : ckpt.stats()["durable"]]:
                        say(durable=saved)
                        durable += 1


PROGRAMS: dict[str, Callable[[str, int], None]] = {"writer": write, "trainer": train}


# --- the one who kills ------------------------------------------------------------------------------------------------


class Program:
    """One run of a program; its messages arrive in an inbox that all share."""

    def __init__(self, kind: str, number: int, folder: Path, inbox: queue.Queue[Any]) -> None:
        self.kind, self.number, self.messages, self.started = kind, number, 0, time.monotonic()
        self.unanswered = 0
        self.process = subprocess.Popen(
            [sys.executable, __file__, kind, str(folder), str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, args=(inbox,))
        self._reader.start()

    def _read(self, inbox: queue.Queue[Any]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if line.endswith(b"\n"):  # else it was killed in the middle of it
                    inbox.put((self, json.loads(line)))
        inbox.put((self, None))

    def go_on(self) -> None:
        """Let the program run ahead of what was heard."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(b"." * self.unanswered)
            self.process.stdin.flush()
        self.unanswered = 0

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait until nothing more can come; returns the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self._reader.join()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        return status


class Chaos:
    """The folder, the two programs, and everything that they have claimed."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder, self.dice = folder, dice
        self.inbox: queue.Queue[tuple[Program, dict[str, int] | None]] = queue.Queue()
        self.running: dict[str, Program] = {}
        self.written: dict[int, int] = {}  # samples by writer, in flushes that returned
        self.checksums: dict[int, int] = {0: 0}  # of the parameters, by step
        self.durable = 0  # the last step whose save was acknowledged
        self.now: Counter[str] = Counter()  # messages by kind
        self.gap: dict[str, float] = dict.fromkeys(EVENTS, 0.05)  # seconds between the last two of a kind
        self.startup: dict[str, float] = {}  # seconds from a program's start to its first message
        self._last: dict[str, float] = {}
        self._dead: set[Program] = set()
        self._checked: dict[int, int] = {}  # samples by writer whose bytes were compared

    def start(self, kind: str) -> Program:
        number = self.running[kind].number + 1 if kind in self.running else 0
        self.running[kind] = Program(kind, number, self.folder, self.inbox)
        return self.running[kind]

    def kill(self, victim: str) -> None:
        if victim in self.running:
            assert self.end(victim, signal.SIGKILL) == -signal.SIGKILL, f"the {victim} had ended by itself"
        else:
            os.kill(json.loads((self.folder / "server.json").read_text())[victim], signal.SIGKILL)

    def end(self, kind: str, number: signal.Signals) -> int:
        """End a program by a signal, and hear what it had to say; returns its exit status."""
        program = self.running[kind]
        self._dead.add(program)
        status = program.end(number)
        while any(program is one for one, _ in list(self.inbox.queue)):
            self.hear()
        return status

    def hear(self) -> Program:
        """Take note of one message."""
        program, message = self.inbox.get(timeout=PATIENCE)
        if message is None:
            assert program in self._dead, f"the {program.kind} ended by itself: {program.process.wait(PATIENCE)}"
            return program
        program.messages += 1
        program.unanswered += 1
        kind = next(iter(message))
        self.now[kind] += 1
        now = time.monotonic()
        if program.messages == 1:
            self.startup[program.kind] = now - program.started
        self.gap[kind] = min(1.0, now - self._last.get(kind, now))
        self._last[kind] = now
        if kind == "flushed":
            self.written[program.number] = message["number"]
        elif kind == "taken":
            before = self.checksums.setdefault(message["taken"], message["checksum"])
            assert before == message["checksum"], f"step {message['taken']} came out otherwise after a resume"
        elif kind == "durable":
            self.durable = message["durable"]
        elif kind == "restored":
            assert message["restored"] >= self.durable
            before = self.checksums.setdefault(message["restored"], message["checksum"])
            assert message["restored"] == 0 or before == message["checksum"], "not the parameters that were saved"
            self.durable = message["restored"]
        return program

    def hear_from(self, *kinds: str) -> None:
        """Wait until each of these programs has said something since now."""
        while not self.inbox.empty():
            self.hear()
        before = {kind: self.running[kind].messages for kind in kinds}
        while silent := [kind for kind in kinds if self.running[kind].messages == before[kind]]:
            for kind in silent:
                self.running[kind].go_on()
            self.hear()

    def wait_for_moment(self) -> None:
        """A random moment: somewhere between a random message and the one expected next."""
        event = self.dice.choice(EVENTS)
        until = self.now[event] + self.dice.randint(1, 4)
        while self.now[event] < until:
            for program in self.running.values():
                program.go_on()
            self.hear()
        time.sleep(self.dice.uniform(0, self.gap[event]))

    # What must hold at any moment

    def check(self, db: TensorDB) -> None:
        while not self.inbox.empty():
            self.hear()
        self.check_index(db)
        new = [{"writer": writer, "number": {"$gte": n}} for writer, n in self._checked.items()]
        self.check_blobs(db, {"$or": [*new, {"writer": {"$gt": max(self._checked, default=-1)}}]})
        newest = db.params.find({"run": "r"}, sort=[("step", -1)], limit=1).all()
        assert [row.step for row in newest] >= ([self.durable] if self.durable else [])
        for row in newest:
            self.check_save(row)

    def check_index(self, db: TensorDB) -> None:
        acknowledged = dict(self.written)
        # In one reply: the driver repeats a query that met a kill, and cannot continue one.
        docs = list(db.database["data"].find({"dataset": "d"}, batch_size=1_000_000).sort("_tdb.s"))
        assert [doc["_tdb"]["s"] for doc in docs] == list(range(1, len(docs) + 1))
        for writer in {*acknowledged, *(doc["writer"] for doc in docs)}:
            numbers = [doc["number"] for doc in docs if doc["writer"] == writer]
            assert len(numbers) >= acknowledged.get(writer, 0)
            assert numbers == list(range(len(numbers))), "each once, in the order in which they were written"
        flushes = Counter((doc["writer"], doc["flush"], doc["size"]) for doc in docs)
        assert all(count == size for (_, _, size), count in flushes.items()), "part of a flush is visible"

    def check_blobs(self, db: TensorDB, which: dict[str, Any]) -> None:
        for batch in db.data.find({"dataset": "d", **which}).stream(batch_size=500, passes=1):
            assert (batch["image"] == pixels(batch["writer"], batch["number"])).all()
            assert batch["note"] == [note(*pair) for pair in zip(batch["writer"], batch["number"], strict=True)]
            for writer, number in zip(batch["writer"].tolist(), batch["number"].tolist(), strict=True):
                self._checked[writer] = number + 1

    def check_save(self, row: Any) -> None:
        parts = {part: row.load(part, framework="numpy") for part in row.parts}
        assert set(parts) - {"plans"} == {"model", "optimizer", "rng", "stream", "training"}
        assert parts["training"]["step"] == row.step
        if row.step % EVERY:
            return  # SIGTERM saves whatever step it meets, which the trainer does not announce
        while row.step not in self.checksums:  # the trainer said it before it saved
            self.hear()
        assert checksum(parts["model"]) == self.checksums[row.step]


def left_over(folder: Path) -> Iterator[str]:
    """The processes that were started for a folder, by their environment: children inherit it."""
    mark = f"KILLS_FOLDER={folder}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    yield f"{entry.name}: {command[:200]}"
            except OSError:
                continue


@pytest.fixture
def chaos(warehouse_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chaos]:
    monkeypatch.setenv("KILLS_FOLDER", str(warehouse_dir))
    seed = int(os.environ.get("KILLS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"KILLS_SEED={seed}")
    chaos = Chaos(warehouse_dir / "w", random.Random(seed))
    yield chaos
    for program in chaos.running.values():
        if program.process.poll() is None:
            program.end(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_random_moments(chaos: Chaos, warehouse_dir: Path) -> None:
    with TensorDB(chaos.folder) as db:
        chaos.start("writer")
        while chaos.written.get(0, 0) < TRAINED:
            chaos.hear_from("writer")
        chaos.start("trainer")
        chaos.hear_from("trainer")
        victims = [VICTIMS[round_ % len(VICTIMS)] for round_ in range(ROUNDS)]
        chaos.dice.shuffle(victims)
        for round_, victim in enumerate(victims):
            chaos.wait_for_moment()
            print(f"round {round_}, {victim}: {sum(chaos.written.values())} samples, {chaos.durable} steps are safe")
            chaos.kill(victim)
            if victim in PROGRAMS:
                chaos.start(victim)
                if chaos.dice.random() < 0.3:
                    time.sleep(chaos.dice.uniform(0, chaos.startup[victim]))
                    chaos.kill(victim)
                    chaos.start(victim)
            else:
                chaos.hear_from("writer", "trainer")
            chaos.check(db)
            chaos.hear_from("writer", "trainer")
        chaos.hear_from("trainer")  # it trains by now
        assert chaos.end("trainer", signal.SIGTERM) == 128 + signal.SIGTERM
        assert chaos.end("writer", signal.SIGINT) == -signal.SIGINT
        chaos.check(db)
        chaos.check_blobs(db, {})
        rows = db.params.find({"run": "r"}).all()
        assert len({row.step for row in rows}) == len(rows) > ROUNDS
        for row in rows:
            chaos.check_save(row)
    end = time.monotonic() + PATIENCE
    while (left := list(left_over(warehouse_dir))) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))

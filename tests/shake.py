"""Runs the tests again and again on a busy machine, and says what failed in which round.

`make shake`, or `python tests/shake.py [--pauses] [ROUNDS] [ARGUMENTS OF PYTEST]`. Rounds that are over are noted in
build/shake.json, by the state of the tree and by what was run, as each ends: a shake that was stopped goes on with the
round after them. With `--pauses`, processes of the tests are also stopped for up to three seconds, at random. Exit
status 1 if a test failed in any round.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAUSES = Path(__file__).parent / "steady" / "pauses.py"
MARK = "TENSORDB_SHAKE"
"""A variable of the environment: the processes of one round have the same value of it."""
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))\n"


class _Terminated(KeyboardInterrupt):
    """By SIGTERM."""


def _terminate(*_: object) -> None:
    raise _Terminated


def state_of(root: Path) -> str:
    """The commit, and a mark of what differs from it: other contents, another mark."""

    def git(*command: str) -> bytes:
        return subprocess.run(["git", *command], cwd=root, check=True, capture_output=True).stdout

    commit = git("rev-parse", "--short=12", "HEAD").decode().strip()
    mark = hashlib.sha256(git("diff", "HEAD", "--binary"))
    for name in sorted(git("ls-files", "--others", "--exclude-standard", "-z").split(b"\0")):
        path = root / os.fsdecode(name)
        if path.is_file():
            mark.update(name + b"\0" + path.read_bytes())
    clean = hashlib.sha256().digest()
    return commit if mark.digest() == clean else f"{commit}+{mark.hexdigest()[:8]}"


class Record:
    """The rounds that are over: by state of the tree and what was run, of each round how it ended."""

    def __init__(self, path: Path, state: str, what: Sequence[str]) -> None:
        self._path, self._key = path, " ".join([state, *what])
        try:
            self._all: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())
        except FileNotFoundError:
            self._all = {}

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """Those of this state and selection, in order."""
        return self._all.get(self._key, [])

    def add(self, failed: Sequence[str], seconds: float) -> None:
        """Note one more, at once and whole."""
        self._all.setdefault(self._key, []).append({"failed": list(failed), "seconds": round(seconds)})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(self._all, indent=1) + "\n")
        draft.replace(self._path)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that only compute. They end with this block, and with this process however it ends."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            running.append(subprocess.Popen([sys.executable, "-I", "-S", "-c", BUSY]))
        yield
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


@contextlib.contextmanager
def marked(pauses: bool, every: float = 15.0) -> Iterator[dict[str, str]]:
    """The environment of a round. With `pauses`, each process that has it is stopped now and then."""
    if not pauses:
        yield dict(os.environ)
        return
    mark = uuid.uuid4().hex
    pausing = subprocess.Popen([sys.executable, str(PAUSES), f"{MARK}={mark}", str(every)], stdin=subprocess.PIPE)
    try:
        yield {**os.environ, MARK: mark}
    finally:
        assert pausing.stdin is not None
        pausing.stdin.close()
        pausing.wait()


def failures(report: Path) -> list[str]:
    """The tests that failed, from a report of JUnit's form."""
    return [
        f"{case.get('classname')}::{case.get('name')}"
        for case in ElementTree.parse(report).iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]


def one_round(arguments: Sequence[str], pauses: bool = False) -> list[str]:
    """What failed. A run that ends in another way than by passing or failing tests is told as a failure too."""
    with tempfile.TemporaryDirectory() as folder, marked(pauses) as environment:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *arguments]
        with subprocess.Popen(command, cwd=ROOT, env=environment) as run:
            try:
                status = run.wait()
            except KeyboardInterrupt as stopped:
                if isinstance(stopped, _Terminated):
                    run.send_signal(signal.SIGINT)  # of Ctrl-C in a terminal the tests hear as well
                run.wait()
                raise
        failed = failures(report) if report.exists() else []
    return failed if failed or status == 0 else [f"pytest ended with status {status}"]


def shake(record: Record, rounds: int, arguments: Sequence[str], pauses: bool = False) -> int:
    """Run what is missing of so many rounds, and tell of all. The exit status."""
    done = len(record.rounds)
    if done:
        print(f"shake: {min(done, rounds)} of {rounds} rounds were run before", flush=True)
    with busy(os.cpu_count() or 1):
        for number in range(done + 1, rounds + 1):
            print(f"shake: round {number} of {rounds}", flush=True)
            began = time.monotonic()
            record.add(one_round(arguments, pauses), time.monotonic() - began)
    for number, found in enumerate(record.rounds[:rounds], 1):
        print(f"shake: round {number}, {found['seconds']} s: {', '.join(found['failed']) or 'none failed'}")
    return int(any(found["failed"] for found in record.rounds[:rounds]))


def main(arguments: Sequence[str]) -> int:
    """See above."""
    pauses = "--pauses" in arguments
    rounds, *rest = [each for each in arguments if each != "--pauses"] or ["5"]
    record = Record(ROOT / "build" / "shake.json", state_of(ROOT), ["--pauses", *rest] if pauses else rest)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return shake(record, int(rounds), rest, pauses)
    except KeyboardInterrupt:
        print(f"\nshake: stopped after {len(record.rounds)} of {rounds} rounds; the same command goes on from there")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

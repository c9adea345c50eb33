"""Chaos: workers are killed at random and the database is restarted under them; then every job is accounted for.

    make chaos                                                      # 8 workers, 3 minutes, two restarts
    .venv/bin/python tests/chaos.py --seconds 20 --workers 3        # as the tests run it

Each job holds a lock of its own on a file while it works, so that two live owners meet. What must hold at the end:
every job is done with the result of its one completion, or dead or cancelled with a reason; none had two live owners.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tensordb_data import TensorDB
from tensordb_data.embedded import control

LEASE = 5.0
_SETTLE = 120.0  # seconds that may pass after the last fault until all jobs have ended


def work(folder: str, number: int, seconds: float, fault: str, job) -> dict[str, int]:
    """The entry point of the jobs."""
    path = Path(folder) / f"lock-{number}"
    with path.open("a+") as lock:
        _hold(lock, Path(folder) / "violations", number)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.05)
            job.heartbeat(min(1.0, max(0.0, 1 - (end - time.monotonic()) / max(seconds, 0.01))))
        if fault == "raise":
            raise ValueError("as planned")
        if fault == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        return {"number": number, "attempt": job["attempts"]}


def _hold(lock, violations: Path, number: int) -> None:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = (lock.read().split() or ["0"])[-1]
            if _runs(holder):
                with violations.open("a") as file:
                    file.write(f"job {number}: {os.getpid()} beside {holder}\n")
                raise
            time.sleep(0.02)  # one that is paused, or just ending
        else:
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            return


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZX"
    except OSError:
        return False


def start(folder: Path, name: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tensordb_data.cli.main", "worker", "--db", str(folder / "w"), "--name", name]
    options = ["--allow", "tests.chaos", "--lease", str(LEASE), "--grace", "1"]
    return subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)


def run(folder: Path, seconds: float, count: int, restarts: int, seed: int) -> list[str]:
    """Lets it happen; returns what is wrong."""
    dice = random.Random(seed)
    killed = pushed = 0
    jobs = []
    with TensorDB(folder / "w") as db:
        running = [start(folder, f"w{i}") for i in range(count)]
        begin = time.monotonic()
        restart_at = [begin + seconds * (i + 1) / (restarts + 1) for i in range(restarts)]
        while time.monotonic() < begin + seconds:
            while db.jobs.find({"status": {"$in": ["ready", "waiting"]}}).count() < count:
                fault = dice.choices(["", "raise", "die"], [8, 1, 1])[0]
                args = {"folder": str(folder), "number": pushed, "seconds": dice.uniform(0, 2), "fault": fault}
                after = [jobs[-1]] if jobs and dice.random() < 0.1 else []
                jobs.append(db.jobs.push("t", entry="tests.chaos:work", args=args, backoff=0.5, after=after))
                pushed += 1
            time.sleep(dice.uniform(0.2, 1.5))
            if restart_at and time.monotonic() > restart_at[0]:
                restart_at.pop(0)
                os.kill(control.status(folder / "w").mongod, signal.SIGKILL)
                print("the database was killed", flush=True)
            if dice.random() < 0.1:
                dice.choice(jobs).cancel("chaos")
            if dice.random() < 0.5:
                victim = dice.randrange(count)
                running[victim].kill()
                running[victim].wait()
                running[victim] = start(folder, f"w{victim}")
                killed += 1
        end = time.monotonic() + _SETTLE
        while db.jobs.find({"status": {"$in": ["waiting", "ready", "running"]}}).count() and time.monotonic() < end:
            time.sleep(0.2)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        found = db.jobs.find().all()
        states = Counter(job["status"] for job in found)
        print(f"{killed} workers killed, {restarts} restarts, {pushed} jobs: {dict(states)}", flush=True)
        return [*wrong(found, pushed), *_violations(folder)]


def wrong(found, pushed: int) -> list[str]:
    """What the jobs say."""
    faults = [] if len(found) == pushed else [f"{pushed} jobs were pushed, {len(found)} are there"]
    for job in found:
        events = Counter(event["event"] for event in job["events"])
        if job["status"] == "done":
            if events["done"] != 1 or job["result"] != {"number": job["args"]["number"], "attempt": job["attempts"]}:
                faults.append(f"job {job.id}: result {job['result']} of {dict(events)}")
        elif job["status"] not in ("dead", "cancelled") or not job.get("reason"):
            faults.append(f"job {job.id} has not ended: {job.explain()}")
    return faults


def _violations(folder: Path) -> list[str]:
    path = folder / "violations"
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tdbc", ignore_cleanup_errors=True) as folder:
        faults = run(Path(folder), options.seconds, options.workers, options.restarts, options.seed)
        control.down(Path(folder) / "w")
    for fault in faults:
        print(fault)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    root = str(Path(__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    main()

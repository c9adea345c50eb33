"""Chaos: processes are killed at random and the database is restarted under them; then everything is accounted for.

    make chaos                              # 8 workers, 2 evaluators, a deployer; 3 minutes, two restarts
    .venv/bin/python tests/long/chaos.py --seconds 10 --workers 2 --restarts 1       # as the tests run it

Each job holds a lock of its own on a file while it works, so that two live owners meet. What must hold at the end:
every job is done with the result of its one completion, or dead or cancelled with a reason; none had two live owners.
Every parameter set was given its score once, or a reason why it has none; the best is deployed, and whoever read what
is deployed has always found a whole model. What was written twice is looked for in the history of the server.
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
from typing import Any

from bson import Timestamp

from tensordb_data import JobLimits, TensorDB
from tensordb_data.embedded import control

ROOT = str(Path(__file__).parents[2])
sys.path.insert(0, ROOT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))

from tests.long import chaos_sets as sets  # noqa: E402 - started as a script too

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


def starters(folder: Path, workers: int, evaluators: int) -> list[list[str]]:
    """The commands of all who may be killed."""
    address, lease = str(folder / "w"), str(LEASE)
    worker = ["tensordb_data.cli.main", "worker", "--db", address, "--allow", "tests.long.chaos", "--lease", lease]
    return [
        *([*worker, "--grace", "1", "--name", f"w{i}"] for i in range(workers)),
        *(["tests.long.chaos_sets", "evaluator", str(folder), f"e{i}", lease] for i in range(evaluators)),
        ["tests.long.chaos_sets", "deployer", str(folder)],
    ]


def start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.DEVNULL)


def run(folder: Path, seconds: float, workers: int, evaluators: int, restarts: int, seed: int) -> list[str]:
    """Lets it happen; returns what is wrong."""
    dice = random.Random(seed)
    killed: Counter[str] = Counter()
    pushed = saved = 0
    jobs = []
    with TensorDB(folder / "w") as db:
        sets.prepare(db)
        since = db.database.command("ping")["operationTime"]
        commands = starters(folder, workers, evaluators)
        running = [start(command) for command in commands]
        served = sets.Served(folder)
        served.start()
        begin = time.monotonic()
        restart_at = [begin + seconds * (i + 1) / (restarts + 1) for i in range(restarts)]
        while time.monotonic() < begin + seconds:
            while db.jobs.find({"status": {"$in": ["ready", "waiting"]}}).count() < workers:
                fault = dice.choices(["", "raise", "die"], [8, 1, 1])[0]
                args = {"folder": str(folder), "number": pushed, "seconds": dice.uniform(0, 2), "fault": fault}
                after = [jobs[-1]] if jobs and dice.random() < 0.1 else []
                limits = JobLimits(backoff=0.5)
                jobs.append(db.jobs.push("t", entry="tests.long.chaos:work", args=args, limits=limits, after=after))
                pushed += 1
            while sets.open_sets(db) < 2 * evaluators:
                sets.save(db, saved, dice)
                saved += 1
            time.sleep(dice.uniform(0.2, 1.5))
            if restart_at and time.monotonic() > restart_at[0]:
                restart_at.pop(0)
                os.kill(control.status(folder / "w").mongod, signal.SIGKILL)
                print("the database was killed", flush=True)
            if dice.random() < 0.1:
                dice.choice(jobs).cancel("chaos")
            if dice.random() < 0.5:
                victim = dice.randrange(len(running))
                if running[victim].poll() is not None:
                    return [f"{commands[victim]} ended by itself"]
                running[victim].kill()
                running[victim].wait()
                running[victim] = start(commands[victim])
                killed["worker" if victim < workers else commands[victim][1]] += 1
        end = time.monotonic() + _SETTLE
        while time.monotonic() < end and not (_settled(db) and sets.settled(db, served)):
            time.sleep(0.2)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        served.stop()
        found = db.jobs.find().all()
        states = Counter(job["status"] for job in found)
        print(f"killed: {dict(killed)}, the database {restarts} times", flush=True)
        print(f"{pushed} jobs: {dict(states)}", flush=True)
        print(f"{saved} sets, {len(served.scores)} deployed, {served.reads} reads of what is deployed", flush=True)
        history = changes(db, since)
        return [
            *wrong(found, pushed, history["jobs"]),
            *_violations(folder),
            *sets.wrong(db, saved, served, history["params"]),
        ]


def _settled(db: TensorDB) -> bool:
    return not db.jobs.find({"status": {"$in": ["waiting", "ready", "running"]}}).count()


def changes(db: TensorDB, since: Timestamp) -> dict[str, list[dict[str, Any]]]:
    """Each update that the server has applied since, by collection: what was overwritten shows here alone."""
    found: dict[str, list[dict[str, Any]]] = {"jobs": [], "params": []}
    match = {"operationType": {"$in": ["insert", "update"]}, "ns.coll": {"$in": [*found, "end"]}}
    with db.database.watch([{"$match": match}], start_at_operation_time=since) as stream:
        db.database["end"].insert_one({})
        for change in stream:
            if change["ns"]["coll"] == "end":
                break
            if change["operationType"] == "update":
                found[change["ns"]["coll"]].append(change)
    return found


def wrong(found, pushed: int, history: list[dict[str, Any]]) -> list[str]:
    """What the jobs and their history say."""
    faults = [] if len(found) == pushed else [f"{pushed} jobs were pushed, {len(found)} are there"]
    ended: dict[Any, str] = {}
    for change in history:
        id, fields = change["documentKey"]["_id"], change["updateDescription"]["updatedFields"]
        if id in ended and not {"status", "result", "reason", "events"}.isdisjoint(fields):
            faults.append(f"job {id} was {ended[id]}, and then changed: {fields}")
        if fields.get("status") in ("done", "dead", "cancelled"):
            ended[id] = fields["status"]
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
    parser.add_argument("--evaluators", type=int, default=2)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tdbc", ignore_cleanup_errors=True) as folder:
        given = (options.seconds, options.workers, options.evaluators, options.restarts, options.seed)
        faults = run(Path(folder), *given)
        control.down(Path(folder) / "w")
    for fault in faults:
        print(fault)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()

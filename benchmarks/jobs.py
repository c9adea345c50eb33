"""B11: how many jobs a second do 8 workers claim, and does every job end once when workers are killed at random?

First 8 processes claim 5,000 jobs as fast as they can, in interleaved rounds with the yardstick: the same number of
bare `find_one_and_update`s of one field on documents in an index of the same order. Then 8 workers claim and complete
5,000 jobs while one after the other is killed with SIGKILL at a random moment and replaced. Each worker notes in a file
of its own when it was granted a job, and whether its completion was accepted. From these notes and the jobs themselves
it is counted: jobs that ended neither done nor dead with a reason, completions accepted twice, results other than that
of the accepted completion, and jobs that two live workers held at one moment.

    python benchmarks/jobs.py
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from shared import harness

from tensordb_data import JobLimits

WORKERS, JOBS, TARGET = 8, 5000, 1000
OURS, FULL, BARE = "TensorDB, claims", "TensorDB, claim and done, workers killed", "bare find_one_and_update"
LEASE = 1.0
_STUCK = 100.0


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", [], argv)
    harness.quiet()
    jobs = 200 if options.quick else JOBS
    rounds = min(options.rounds, 3)
    rates: dict[str, list[float]] = {OURS: [], BARE: [], FULL: []}
    with (
        tempfile.TemporaryDirectory(prefix="tdbb", ignore_cleanup_errors=True) as folder,
        harness.warehouse(Path(folder)) as db,
    ):
        for _ in range(rounds):
            rates[BARE].append(bare(db, jobs))
            rates[OURS].append(claims(db, jobs))
        seconds, faults = killed(db, jobs, Path(folder), every=1.0 if options.quick else 0.5)
        rates[FULL].append(jobs / seconds)
    found = {"claims/s": statistics.median(rates[OURS]), **faults}
    verdicts = [
        {"what": what, "found": value, "target": TARGET if what == "claims/s" else 0,
         "met": value >= TARGET if what == "claims/s" else value == 0}
        for what, value in found.items() if what != "workers killed"
    ]  # fmt: skip
    result: dict[str, Any] = {
        "question": "B11: jobs claimed a second by 8 workers",
        "quick": options.quick,
        "context": {"workers": WORKERS, "jobs": jobs, "lease_s": LEASE, "workers_killed": faults["workers killed"]},
        "rounds": rounds,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": harness.machine(),
        "load_before": options.load,
        "packages": harness.versions(["tensordb-data", "pymongo"]),
        "rates": {name: {"samples_per_s": each, "note": "jobs"} for name, each in rates.items()},
        "verdicts": verdicts,
    }
    show(rates, verdicts, faults, options.load)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "jobs.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    return result


def queued(db: Any, jobs: int) -> list[Any]:
    """As many fresh jobs, copies of one that was pushed; pushing is not what is measured."""
    mongo = db.database["jobs"]
    mongo.delete_many({})
    limits = JobLimits(max_attempts=100, backoff=0)
    made = db.jobs.push("work", entry="mypkg.jobs:work", args={"lr": 0.1}, limits=limits)._doc
    from bson import ObjectId

    mongo.insert_many([{**made, "_id": ObjectId()} for _ in range(jobs - 1)])
    return list(mongo.distinct("_id"))


def claims(db: Any, jobs: int) -> float:
    """The rate of claims and nothing else."""
    queued(db, jobs)
    taken, seconds = together(claimer, db)
    assert taken == jobs, f"{taken} claims of {jobs} jobs"
    return jobs / seconds


def claimer(db: Any, number: int) -> int:
    count = 0
    while db.jobs.claim(worker=f"w{number}", kinds=["work"], lease=600) is not None:
        count += 1
    return count


def bare(db: Any, jobs: int) -> float:
    """The yardstick: the same processes take documents from an index, without all that makes a job."""
    mongo = db.database["bare"]
    mongo.drop()
    mongo.create_index([("status", 1), ("kind", 1), ("priority", -1), ("_id", 1)])
    mongo.insert_many([{"status": "ready", "kind": "work", "priority": 0, "args": {"lr": 0.1}} for _ in range(jobs)])
    taken, seconds = together(bare_claimer, db)
    assert taken == jobs
    return jobs / seconds


def bare_claimer(db: Any, number: int) -> int:
    mongo, count = db.database["bare"], 0
    while mongo.find_one_and_update(
        {"status": "ready", "kind": "work"}, {"$set": {"status": "running", "owner": number}},
        sort=[("priority", -1), ("_id", 1)],
    ):  # fmt: skip
        count += 1
    return count


def together(work: Callable[[Any, int], int], db: Any) -> tuple[int, float]:
    """What 8 processes have counted, and the seconds from the first that began to the last that ended."""
    context = multiprocessing.get_context("spawn")
    barrier, reports = context.Barrier(WORKERS), context.Queue()
    processes = [context.Process(target=_timed, args=(work, db, n, barrier, reports)) for n in range(WORKERS)]
    for process in processes:
        process.start()
    found = [reports.get(timeout=_STUCK) for _ in processes]
    for process in processes:
        process.join(_STUCK)
    return sum(count for count, _, _ in found), max(end for *_, end in found) - min(begin for _, begin, _ in found)


def _timed(work: Callable[[Any, int], int], db: Any, number: int, barrier: Any, reports: Any) -> None:
    db.jobs.find().count()
    barrier.wait()
    begin = time.monotonic()
    count = work(db, number)
    reports.put((count, begin, time.monotonic()))
    db.close()


def killed(db: Any, jobs: int, folder: Path, every: float) -> tuple[float, dict[str, int]]:
    """Claim, work, done, by 8 workers of which one is killed every so often: the seconds it took, and the faults."""
    ids = queued(db, jobs)
    context = multiprocessing.get_context("spawn")
    dice, kills, number = random.Random(11), 0, 0
    running: list[Any] = []
    begin = time.monotonic()
    next_kill = begin + 2 * every
    while True:
        while len(running) < WORKERS:
            process = context.Process(target=laborer, args=(db, number, folder / f"worker-{number}"), daemon=True)
            process.start()
            running.append(process)
            number += 1
        time.sleep(0.02)
        running = [process for process in running if process.is_alive()]
        left = db.jobs.find({"status": {"$in": ["ready", "running"]}}).count()
        if left == 0 or time.monotonic() > begin + _STUCK:
            break
        if time.monotonic() > next_kill and running:
            os.kill(dice.choice(running).pid, signal.SIGKILL)
            kills += 1
            next_kill = time.monotonic() + every * dice.uniform(0.5, 1.5)
    seconds = time.monotonic() - begin
    for process in running:
        process.terminate()
        process.join()
    return seconds, {**faults(db, ids, folder), "workers killed": kills}


def laborer(db: Any, number: int, path: Path) -> None:
    """A worker: notes when it holds a job, and when its completion was accepted."""
    from tensordb_data import ClaimLostError

    dice = random.Random(number)
    with path.open("a", buffering=1) as notes:
        while True:
            asked = time.monotonic()
            job = db.jobs.claim(worker=f"w{number}", kinds=["work"], lease=LEASE)
            if job is None:
                time.sleep(0.02)
                continue
            notes.write(f"{job.id} begin {time.monotonic()}\n")
            if dice.random() < 0.05:
                job.heartbeat(0.5)
            if dice.random() < 0.001:
                time.sleep(1.5 * LEASE)  # taken for dead, and lives after all
            notes.write(f"{job.id} end {min(time.monotonic(), asked + LEASE)}\n")
            try:
                job.done({"by": number, "attempt": job["attempts"]})
                notes.write(f"{job.id} accepted {job['attempts']}\n")
            except ClaimLostError:
                notes.write(f"{job.id} dropped {job['attempts']}\n")


def faults(db: Any, ids: Sequence[Any], folder: Path) -> dict[str, int]:
    """What the notes of the workers and the jobs say."""
    accepted: dict[str, list[tuple[int, int]]] = defaultdict(list)
    held: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for path in folder.glob("worker-*"):
        number, since = int(path.name.partition("-")[2]), 0.0
        for line in path.read_text().splitlines():
            id, what, *value = line.split(" ")
            if what == "begin":
                since = float(value[0])
            elif what == "end" and value:
                held[id].append((since, float(value[0])))
            elif what == "accepted" and value:
                accepted[id].append((number, int(value[0])))
    jobs = {str(job.id): job for job in db.jobs.find()}
    lost = sum(
        id not in jobs or not (jobs[id]["status"] == "done" or (jobs[id]["status"] == "dead" and jobs[id]["reason"]))
        for id in map(str, ids)
    )
    wrong = sum(
        (by, attempt) != (jobs[id]["result"]["by"], jobs[id]["result"]["attempt"])
        for id, found in accepted.items() for by, attempt in found
    )  # fmt: skip
    shared = 0
    for spans in held.values():
        spans.sort()
        shared += sum(later[0] < earlier[1] for earlier, later in itertools.pairwise(spans))
    return {
        "jobs without an end": lost,
        "completions accepted twice": sum(len(found) > 1 for found in accepted.values()),
        "results of a stale owner": wrong,
        "jobs with two live owners": shared,
    }


def show(
    rates: Mapping[str, Sequence[float]], verdicts: Sequence[Mapping[str, Any]], faults: Mapping[str, int], load: float
) -> None:
    """The table and the verdicts."""
    console = Console(width=120)
    table = Table(title="B11: 8 workers", title_justify="left")
    for column in ("what", "jobs/s", "spread"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, each in rates.items():
        table.add_row(name, f"{statistics.median(each):,.0f}", f"{min(each):,.0f} – {max(each):,.0f}")
    console.print(table)
    if load > 0.5:
        console.print(f"The machine was busy when this began (load {load}): no figures to publish.")
    console.print(f"{faults['workers killed']} workers were killed")
    for verdict in verdicts:
        console.print(
            f"{verdict['what']}: {verdict['found']:,.6g} (target {verdict['target']:,}:"
            f" {'reached' if verdict['met'] else 'MISSED'})"
        )


if __name__ == "__main__":
    main()

"""B7: how many samples a second go from live writers into a training loop, and how long after their commit?

Four processes add samples of 784 bytes and a label, one at a time, to one dataset with `writer(live=True)`; one process
follows it in batches of 256. First each writer is held to a quarter of a little more than the target rate, as agents
are by their environment; then all write as fast as they can. Every sample is counted: none may be lost or come twice.

Latency runs from the moment the writer's commit was acknowledged (and, beside it, from `add`) to the moment the loop
has the batch. The yardstick is what the server takes from four processes that insert the same documents in bare
transactions of 400, with nobody reading.

    python benchmarks/live.py --seconds 10
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from shared import harness

WRITERS = 4
HELD, FREE, BARE = "TensorDB, paced", "TensorDB, flat out", "bare transactions"
RATE, LATENCY = 12_000, 0.25
PACED = 13_000
BATCH = 256
TRANSACTION = 400
_STUCK = 60.0


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", [], argv)
    harness.quiet()
    load = round(os.getloadavg()[0], 1)
    rounds, seconds = (1, 0.5) if options.quick else (min(options.rounds, 3), max(options.seconds, 5.0))
    runs: dict[str, list[dict[str, float]]] = {HELD: [], FREE: [], BARE: []}
    with (
        tempfile.TemporaryDirectory(prefix="tdbb", ignore_cleanup_errors=True) as folder,
        harness.warehouse(Path(folder)) as db,
    ):
        each = int(seconds * PACED / WRITERS)
        if not options.quick:
            follow(db, "warm-up", None, each // 3)
        for round_ in range(rounds):
            runs[HELD].append(follow(db, f"paced-{round_}", PACED / WRITERS, each))
            runs[FREE].append(follow(db, f"flat-{round_}", None, each))
            runs[BARE].append(bare(db, f"bare-{round_}", each))
    result: dict[str, Any] = {
        "question": "B7: samples a second from 4 live writers into one training loop",
        "quick": options.quick,
        "context": {
            "sample": "784 bytes and a label",
            "writers": WRITERS,
            "batch": BATCH,
            "paced_to": PACED,
            "load_before": load,
        },
        "rounds": rounds,
        "seconds": seconds,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": harness.machine(),
        "packages": harness.versions(["tensordb-data", "pymongo", "numpy"]),
        "rates": {
            name: {"samples_per_s": [run["samples_per_s"] for run in found], "note": NOTES[name]}
            for name, found in runs.items()
        },
        "latency": {name: found for name, found in runs.items() if "p95_s" in found[0]},
        "verdicts": verdicts(runs),
    }
    show(runs, result["verdicts"])
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "live.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    return result


NOTES = {
    HELD: f"each writer held to {PACED / WRITERS:,.0f}/s",
    FREE: "each writer as fast as it can",
    BARE: f"pymongo, {TRANSACTION} a transaction, nobody reading",
}


def follow(db: Any, dataset: str, pace: float | None, each: int) -> dict[str, float]:
    """One run: the rate, the latencies, and what was lost or came twice."""
    with db.data.writer(dataset, live=True) as writer:
        writer.add(image=np.zeros((28, 28), np.uint8), label=0, agent=-1, number=0)
    fields = ["image", "label", "agent", "number"]
    stream = db.data.find({"dataset": dataset}).stream(batch_size=BATCH, follow=True, fields=fields)
    batches = iter(stream)
    next(batches)
    arrived: list[tuple[float, Any, Any]] = []
    watchdog = threading.Timer(_STUCK + 2 * each * WRITERS / RATE, stream.close)  # a lost sample must not hang it
    watchdog.start()
    with writers(agent, db, dataset, pace, each) as (barrier, reports):
        barrier.wait()
        missing = WRITERS * each
        for batch in batches:
            arrived.append((time.monotonic(), batch["agent"], batch["number"]))
            assert (batch["image"][:, 0, 0] == batch["number"] % 251).all()
            missing -= len(batch["agent"])
            if missing <= 0:
                break
        watchdog.cancel()
        stream.close()
        times = dict(reports.get() for _ in range(WRITERS))
    return summary(arrived, times, each)


def summary(
    arrived: Sequence[tuple[float, Any, Any]], times: Mapping[int, tuple[Any, Any]], each: int
) -> dict[str, float]:
    """`times` has of each writer when each of its samples was added, and when its commit was acknowledged."""
    seen = np.zeros((WRITERS, each), np.int64)
    batch_at = np.zeros((WRITERS, each))
    for at, agents, numbers in arrived:
        np.add.at(seen, (agents, numbers), 1)
        batch_at[agents, numbers] = at
    added = np.stack([times[number][0] for number in range(WRITERS)])
    committed = np.stack([times[number][1] for number in range(WRITERS)])
    here = seen > 0
    # A batch may be there before the writer hears that its commit took place.
    latency = np.maximum(batch_at - committed, 0)[here]
    return {
        "samples_per_s": float(here.sum() / (batch_at.max() - added.min())),
        "p50_s": float(np.quantile(latency, 0.5)),
        "p95_s": float(np.quantile(latency, 0.95)),
        "max_s": float(latency.max()),
        "p95_from_add_s": float(np.quantile((batch_at - added)[here], 0.95)),
        "lost": int((seen == 0).sum()),
        "twice": int((seen > 1).sum()),
    }


@contextlib.contextmanager
def writers(
    work: Callable[..., None], *arguments: Any, count: int = WRITERS, method: str = "spawn"
) -> Iterator[tuple[Any, Any]]:
    """`count` processes that call `work(*arguments, number, barrier, reports)`, each with a number of its own."""
    context: Any = multiprocessing.get_context(method)
    barrier, reports = context.Barrier(count + 1), context.Queue()
    processes = [
        context.Process(target=work, args=(*arguments, number, barrier, reports), daemon=True)
        for number in range(count)
    ]
    for process in processes:
        process.start()
    try:
        yield barrier, reports
    finally:
        for process in processes:
            process.join(_STUCK)


def agent(db: Any, dataset: str, pace: float | None, each: int, number: int, barrier: Any, reports: Any) -> None:
    """One writer: adds samples one at a time, and notes the time of each and of its commit."""
    from tensordb_data.samples import write_buffer as module

    commit, commits = module.commit, []

    def timed(db: Any, dataset: str, schema: Any, batch: Any, **options: Any) -> Any:
        done = commit(db.warehouse, dataset, schema, batch, **options)
        commits.append((len(batch), time.monotonic()))
        return done

    module.commit = timed  # type: ignore[assignment]
    image, added = np.zeros((28, 28), np.uint8), np.zeros(each)
    with db.data.writer(dataset, live=True) as writer:
        barrier.wait()
        begin = time.monotonic()
        for i in range(each):
            if pace is not None and (early := begin + i / pace - time.monotonic()) > 0.002:
                time.sleep(early)
            image[:] = i % 251
            added[i] = time.monotonic()
            writer.add(image=image, label=i % 10, agent=number, number=i)
    sizes, at = zip(*commits, strict=True)
    reports.put((number, (added, np.repeat(at, sizes))))
    db.close()


def bare(db: Any, dataset: str, each: int) -> dict[str, float]:
    """The yardstick: the rate of four processes that insert the same documents without this library."""
    db.database["datasets"].insert_one({"_id": {"p": db.project, "d": dataset}, "seq": 0, "mut": 0, "schema": None})
    with writers(bare_agent, db, dataset, each) as (barrier, reports):
        barrier.wait()
        spans = [reports.get() for _ in range(WRITERS)]
    return {"samples_per_s": WRITERS * each / (max(end for _, end in spans) - min(begin for begin, _ in spans))}


def bare_agent(db: Any, dataset: str, each: int, number: int, barrier: Any, reports: Any) -> None:
    """One writer of bare transactions, each with a counter of the sequence as ours has."""
    mongo, image, sent = db.database, bytes(784), 0
    barrier.wait()
    begin = time.monotonic()
    while sent < each:
        n = min(TRANSACTION, each - sent)

        def body(session: Any, n: int = n, sent: int = sent) -> None:
            named = {"_id": {"p": db.project, "d": dataset}}
            last = mongo["datasets"].find_one_and_update(
                named, {"$inc": {"seq": n}}, return_document=True, session=session
            )["seq"]
            docs = [
                {
                    "dataset": dataset, "tags": [], "label": i % 10, "agent": number, "number": i,
                    "_tdb": {"p": db.project, "s": last - n + 1 + i - sent, "b": {"image": {"d": image, "n": 784}}},
                }
                for i in range(sent, sent + n)
            ]  # fmt: skip
            mongo["data"].insert_many(docs, session=session)

        db.warehouse.index.transaction(body)
        sent += n
    reports.put((begin, time.monotonic()))
    db.close()


def verdicts(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Rate and latency against the targets, as medians of the rounds; losses and repetitions as their sum."""

    def median(name: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[name])

    found: list[dict[str, Any]] = [
        {"what": f"{name}: samples/s", "found": median(name, "samples_per_s"), "target": RATE, "at_least": True}
        for name in (HELD, FREE)
    ]
    found.append({"what": f"{HELD}: p95, s", "found": median(HELD, "p95_s"), "target": LATENCY, "at_least": False})
    for key in ("lost", "twice"):
        total = sum(run[key] for name in (HELD, FREE) for run in runs[name])
        found.append({"what": key, "found": total, "target": 0, "at_least": False})
    for verdict in found:
        low, high = sorted((verdict["found"], verdict["target"]))
        verdict["met"] = low == high or (verdict["found"] == high) == verdict["at_least"]
    return found


def show(runs: Mapping[str, Sequence[Mapping[str, float]]], found: Sequence[Mapping[str, Any]]) -> None:
    """The table and the verdicts."""
    console = Console(width=120)
    table = Table(title="B7: four live writers, one follower", title_justify="left")
    for column in ("run", "samples/s", "spread", "p50, ms", "p95, ms", "p95 from add, ms", "remark"):
        table.add_column(column, justify="left" if column in ("run", "remark") else "right")
    for name, each in runs.items():
        rates = [run["samples_per_s"] for run in each]
        row = [name, f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f} – {max(rates):,.0f}"]
        for key in ("p50_s", "p95_s", "p95_from_add_s"):
            row.append(f"{1e3 * statistics.median(run[key] for run in each):,.0f}" if key in each[0] else "–")
        table.add_row(*row, NOTES[name])
    console.print(table)
    for verdict in found:
        console.print(
            f"{verdict['what']}: {verdict['found']:,.6g} (target {verdict['target']:,g}:"
            f" {'reached' if verdict['met'] else 'MISSED'})"
        )


if __name__ == "__main__":
    main()

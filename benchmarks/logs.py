"""B10: what does a log row cost the training thread, and how many a second reach the database?

One thread logs two numbers a row. *Paced*: 50,000 rows a second, each call timed: what the loop pays for a row. *Flat
out*: as fast as it can, and the clock stops when `close()` has returned and every row is in the database: what is
sustained. All rows are counted afterwards; none may be missing.

Peers do the same with their own call, each for a row of the same two numbers: MLflow into its file store, waiting and
with `synchronous=False`; TensorBoard through `torch.utils.tensorboard.SummaryWriter`. They are not paced, for none of
them reaches the pace: their calls are timed as fast as they go.

    python benchmarks/logs.py --seconds 4
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from shared import harness

PACE, P99, RATE = 50_000, 20e-6, 50_000
PACED, FREE = "TensorDB, paced", "TensorDB, flat out"
PEERS = ("mlflow", "tensorboard")
_AT_ONCE = 400_000  # rows of a round, flat out, for a second: more than the buffer holds

Write = Callable[[int], None]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", PEERS, argv)
    harness.quiet()
    rounds, seconds = (1, 0.1) if options.quick else (min(options.rounds, 3), options.seconds)
    runs: dict[str, list[dict[str, float]]] = {}
    missing: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(prefix="tdbb", ignore_cleanup_errors=True) as folder,
        harness.warehouse(Path(folder)) as db,
    ):
        ours(db, "warm-up", 20_000, None)
        for round_ in range(rounds):
            runs.setdefault(PACED, []).append(ours(db, f"paced-{round_}", int(PACE * seconds), PACE))
            runs.setdefault(FREE, []).append(ours(db, f"flat-{round_}", int(_AT_ONCE * seconds), None))
            for peer in options.peers:
                for name, measure in BUILD[peer]():
                    if name in missing:
                        continue
                    try:
                        runs.setdefault(name, []).append(measure(Path(folder) / f"{peer}-{round_}", seconds))
                    except Exception as error:
                        runs.pop(name, None)
                        missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    result: dict[str, Any] = {
        "question": "B10: log rows of two numbers, from one thread",
        "quick": options.quick,
        "context": {"pace": PACE, "numbers_a_row": 2},
        "rounds": rounds,
        "seconds": seconds,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": harness.machine(),
        "load_before": options.load,
        "packages": harness.versions(["tensordb-data", "pymongo", "mlflow-skinny", "tensorboard", "torch"]),
        "rates": {
            **{name: {"samples_per_s": [run["rows_per_s"] for run in of], "note": ""} for name, of in runs.items()},
            **{name: {"missing": reason} for name, reason in missing.items()},
        },
        "latency": runs,
        "verdicts": verdicts(runs),
    }
    show(result)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "logs.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    return result


def ours(db: Any, run: str, rows: int, pace: int | None) -> dict[str, float]:
    """One run: so many rows, counted afterwards."""
    log = db.logs.run(run)
    begin = time.perf_counter()
    times = timed(lambda step: log.write(step, loss=0.5, acc=0.25), rows, pace)
    log.close()
    end = time.perf_counter()
    return {**summary(times, rows / (end - begin)), "lost": rows - db.logs.find({"run": run}).count()}


def timed(write: Write, rows: int, pace: float | None) -> Any:
    """What each call took, in seconds; held to `pace` rows a second by waiting where the loop would compute."""
    times, now = np.empty(rows), time.perf_counter
    begin = now()
    for step in range(rows):
        if pace is not None:
            due = begin + step / pace
            if due - now() > 0.0005:
                time.sleep(0.0002)  # as a training step would, this lets other threads run
            while now() < due:
                pass
        before = now()
        write(step)
        times[step] = now() - before
    return times


def within(write: Write, seconds: float) -> Any:
    """What each call took, as many as fit."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (before := time.perf_counter()) < end:
        write(len(times))
        times.append(time.perf_counter() - before)
    return np.array(times)


def summary(times: Any, rate: float) -> dict[str, float]:
    """Rate and latencies of a run."""
    p50, p99, p999 = map(float, np.quantile(times, (0.5, 0.99, 0.999)))
    return {"rows_per_s": rate, "p50_s": p50, "p99_s": p99, "p999_s": p999, "max_s": float(times.max())}


def mlflow() -> list[tuple[str, Callable[[Path, float], dict[str, float]]]]:
    def measure(folder: Path, seconds: float, synchronous: bool) -> dict[str, float]:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        import mlflow  # type: ignore[import-not-found, unused-ignore]

        mlflow.set_tracking_uri(f"{folder.as_uri()}-{synchronous}")
        begin = time.perf_counter()
        with mlflow.start_run():
            times = within(
                lambda step: mlflow.log_metrics({"loss": 0.5, "acc": 0.25}, step=step, synchronous=synchronous), seconds
            )
            mlflow.flush_async_logging()
        return summary(times, len(times) / (time.perf_counter() - begin))

    return [
        ("MLflow, waiting", lambda folder, seconds: measure(folder, seconds, True)),
        ("MLflow, synchronous=False", lambda folder, seconds: measure(folder, seconds, False)),
    ]


def tensorboard() -> list[tuple[str, Callable[[Path, float], dict[str, float]]]]:
    def measure(folder: Path, seconds: float) -> dict[str, float]:
        from torch.utils.tensorboard import SummaryWriter

        begin = time.perf_counter()
        with SummaryWriter(str(folder)) as writer:

            def write(step: int) -> None:
                writer.add_scalar("loss", 0.5, step)
                writer.add_scalar("acc", 0.25, step)

            times = within(write, seconds)
        return summary(times, len(times) / (time.perf_counter() - begin))

    return [("TensorBoard, SummaryWriter", measure)]


BUILD = {"mlflow": mlflow, "tensorboard": tensorboard}


def verdicts(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Medians of the rounds against the targets; losses as their sum."""
    p99 = statistics.median(run["p99_s"] for run in runs[PACED])
    rate = statistics.median(run["rows_per_s"] for run in runs[FREE])
    lost = sum(run["lost"] for name in (PACED, FREE) for run in runs[name])
    return [
        {"what": f"{PACED}: p99, s", "found": p99, "target": P99, "met": p99 < P99},
        {"what": f"{FREE}: rows/s", "found": rate, "target": RATE, "met": rate >= RATE},
        {"what": "lost", "found": lost, "target": 0, "met": lost == 0},
    ]


def show(result: Mapping[str, Any]) -> None:
    """The table and the verdicts."""
    console = Console(width=120)
    table = Table(title=result["question"], title_justify="left")
    for column in ("run", "rows/s", "p50, µs", "p99, µs", "p99.9, µs", "longest, ms"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for name, runs in result["latency"].items():
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        spent = [f"{1e6 * median[key]:,.1f}" for key in ("p50_s", "p99_s", "p999_s")]
        table.add_row(name, f"{median['rows_per_s']:,.0f}", *spent, f"{1e3 * median['max_s']:,.1f}")
    for name, entry in result["rates"].items():
        if "missing" in entry:
            table.add_row(name, "–", "–", "–", "–", entry["missing"][:60])
    console.print(table)
    for verdict in result["verdicts"]:
        console.print(
            f"{verdict['what']}: {verdict['found']:,.6g} (target {verdict['target']:,g}:"
            f" {'reached' if verdict['met'] else 'MISSED'})"
        )


if __name__ == "__main__":
    main()

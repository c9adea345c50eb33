"""B19: what does a call of `db.data.feedback` with 256 samples cost the loop, and how long does a pass take to begin?

A loop calls it 200 times a second, with a list of ids and a NumPy array, or a tensor of PyTorch. Each call is timed.
Afterwards the numbers are counted; none may be missing. Then the weights of a pass over all samples are read, from what
the calls have stored.

    python benchmarks/feedback/calls.py --samples 100000 --calls 2000
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bson import ObjectId

sys.path.insert(0, str(Path(__file__).parents[1]))

from shared import harness

BATCH, PACE, P99 = 256, 200, 50e-6


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args(argv)
    harness.quiet()
    result: dict[str, Any] = {
        "machine": harness.machine(),
        "load": os.getloadavg(),
        "packages": harness.versions(["tensordb-data", "pymongo", "torch"]),
        "samples": options.samples,
    }
    with (
        tempfile.TemporaryDirectory(prefix="tdbb", ignore_cleanup_errors=True) as folder,
        harness.warehouse(Path(folder)) as db,
    ):
        with db.data.writer("d") as w:
            w.add_many(x=np.arange(options.samples))
        ids = db.data.find({"dataset": "d"}).distinct("_id")
        db.logs.run("r", config={}).close()
        result["numpy"] = calls(db, ids, np.random.default_rng(0).random((64, BATCH)), options.calls)
        try:
            import torch
        except ImportError:
            pass
        else:
            result["torch"] = calls(db, ids, torch.rand((64, BATCH)), options.calls)
        told = sum(result[name]["numbers"] for name in ("numpy", "torch") if name in result)
        begin = time.perf_counter()
        table = db.data.find({"dataset": "d"}).feedback_of("r", "loss")
        result["table_s"] = time.perf_counter() - begin
        assert int(table.count.sum()) == told, "numbers are missing"
        result["pass_s"] = begins(db)
        result["bytes_a_sample"] = db.database.command("collStats", "feedback")["size"] / options.samples
    print(json.dumps(result, indent=1))
    return result


def calls(db: Any, ids: list[Any], numbers: Any, count: int) -> dict[str, float]:
    """What each call took, at a steady pace."""
    rng = np.random.default_rng(1)
    raw = [id.binary for id in ids]
    times, own = np.empty(count), np.empty(count)
    begin = time.perf_counter()
    for call in range(count):
        due = begin + call / PACE
        while due - time.perf_counter() > 0.0005:
            time.sleep(0.0002)  # as a training step would, this lets other threads run
        batch = [ObjectId(raw[row]) for row in rng.integers(0, len(ids), BATCH).tolist()]  # as new as those of a batch
        loss = numbers[call % 64]
        while time.perf_counter() < due:
            pass
        ran, before = time.thread_time(), time.perf_counter()
        db.data.feedback("r", batch, loss=loss)
        after, stopped = time.perf_counter(), time.thread_time()
        times[call], own[call] = after - before, stopped - ran
    p50, p99, p999 = map(float, np.quantile(times, (0.5, 0.99, 0.999)))
    found = {"p50_us": 1e6 * p50, "p99_us": 1e6 * p99, "p999_us": 1e6 * p999, "met": p99 < P99}
    # Of the thread alone: without the time in which a busy machine ran something else.
    return {**found, "own_p99_us": 1e6 * float(np.quantile(own, 0.99)), "numbers": count * BATCH}


def begins(db: Any) -> dict[str, float]:
    """Seconds to the first batch, by feedback and by no weights, with a plan that is known."""
    from tensordb_data import Feedback

    found = {}
    for name, weights in (("uniform", None), ("feedback", Feedback("r", "loss"))):
        for _ in range(2):
            stream = db.data.find({"dataset": "d"}).stream(
                batch_size=BATCH, shuffle=True, replacement=True, weights=weights
            )
            begin = time.perf_counter()
            next(iter(stream))
            found[name] = time.perf_counter() - begin
            stream.close()
    return found


if __name__ == "__main__":
    main()

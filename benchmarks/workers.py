"""Worker processes beside threads, for a transform of about 2 ms of pure Python a sample.

    python benchmarks/workers.py --workers 2

Prints samples a second of both and their ratio, of interleaved rounds. Both have the same samples, batches and
function; processes are started, and their first batches delivered, before the time runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import islice
from typing import Any

import numpy as np

from tensordb_data import TensorDB


def augment(sample: dict[str, Any]) -> dict[str, Any]:
    """About 2 ms of Python."""
    total = 0
    for value in range(30_000):
        total += value ^ 5
    return {"image": sample["image"], "total": total}


def rate(db: TensorDB, workers: int, batches: int) -> float:
    """Samples a second, after a warm-up."""
    stream = db.data.find({"dataset": "images"}).stream(64, shuffle=True, transform=augment, workers=workers)
    reading = iter(stream)
    for _ in islice(reading, 2 * max(2, workers)):
        pass
    start = time.perf_counter()
    for _ in islice(reading, batches):
        pass
    elapsed = time.perf_counter() - start
    stream.close()
    return 64 * batches / elapsed


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=40)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="tdb", ignore_cleanup_errors=True) as folder, TensorDB(folder) as db:
        with db.data.writer("images") as writer:
            writer.add_many(image=rng.integers(0, 255, (2048, 96, 96, 3), np.uint8))
        threads, processes = [], []
        for _ in range(options.rounds):
            threads.append(rate(db, 0, options.batches))
            processes.append(rate(db, options.workers, options.batches))
    ratios = [one / other for one, other in zip(processes, threads, strict=True)]
    print(
        json.dumps(
            {
                "threads": statistics.median(threads),
                "workers": statistics.median(processes),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
            }
        )
    )


if __name__ == "__main__":
    main()

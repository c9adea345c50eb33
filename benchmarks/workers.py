"""B14: worker processes beside threads: which are faster for a transform of pure Python, of about 2 ms a sample?

2,048 images, shuffled, in batches of 64: the same stream with as many worker processes as the machine has cores, and
without any, where as many threads share one interpreter. Processes start, and send their first batch, off the clock.

    python benchmarks/workers.py
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from shared import harness
from shared.harness import Batches, Contender, Target

BATCH, SIDE = 64, 96
PACKAGES = ["tensordb-data", "numpy", "pymongo"]
THREADS, PROCESSES = "threads", "worker processes"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", [], argv)
    harness.quiet()
    count, cores = 256 if options.quick else 2_048, int(str(harness.machine()["cores"]))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="tdbb") as folder, harness.warehouse(Path(folder)) as db:
        with db.data.writer("images") as writer:
            writer.add_many(image=rng.integers(0, 255, (count, SIDE, SIDE, 3), np.uint8))
        contenders = [
            Contender(THREADS, stream(db, 0), f"{cores} of them"),
            Contender(PROCESSES, stream(db, cores), f"{cores} of them"),
        ]
        harness.race(contenders, rounds=options.rounds, seconds=options.seconds)
    context = {"samples": count, "batch": BATCH, "bytes_a_sample": SIDE * SIDE * 3}
    title = f"A transform of pure Python: {count:,} images, shuffled, batches of {BATCH}"
    return harness.report(title, contenders, [Target(PROCESSES, THREADS, 1.5)], options, context, PACKAGES, "workers")


def augment(sample: dict[str, Any]) -> dict[str, Any]:
    """About 2 ms of Python."""
    total = 0
    for value in range(30_000):
        total += value ^ 5
    return {"image": sample["image"], "total": total}


def stream(db: Any, workers: int) -> Callable[[], Any]:
    @contextlib.contextmanager
    def opened() -> Iterator[Batches]:
        stream = db.data.find({"dataset": "images"}).stream(BATCH, shuffle=True, transform=augment, workers=workers)
        try:
            yield (len(batch["total"]) for batch in stream)
        finally:
            stream.close()

    return opened


if __name__ == "__main__":
    main()

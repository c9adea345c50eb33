"""B8: is the sequence the same after a resume, and does its first batch come as soon as that of a fresh start?

A shuffled stream is stopped in mid-pass. A fresh start, a resume with the same ranks and one with three ranks in place
of one are timed to their first batches, with the plan in the cache of the host, as where the run was stopped; then a
fresh start and a resume on a host without it, where the plan comes out of the checkpoint and not of the database. In
each round the rest of the pass is compared with what the stopped run would have delivered.

    python benchmarks/resume.py
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from shared import harness
from shared.harness import Contender, Target

BATCH, BYTES, STOPPED = 256, 784, 0.4  # of the pass
FRESH, RESUMED, ELASTIC = "fresh start", "resume", "resume, three ranks after one"
FRESH_COLD, RESUMED_COLD = "fresh start on another host", "resume on another host"
PACKAGES = ["tensordb-data", "numpy", "pymongo"]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", [], argv)
    harness.quiet()
    count = 3_000 if options.quick else 200_000
    with tempfile.TemporaryDirectory(prefix="tdbb") as name, harness.warehouse(Path(name)) as db:
        folder = Path(name)
        with db.data.writer("d") as writer:
            for low in range(0, count, 20_000):
                rows = np.arange(low, min(low + 20_000, count))
                data = np.zeros((len(rows), BYTES), np.uint8)
                writer.add_many(x=data, label=rows)
        whole = np.concatenate([batch["label"] for batch in stream(db, passes=1)])
        stopped = stream(db)
        for _ in itertools.islice(stopped, int(STOPPED * count / BATCH)):
            pass
        state, plans = stopped.state_dict(), stopped.plans()
        rest = whole[state["position"] :]
        starts = {
            FRESH: lambda: first_batch(folder, "cache", None, None, 1, whole),
            RESUMED: lambda: first_batch(folder, "cache", state, None, 1, rest),
            ELASTIC: lambda: first_batch(folder, "cache", state, None, 3, rest),
            FRESH_COLD: lambda: first_batch(folder, "empty", None, None, 1, whole),
            RESUMED_COLD: lambda: first_batch(folder, "empty", state, plans, 1, rest),
        }
        contenders = {name: Contender(name, contextlib.nullcontext) for name in starts}  # type: ignore[arg-type]
        for round_ in range(0 if options.quick else -1, options.rounds):
            for name in harness.rotated(list(starts), round_):
                seconds = starts[name]()
                if round_ >= 0:
                    contenders[name].rates.append(1 / seconds)
        targets = [
            Target(RESUMED, FRESH, 1 / 1.2),
            Target(ELASTIC, FRESH, 1 / 1.2),
            Target(RESUMED_COLD, FRESH_COLD, 1 / 1.2),
        ]
        for contender in contenders.values():
            contender.note = f"first batch after {1000 / contender.median:.0f} ms; the rest of the pass is identical"
        context = {"samples": count, "batch": BATCH, "bytes_a_sample": BYTES, "plan_bytes": plans[state["ids"]].nbytes}
        title = f"B8 resume in mid-pass: starts a second, {count:,} samples of {BYTES} B, shuffled, batches of {BATCH}"
        return harness.report(title, list(contenders.values()), targets, options, context, PACKAGES, "resume")


def stream(db: Any, **options: Any) -> Any:
    return db.data.find({"dataset": "d"}).stream(batch_size=BATCH, shuffle=True, seed=0, **options)


def first_batch(
    folder: Path, cache: str, state: Any, plans: Any, world: int, expected: np.ndarray[Any, Any]
) -> float:
    """Seconds to the first batch of the slowest rank, each with a connection of its own."""
    from tensordb_data import TensorDB

    if cache == "empty":
        shutil.rmtree(folder / "empty", ignore_errors=True)
    slowest = 0.0
    delivered = []
    for rank in range(world):
        with TensorDB(folder / "warehouse", cache=folder / cache) as db:
            db.data.find({"dataset": "d"}).first()  # it is connected
            start = time.perf_counter()
            one = stream(db, rank=rank, world_size=world, passes=1)
            if state is not None:
                one.load_state_dict(state, plans=plans)
            batches = iter(one)
            labels = [next(batches)["label"]]
            slowest = max(slowest, time.perf_counter() - start)
            labels += [batch["label"] for batch in batches]
            delivered.append(labels)
    rounds = itertools.zip_longest(*delivered)
    found = np.concatenate([labels for round_ in rounds for labels in round_])
    assert np.array_equal(found, expected), "another sequence than without the interruption"
    return slowest


if __name__ == "__main__":
    main()

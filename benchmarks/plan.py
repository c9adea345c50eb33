"""B6: how fast does the index of a selection become a plan, and what does it cost to hold and to open again?

A dataset of one small blob and one label a sample. The yardstick is the same cursor, with the same projection, whose
raw replies are thrown away: what the server and the wire leave possible. Then, in a process of its own with an empty
cache, the plan is read, opened again and a shuffled pass streamed, which gives seconds and the peak of its memory.

    python benchmarks/plan.py
    python benchmarks/plan.py --samples 10000000 --rounds 2 --keep DIR   # writes them once
    python benchmarks/plan.py --changes --samples 500000   # what changes cost, and the plans after them
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from shared import harness
from shared.harness import Contender, Target

BATCH, BYTES = 1024, 16
CURSOR, PLAN = "cursor, raw replies thrown away", "TensorDB plan"
REOPEN_S, BYTES_A_SAMPLE = 0.1, 32
PACKAGES = ["tensordb-data", "numpy", "pymongo"]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--alone"]:
        print(json.dumps(alone(Path(arguments[1]), Path(arguments[2]))))
        return {}
    count, arguments = _taken(arguments, "--samples", 1_000_000)
    kept, arguments = _taken(arguments, "--keep", "")
    only_changes = "--changes" in arguments
    arguments = [argument for argument in arguments if argument != "--changes"]
    options = harness.arguments(__doc__ or "", [], arguments)
    harness.quiet()
    count = 5_000 if options.quick else int(count)
    with contextlib.ExitStack() as stack:
        folder = Path(kept or stack.enter_context(tempfile.TemporaryDirectory(prefix="tdbb")))
        folder.mkdir(parents=True, exist_ok=True)
        db = stack.enter_context(harness.warehouse(folder))
        fill(db, count)
        if only_changes:
            return changes(db, count, options)
        contenders = [Contender(CURSOR, contextlib.nullcontext, "yardstick"), Contender(PLAN, contextlib.nullcontext)]  # type: ignore[arg-type]
        reopened: list[float] = []
        for round_ in range(0 if options.quick else -1, options.rounds):
            rates = [count / cursor(db), count / read(db)]
            seconds = reopen(db, count)
            if round_ >= 0:
                reopened.append(seconds)
                for contender, rate in zip(contenders, rates, strict=True):
                    contender.rates.append(rate)
        with tempfile.TemporaryDirectory(prefix="tdbb") as cache:
            command = [sys.executable, __file__, "--alone", str(folder), cache]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        context = {"samples": count, "bytes_a_blob": BYTES, "batch": BATCH}
        context.update(found, reopen_s=statistics.median(reopened))
        contenders[
            1
        ].note = (
            f"{found['bytes_a_sample']:.1f} B a sample in memory, {found['small_bytes_a_sample']:.1f} with a checkpoint"
        )
        title = f"B6 plan: {count:,} samples of one blob and one label"
        result = harness.report(title, contenders, [Target(PLAN, CURSOR, 0.75)], options, context, PACKAGES, "plan")
        print(
            f"opened again in {1000 * context['reopen_s']:.1f} ms (target {1000 * REOPEN_S:.0f});"
            f" {found['bytes_a_sample']:.1f} B a sample (target {BYTES_A_SAMPLE})\n"
            f"alone in a process: plan {found['plan_s']:.1f} s, first batch {1000 * found['first_batch_s']:.0f} ms"
            f" later, a shuffled pass at {found['pass_samples_per_s']:,.0f} samples/s; resident at most"
            f" {found['peak_rss_mb']:,.0f} MB ({found['rss_before_mb']:,.0f} before)"
        )
        return result


def changes(db: Any, count: int, options: Any) -> dict[str, Any]:
    """What changes of the samples cost, and the plans after them."""
    from shared.changes import measure

    found = measure(db, count, options.rounds, _planner, lambda text: print(text, flush=True))
    result = {
        "question": f"changes of {count:,} samples, and the next plan",
        "quick": options.quick,
        "machine": harness.machine(),
        "load_before": options.load,
        "packages": harness.versions(PACKAGES),
        "figures": found,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "changes.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def fill(db: Any, count: int) -> None:
    """Writes the samples, unless they are there."""
    from rich.progress import track

    if db.data.find({"dataset": "d"}).count() == count:
        return
    step = min(count, 50_000)
    with db.data.writer("d") as writer:
        for low in track(range(0, count, step), description=f"writing {count:,} samples"):
            rows = np.arange(low, min(low + step, count))
            writer.add_many(x=np.resize(rows.astype("<u8").view(np.uint8), (len(rows), BYTES)), label=rows % 1000)


def _planner(db: Any) -> Any:
    from tensordb_data.stream.passes.planner import Planner

    stream = db.data.find({"dataset": "d"}).stream(batch_size=BATCH, fields=["x", "label"], shuffle=True)
    return Planner(db.warehouse, stream.spec)


def cursor(db: Any) -> float:
    """Seconds to receive all replies that a plan is read from."""
    from tensordb_data.stream.plan.index_reader import IndexReader
    from tensordb_data.stream.plan.plan import PAGE

    planner = _planner(db)
    versions = planner.versions()
    reader = IndexReader(planner.bound_query, planner.layout(versions), versions, PAGE)
    start = time.perf_counter()
    received = sum(len(reply) for reply in reader._open(raw=True))
    assert received > 0
    return time.perf_counter() - start


def read(db: Any) -> float:
    """Seconds to read a plan from the database."""
    from tensordb_data.stream.plan.plan import read_plan

    planner = _planner(db)
    versions = planner.versions()
    layout = planner.layout(versions)
    start = time.perf_counter()
    read_plan(planner.bound_query, layout, versions)
    return time.perf_counter() - start


def reopen(db: Any, count: int) -> float:
    """Seconds to a plan that this host has kept."""
    _planner(db).plan()
    planner = _planner(db)
    start = time.perf_counter()
    assert len(planner.plan()) == count
    return time.perf_counter() - start


def alone(folder: Path, cache: Path) -> dict[str, float]:
    """What one process with an empty cache sees."""
    from tensordb_data import TensorDB

    with TensorDB(folder / "warehouse", cache=cache) as db:
        before = _peak_mb()
        stream = db.data.find({"dataset": "d"}).stream(batch_size=BATCH, fields=["x", "label"], shuffle=True, passes=1)
        start = time.perf_counter()
        plan = stream._planner.plan()
        planned = time.perf_counter()
        seen, first = 0, 0.0
        for batch in stream:
            first = first or time.perf_counter()
            seen += len(batch["label"])
        end = time.perf_counter()
        assert seen == len(plan)
        peak = _peak_mb()
        return {
            "plan_s": planned - start,
            "first_batch_s": first - planned,
            "pass_samples_per_s": seen / (end - planned),
            "bytes_a_sample": plan.table.nbytes / seen,
            "small_bytes_a_sample": len(stream._planner.compressed(plan)) / seen,
            "rss_before_mb": before,
            "peak_rss_mb": peak,
        }


def _peak_mb() -> float:
    # The kernel's own figure: that of getrusage begins at the size of the parent.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _taken(arguments: list[str], name: str, default: Any) -> tuple[Any, list[str]]:
    """The value of an option that only this benchmark has, and the other arguments."""
    if name not in arguments:
        return default, arguments
    at = arguments.index(name)
    return arguments[at + 1], arguments[:at] + arguments[at + 2 :]


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main()

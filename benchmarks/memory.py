"""B12: does resident memory stay flat, over many passes and with a hundred times more samples?

Each run is a process of its own, that streams 784-byte samples and notes its resident memory at the end of each pass
(or of each hundredth of one long pass), after a collection of garbage. Mapped files are not counted: the page cache
gives them back when asked. Passes: shuffled, in query order, and through a `DataLoader`, 20 of each; the first is not
compared, since in it buffers and caches fill. Samples: one pass in cursor mode over a data set, and over one a hundred
times as large.

    python benchmarks/memory.py
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from shared import harness

BATCH, CHUNK = 256, 10_000
PASSES, FACTOR = 20, 100
GROWTH = 16.0
"""MB that memory may grow by and still be called flat: what allocators keep back moves by about as much."""
WAYS = ("shuffled", "in order", "loader")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", [], argv)
    harness.quiet()
    small, passes, factor = (200, 4, 5) if options.quick else (10_000, PASSES, FACTOR)
    curves: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="tdbb", ignore_cleanup_errors=True) as folder,
        harness.warehouse(Path(folder)) as db,
    ):
        for dataset, count in (("small", small), ("large", small * factor)):
            with db.data.writer(dataset) as writer:
                for first in range(0, count, CHUNK):
                    n = min(CHUNK, count - first)
                    writer.add_many(image=np.zeros((n, 28, 28), np.uint8), label=np.arange(n))
                    writer.flush()
        place = str(Path(folder) / "warehouse")
        for way in WAYS:
            curves[f"{passes} passes, {way}"] = measured(place, "small", way, passes)
        for dataset, times in (("small", 1), ("large", factor)):
            curves[f"cursor, {times} x"] = measured(place, dataset, "cursor", 1)
    result: dict[str, Any] = {
        "question": "B12: resident memory over passes and over samples, MB",
        "quick": options.quick,
        "context": {"sample": "784 bytes and a label", "batch": BATCH, "samples": small, "factor": factor},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": harness.machine(),
        "load_before": options.load,
        "packages": harness.versions(["tensordb-data", "pymongo", "numpy", "torch"]),
        "memory_mb": curves,
        "verdicts": verdicts(curves),
    }
    show(result)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "memory.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    return result


def verdicts(curves: dict[str, list[float]]) -> list[dict[str, Any]]:
    """By how many MB memory grew: over the passes behind the first, and from few samples to many."""
    found = []
    for name, curve in curves.items():
        if not name.startswith("cursor"):
            found.append({"what": name, "growth_mb": max(curve[1:]) - curve[1]})
    few, many = (max(curve) for name, curve in curves.items() if name.startswith("cursor"))
    found.append({"what": "cursor, from few samples to many", "growth_mb": many - few})
    return [{**verdict, "target": GROWTH, "met": verdict["growth_mb"] <= GROWTH} for verdict in found]


def measured(place: str, dataset: str, way: str, passes: int) -> list[float]:
    """The curve of one run, in MB."""
    command = [sys.executable, __file__, "--run", place, dataset, way, str(passes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    curve: list[float] = json.loads(done.stdout.splitlines()[-1])
    return curve


def run(place: str, dataset: str, way: str, passes: int) -> list[float]:
    """Stream, and note the resident memory after each pass, or along the one of a cursor."""
    from tensordb_data import TensorDB

    curve: list[float] = []
    with TensorDB(place) as db:
        selection = db.data.find({"dataset": dataset})
        samples = selection.count()
        if way == "cursor":
            every = max(1, -(-samples // BATCH) // 100)
            stream = selection.stream(batch_size=BATCH, passes=1)
            for number, batch in enumerate(stream, 1):
                del batch
                if number % every == 0:
                    curve.append(resident())
            return curve
        if way == "loader":
            from torch.utils.data import DataLoader

            from tensordb_data.torch import QueryDataset

            dataset_ = QueryDataset(selection, batch_size=BATCH, shuffle=True)
            batches = iter(DataLoader(dataset_, batch_size=None))
        else:
            batches = iter(selection.stream(batch_size=BATCH, shuffle=way == "shuffled"))
        for _ in range(passes):
            for batch in itertools.islice(batches, -(-samples // BATCH)):
                del batch
            curve.append(resident())
    return curve


def resident() -> float:
    """MB of memory that is this process's own."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return int(fields["RssAnon"]) / 1024


def show(result: dict[str, Any]) -> None:
    """The table and the verdicts."""
    console = Console(width=120)
    table = Table(title=result["question"], title_justify="left")
    for column in ("run", "first", "second", "last", "highest"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for name, curve in result["memory_mb"].items():
        shown = (curve[0], curve[min(1, len(curve) - 1)], curve[-1], max(curve))
        table.add_row(name, *(f"{value:,.1f}" for value in shown))
    console.print(table)
    for verdict in result["verdicts"]:
        met = "reached" if verdict["met"] else "MISSED"
        console.print(f"{verdict['what']}: grew by {verdict['growth_mb']:.1f} MB (target {GROWTH:g}: {met})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        harness.quiet()
        os.environ["XDG_CACHE_HOME"] = str(Path(sys.argv[2]).parent / "cache")
        print(json.dumps(run(*sys.argv[2:5], int(sys.argv[5]))))
    else:
        main()

"""B15: does the memory of gc and fsck stay bounded, however many documents the index has?

An index is written as such, of as many samples, segments and tensors each, in one data set and one project: each sample
lies in a segment of its own, and half of the segments and tensors are in use. Each run is a process of its own, whose
highest resident memory above that of an open warehouse counts; a dry run of gc, a gc that marks and removes, and fsck,
which has a tenth of the documents, since it reads the bytes of each. The same with a tenth of all that.

    python benchmarks/housekeeping.py --documents 1000000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from bson import ObjectId
from rich.console import Console
from rich.table import Table
from shared import harness

GROWTH = 64.0
"""MB that ten times as many documents may take more."""
WAYS = ("gc --dry-run", "gc", "fsck")
PER_SET, PER_OBJECT, CHUNK = 1000, 1000, 5000


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", [], argv, own)
    harness.quiet()
    most = 2_000 if options.quick else options.documents
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in (WAYS[1:2] if options.quick else WAYS)}
    for way in runs:
        for count in (most // 10, most):
            runs[way].append(measured(way, count // 10 if way == "fsck" else count))
            print(f"{way}, {count:,}: {runs[way][-1]}", flush=True)
    verdicts = [
        {"what": way, "growth_mb": of[1]["mb"] - of[0]["mb"], "target": GROWTH} for way, of in runs.items()
    ]  # fmt: skip
    result: dict[str, Any] = {
        "question": f"B15: memory of gc and fsck with {most:,} samples, segments and tensors each",
        "quick": options.quick,
        "context": {"documents": most},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": harness.machine(),
        "load_before": options.load,
        "packages": harness.versions(["tensordb-data", "pymongo"]),
        "runs": runs,
        "verdicts": [{**verdict, "met": verdict["growth_mb"] <= GROWTH} for verdict in verdicts],
    }
    table = Table("run", "documents of a kind", "MB", "seconds", title=result["question"], title_justify="left")
    for way, of in runs.items():
        for row in of:
            table.add_row(way, f"{row['documents']:,.0f}", f"{row['mb']:,.0f}", f"{row['seconds']:,.1f}")
    Console(width=120).print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "housekeeping.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    return result


def own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--documents", type=int, default=1_000_000, help="samples, segments and tensors, of each")


def measured(way: str, count: int) -> dict[str, float]:
    """Memory and time of one run over an index of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="tdbb", ignore_cleanup_errors=True) as folder,
        harness.warehouse(Path(folder)) as db,
    ):
        fill(db, count)
        command = [sys.executable, __file__, "--run", str(Path(folder) / "warehouse"), way]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return {"documents": count, **json.loads(done.stdout.splitlines()[-1])}


def run(place: str, way: str) -> dict[str, float]:
    """One run, in this process."""
    from tensordb_data import TensorDB

    with TensorDB(place) as db:
        db.gc(grace=1e8, dry_run=True)
        before, began = highest(), time.perf_counter()
        if way == "fsck":
            report = db.fsck()
            assert report.findings == [], report.findings[:3]
        else:
            db.gc(grace=0, dry_run=way != "gc")
        return {"mb": highest() - before, "seconds": time.perf_counter() - began}


def highest() -> float:
    """MB of resident memory that this process has had at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def fill(db: Any, count: int) -> None:
    """The index, and the few objects that all of it refers to."""
    from tensordb_data.tensors.write import digest

    with db.data.writer("d") as writer:
        (sample,) = writer.add_many(x=np.zeros((1, 500), np.uint8))
    mongo, store = db.database, db.warehouse.blobs.store(0)
    segment, first = mongo["segments"].find_one(), mongo["data"].find_one({"_id": sample})
    old = datetime.now(timezone.utc) - timedelta(days=1)
    ids = [ObjectId() for _ in range(count)]

    def segments() -> Iterator[Any]:
        return ({**segment, "_id": id, "created": old} for id in ids)

    def samples() -> Iterator[Any]:
        for n, id in enumerate(ids[::2]):
            for half in (0, 1):
                place = {**first["_tdb"]["b"]["x"], "k": id}
                about = {"p": "default", "s": 10 + 2 * n + half, "b": {"x": place}}
                yield {**first, "_id": ObjectId(), "_tdb": about}

    def tensors() -> Iterator[Any]:
        for low in range(0, count, PER_OBJECT):
            key = f"params/{ObjectId()}.safetensors"
            values = np.arange(low, min(low + PER_OBJECT, count)).astype("<i8")
            store.put(key, [values.tobytes()])
            for n, value in enumerate(values):
                content = digest(memoryview(value.tobytes()))
                about = {"root": 0, "key": key, "o": 8 * n, "n": 8, "state": "live", "created": old, "run": "r"}
                yield {"_id": {"p": "default", "h": content}, **about}

    def sets() -> Iterator[Any]:
        for low in range(0, count, 2 * PER_SET):  # every second thousand
            values = np.arange(low, min(low + PER_SET, count)).astype("<i8")
            contents = [digest(memoryview(value.tobytes())) for value in values]
            yield {"_id": ObjectId(), "run": "r", "step": low, "_tdb": {"p": "default", "tensors": contents}}

    kinds: dict[str, Callable[[], Iterator[Any]]] = {
        "segments": segments, "data": samples, "tensors": tensors, "params": sets,
    }  # fmt: skip
    for name, documents in kinds.items():
        batch: list[Any] = []
        for document in documents():
            batch.append(document)
            if len(batch) == CHUNK:
                mongo[name].insert_many(batch, ordered=False)
                batch = []
        if batch:
            mongo[name].insert_many(batch, ordered=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        harness.quiet()
        print(json.dumps(run(*sys.argv[2:4])))
    else:
        main()

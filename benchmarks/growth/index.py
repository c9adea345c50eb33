"""How ingest, plan, first batch and the size of the index grow with the number of samples.

    python benchmarks/growth/index.py --samples 10000,100000

Samples of 784 bytes and one number. Each size has a warehouse of its own. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from tensordb_data import TensorDB
from tests.mongod import running

_CHUNK = 10_000


def measure(folder: Path, n: int) -> dict[str, Any]:
    """All that is measured at one size."""
    with running(folder, "--syncdelay", "1") as server, TensorDB(server.uri, blobs=str(folder / "blobs")) as db:
        began = time.perf_counter()
        with db.data.writer("d") as writer:
            for low in range(0, n, _CHUNK):
                writer.add_many(x=np.ones((_CHUNK, 784), np.uint8), y=np.arange(low, low + _CHUNK))
        ingest = time.perf_counter() - began
        time.sleep(4)  # sizes are those of files, which the server writes each second
        samples = db.data.find({"dataset": "d"}).stream(1)._planner.bound_query.collection
        stats = samples.database.command("collStats", samples.name)
        began = time.perf_counter()
        batch = next(iter(db.data.find({"dataset": "d"}).stream(256, shuffle=True)))
        first = time.perf_counter() - began
        began = time.perf_counter()
        next(iter(db.data.find({"dataset": "d"}).stream(256, shuffle=True)))
        again = time.perf_counter() - began
        assert len(batch["y"]) == 256
    return {
        "samples": n,
        "ingest_per_s": round(n / ingest),
        "first_batch_with_plan_s": round(first, 4),
        "first_batch_again_s": round(again, 4),
        "document_bytes": round(stats["size"] / n, 1),
        "stored_bytes": round(stats["storageSize"] / n, 1),
        "index_bytes": {name: round(size / n, 1) for name, size in stats["indexSizes"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", default="10000,100000")
    sizes = [int(size) for size in parser.parse_args().samples.split(",")]
    found = []
    for n in sizes:
        with tempfile.TemporaryDirectory(prefix="tdbb") as folder:
            found.append(measure(Path(folder), n))
    print(json.dumps({"load": round(os.getloadavg()[0], 1), "cores": os.cpu_count(), "sizes": found}, indent=1))


if __name__ == "__main__":
    main()

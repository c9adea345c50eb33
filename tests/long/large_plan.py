"""A plan of 100 million references, made up, stored and opened as the streams do; then the start of a shuffled pass.

    .venv/bin/python tests/long/large_plan.py --samples 100000000

Prints the size of the file and what is resident, in parts: memory of the process itself, and pages of the mapped file,
which all processes of a host share and the kernel takes back when it needs them.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xxhash
from bson import ObjectId

sys.path.insert(0, str(Path(__file__).parents[2]))

from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.schema.schema import Schema
from tensordb_data.stream.order.block_shuffle import BlockShuffle
from tensordb_data.stream.order.permutation import pass_key
from tensordb_data.stream.plan.cache import PlanCache, PlanKey
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import FieldLayout, SampleTable


def resident() -> dict[str, int]:
    """MB of this process: its own, of files, and the most of both together."""
    text = Path("/proc/self/status").read_text()
    found = {}
    for what, name in (("own", "RssAnon"), ("mapped", "RssFile"), ("most", "VmHWM")):
        match = re.search(rf"{name}:\s+(\d+) kB", text)
        assert match is not None
        found[what] = int(match[1]) // 1024
    return found


def made_up(n: int) -> Plan:
    """A plan of n samples with one blob of 784 bytes and one number each, in segments of 40,000."""
    schema = Schema.inferred("d", {"x": np.zeros(784, np.uint8), "y": 0})
    layout = FieldLayout.choose(("x", "y"), {"d": schema})
    number = np.arange(n, dtype=np.uint32)
    segments = tuple(ObjectId() for _ in range(-(-n // 40_000)))
    ids = np.zeros((n, 12), np.uint8)
    ids[:, 8:] = number.astype(">u4").view(np.uint8).reshape(n, 4)
    length = np.broadcast_to(np.int64(784), (n,))
    refs = BlobRefs(segments, number // 40_000, number % 40_000 * 784, length, None)
    dataset = np.broadcast_to(np.uint16(0), (n,))
    table = SampleTable(layout, ids, ("d",), dataset, {"x": refs}, {"y": number.astype(np.int64)}, {}, None, number)
    return Plan(table, {"d": (n, 0)}, xxhash.xxh3_128_hexdigest(ids.data))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--folder", help="an open plan is mapped from here; made by a first run", type=Path)
    options = parser.parse_args()
    n, key = options.samples, PlanKey("0" * 32, "1" * 32)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        file = folder / f"{key.exact}.plan"
        schema = Schema.inferred("d", {"x": np.zeros(784, np.uint8), "y": 0})
        layout = FieldLayout.choose(("x", "y"), {"d": schema})
        if not file.exists():
            PlanCache(folder, 1 << 40).store(key, made_up(n))
            print(f"{n:,} references: a file of {file.stat().st_size:,} bytes; making it: {resident()} MB")
            if options.folder:
                return  # opening it is measured in a process that has not made it
        began = time.perf_counter()
        plan = PlanCache(folder, 1 << 40).open(key.exact, layout)
        assert plan is not None and len(plan) == n
        print(f"opened in {time.perf_counter() - began:.2f} s: {resident()} MB")
        began = time.perf_counter()
        for batch in range(2000):
            rows = BlockShuffle().rows(np.arange(batch * 256, (batch + 1) * 256), n, pass_key(0, 0))
            taken = plan.table.take(rows)
            assert (taken.values["y"] == rows).all()
        print(f"2,000 batches of 256, shuffled, without blobs, in {time.perf_counter() - began:.2f} s: {resident()} MB")


if __name__ == "__main__":
    main()

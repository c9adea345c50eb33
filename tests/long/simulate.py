"""A thousand ranks with four workers each, in virtual time; see `tests/simulated/training.py`.

    make simulate                                                    # 1,000 ranks
    .venv/bin/python tests/long/simulate.py --ranks 64 --seed 3

Ranks leave and join within passes, a worker is killed, the database has no primary for five seconds, the store refuses
one of a hundred requests, and samples are added. Each pass must have each sample once. What it prints is in
`docs/scale.md`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.simulated.servers import Server
from tests.simulated.training import Stage, Training


def _rates(server: Server) -> str:
    seconds = sorted(server.requests.values())
    return (
        f"{server.total:,} requests, {seconds[-1]:,}/s at most, {seconds[len(seconds) // 2]:,}/s in the median second"
        f" with any, {server.failed:,} without a good answer"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ranks, batch_size, began = options.ranks, 8, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        hosts, n = max(1, ranks // 8), ranks * batch_size * 5 + 137
        training = Training(
            Path(folder), hosts, n, batch_size, workers=4, cache_bytes=2_000_000, seed=options.seed, refuses=0.01
        )
        training.database.failing, training.store.failing = [(0.5, 5.5)], [(0.0, 60.0)]
        fewer = ranks * 7 // 8
        training.run([Stage(ranks, 6, killed_at=4), Stage(fewer, 5, growths=3), Stage(ranks, 5)])
        passes = training.check()
    stalls = sorted(training.stalls)
    print(f"{ranks} ranks of 4 workers, {hosts} hosts, {n:,} samples, seed {options.seed}: {passes} passes begun")
    print(f"each sample once; {training.repeated} given twice to end passes evenly; {training.restarts} restarts")
    print(f"database: {_rates(training.database)}")
    print(f"store: {_rates(training.store)}, {training.store.nbytes:,} bytes")
    print(f"cache: {training.hits:,} of {training.reads:,} blobs were there ({training.hits / training.reads:.3f})")
    boundaries = ", ".join(f"{waited:.3f}" for waited in training.boundaries)
    print(f"stalls: median {stalls[len(stalls) // 2]:.3f} s, most {stalls[-1]:.3f} s")
    print(f"stalls where passes or jobs begin: {boundaries} s")
    print(f"{training.clock.now:.1f} s of virtual time in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

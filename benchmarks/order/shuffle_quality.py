"""How well do blocks shuffle? How far apart neighbours of a segment land in a pass, beside a full permutation.

    python benchmarks/order/shuffle_quality.py        # prints a table, writes results/shuffle_quality.png
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tensordb_data.stream.order.block_shuffle import BlockShuffle
from tensordb_data.stream.order.permutation import pass_key

N, SEGMENT, BATCH, PASSES = 640_000, 640, 256, 5  # samples of 50 kB: 32 GB in a thousand segments
CACHES = {"full permutation": 0.0, "cache of 1/2": 0.5, "cache of 1/4": 0.25, "cache of 1/16": 1 / 16}


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    print(f"{'':18}  median distance of neighbours / samples   segments in a batch of {BATCH}")
    for name, share in CACHES.items():
        window = int(N * share / 4)
        shuffle = BlockShuffle(min(SEGMENT, window // 16), window) if share else BlockShuffle()
        distances, segments = [], []
        for number in range(PASSES):
            rows = shuffle.rows(np.arange(N), N, pass_key(0, number))
            places = np.empty(N, np.int64)
            places[rows] = np.arange(N)
            distances.append(np.abs(np.diff(places)) / N)
            segments += [len(np.unique(rows[low : low + BATCH] // SEGMENT)) for low in range(0, N, 64 * BATCH)]
        apart = np.sort(np.concatenate(distances))
        print(f"{name:18}  {np.median(apart):40.3f}   {np.mean(segments):.0f}")
        axes.plot(apart[::500], np.linspace(0, 1, len(apart[::500])), label=name)
    axes.set_xscale("log")
    axes.set_xlim(1e-5, 1)
    axes.set_xlabel("distance in the pass between samples that were neighbours in a segment, as a part of the pass")
    axes.set_ylabel("part of the neighbours that are closer")
    axes.legend()
    target = Path(__file__).parents[1] / "results" / "shuffle_quality.png"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=110)
    print(f"written: {target}")


if __name__ == "__main__":
    main()

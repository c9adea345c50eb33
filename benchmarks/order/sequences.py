"""How much of a batch is padding? Shuffled batches of 32, batches by tokens, and packs, for log-normal lengths.

python benchmarks/order/sequences.py        # prints a table
"""

from __future__ import annotations

import os
import platform
import time

import numpy as np
from numpy.typing import NDArray

from tensordb_data import Query, Tokens
from tensordb_data.stream.order.items import Items
from tensordb_data.stream.order.sequence_order import sequence_order
from tensordb_data.stream.order.sequence_sharding import SequenceSharding
from tensordb_data.stream.spec import StreamSpec

N, LONGEST, BATCH, BATCH_TOKENS = 1_000_000, 4096, 32, 32_768


def main() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.0, 1.2, N).astype(np.int64), 1, LONGEST)
    print(f"{N:,} lengths, mean {lengths.mean():.0f}, median {np.median(lengths):.0f}, at most {LONGEST:,};", end=" ")
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
    shuffled = rng.permutation(lengths)[: N // BATCH * BATCH].reshape(-1, BATCH)
    padded = int(shuffled.max(axis=1).sum()) * BATCH
    print(f"shuffled batches of {BATCH}, padded: {1 - shuffled.sum() / padded:.1%}")
    for tokens in (Tokens(n=BATCH_TOKENS), Tokens(pack=LONGEST)):
        began = time.perf_counter()
        held = filled(lengths, tokens)
        print(f"{tokens!r}: {1 - lengths.sum() / held:.2%} in {time.perf_counter() - began:.1f} s")


def filled(lengths: NDArray[np.int64], tokens: Tokens) -> int:
    """The items of all batches of a pass, padding included."""
    none = np.broadcast_to(np.zeros(1, np.int64), lengths.shape)
    items = Items(np.arange(len(lengths)), none, lengths, lengths)
    order = sequence_order(items, StreamSpec(Query("data", {}), 1, shuffle=True, tokens=tokens), 0, (0, 0))
    rounds = SequenceSharding(order, 0, 1, 1, "short").rounds
    if tokens.pack is not None:
        return rounds * tokens.pack
    held, low = 0, 0
    for window in range(order.windows):
        for high in order.ends_of(window).tolist():
            held += int(order.take(np.arange(low, high)).length.max()) * (high - low)
            low = high
    return held


if __name__ == "__main__":
    main()

"""B3: how fast do large raw tensors reach the training loop, shuffled, once the data is warm?

Crops of photographs, 224 × 224 × 3 bytes each (150 kB), far more of them than the CPU caches hold, in shuffled batches
of 64; stored as they are, and compressed with zstd. The yardsticks deliver the same batches from memory, on the same
number of threads: numpy.copyto of the rows into a new array whose pages the system has never handed out, and a bare
zstd of the frames.

    python benchmarks/large_tensors.py
"""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from shared import harness
from shared.fixtures import Array, crops
from shared.harness import Batches, Contender, Target

BATCH = 64
SIDE = 224
LEVEL = 3
PACKAGES = ["tensordb-data", "numpy", "pymongo", "zstandard", "torch"]
COPY, REUSED, ZSTD = "numpy.copyto, fresh pages", "numpy.copyto, pages in use", "zstd from memory"
RAW, RAW_LOADER, PACKED = "TensorDB raw", "TensorDB raw, DataLoader", "TensorDB zstd"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", [], argv)
    harness.quiet()
    threads = int(str(harness.machine()["cores"]))
    images = crops(130 if options.quick else 4_000, SIDE)
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    frames = [compressor.compress(image.data) for image in images]
    with tempfile.TemporaryDirectory(prefix="tdbb") as folder, harness.warehouse(Path(folder)) as db:
        for name, compression in (("raw", None), ("packed", f"zstd:{LEVEL}")):
            with db.data.writer(name, compression=compression) as writer:
                for start in range(0, len(images), 500):
                    writer.add_many(image=images[start : start + 500])
        contenders = [
            Contender(COPY, on_threads(threads, len(images), fresh(images)), f"yardstick: {threads} threads"),
            Contender(
                REUSED, on_threads(threads, len(images), reused(images)), "for comparison: as malloc hands it out"
            ),
            Contender(RAW, stream(db, "raw"), "numpy arrays"),
            Contender(RAW_LOADER, data_loader(db, "raw"), "DataLoader(batch_size=None), torch tensors"),
            Contender(ZSTD, on_threads(threads, len(images), unpacked(frames)), f"yardstick: {threads} threads"),
            Contender(PACKED, stream(db, "packed"), "numpy arrays"),
        ]
        harness.race(contenders, rounds=options.rounds, seconds=options.seconds)
        targets = [Target(RAW, COPY, 0.9), Target(PACKED, ZSTD, 0.9)]
        context = {
            "samples": len(images),
            "batch": BATCH,
            "bytes_a_sample": images[0].nbytes,
            "zstd_ratio": sum(map(len, frames)) / images.nbytes,
            "data": "scikit-image photographs, cropped",
        }
        title = f"B3 large tensors: {len(images):,} of {images[0].nbytes:,} B, shuffled, batches of {BATCH}, warm"
        return harness.report(title, contenders, targets, options, context, PACKAGES, "large_tensors")


def on_threads(threads: int, count: int, batch: Callable[[Array], Any]) -> Callable[[], Any]:
    """`batch` of rows, shuffled, on threads that each make whole batches, a few of them ahead, for one consumer."""

    @contextlib.contextmanager
    def opened() -> Iterator[Batches]:
        rng = np.random.default_rng(0)

        def batches() -> Batches:
            waiting: deque[Future[Any]] = deque()
            while True:
                order = rng.permutation(count)
                for start in range(0, count, BATCH):
                    waiting.append(pool.submit(batch, order[start : start + BATCH]))
                    if len(waiting) > threads + 1:
                        yield len(waiting.popleft().result())

        with ThreadPoolExecutor(threads) as pool:
            yield batches()
            pool.shutdown(cancel_futures=True)

    return opened


def fresh(images: Array) -> Callable[[Array], Array]:
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

    def batch(rows: Array) -> Array:
        memory = mmap.mmap(-1, len(rows) * images[0].nbytes, flags=private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)  # numpy asks for them too
        return _copied(images, rows, np.frombuffer(memory, np.uint8).reshape(len(rows), *images.shape[1:]))

    return batch


def reused(images: Array) -> Callable[[Array], Array]:
    return lambda rows: _copied(images, rows, np.empty((len(rows), *images.shape[1:]), np.uint8))


def _copied(images: Array, rows: Array, batch: Array) -> Array:
    for place, row in zip(batch, rows.tolist(), strict=True):
        np.copyto(place, images[row])
    return batch


def unpacked(frames: list[bytes]) -> Callable[[Array], Any]:
    # All frames of a batch in one call, which the library has for this: faster than one call for each.
    return lambda rows: zstandard.ZstdDecompressor().multi_decompress_to_buffer([frames[row] for row in rows.tolist()])


def stream(db: Any, dataset: str) -> Callable[[], Any]:
    @contextlib.contextmanager
    def opened() -> Iterator[Batches]:
        stream = db.data.find({"dataset": dataset}).stream(batch_size=BATCH, shuffle=True, seed=0)
        try:
            yield (len(batch["image"]) for batch in stream)
        finally:
            stream.close()

    return opened


def data_loader(db: Any, dataset: str) -> Callable[[], Any]:
    from torch.utils.data import DataLoader

    from tensordb_data.torch import QueryDataset

    @contextlib.contextmanager
    def opened() -> Iterator[Batches]:
        stream = db.data.find({"dataset": dataset}).stream(batch_size=BATCH, shuffle=True, seed=0)
        try:
            yield (len(batch["image"]) for batch in DataLoader(QueryDataset(stream), batch_size=None))
        finally:
            stream.close()

    return opened


if __name__ == "__main__":
    main()

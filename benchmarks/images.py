"""B2: how fast do photographs reach the training loop, decoded, resized and shuffled?

2,000 JPEGs of 500 × 375, decoded and resized to 224 × 224 RGB, in shuffled batches of 64, warm. The yardstick decodes
and resizes the same bytes from memory with cv2, on the same number of threads. The peers use cv2 too, with their own
readers and as many worker processes.

    python benchmarks/images.py --peers mosaicml,webdataset
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from shared import harness
from shared.fixtures import Array, photos
from shared.harness import Batches, Contender, Target, looped

BATCH = 64
SIDE = 224
PACKAGES = ["tensordb-data", "numpy", "pymongo", "torch", "opencv-python-headless"]
REQUIRED = ["mosaicml-streaming", "webdataset", "litdata"]
BARE, STREAM, LOADER = "cv2 from memory", "TensorDB stream", "TensorDB DataLoader"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", list(PEERS), argv)
    harness.quiet()
    import cv2

    cv2.setNumThreads(0)
    threads = int(str(harness.machine()["cores"]))
    jpegs = photos(130 if options.quick else 2_000)
    with tempfile.TemporaryDirectory(prefix="tdbb") as folder, harness.warehouse(Path(folder)) as db:
        with db.data.writer("photos") as writer:
            for number, jpeg in enumerate(jpegs):
                writer.add(image=jpeg, label=number % 10)
        selection = db.data.find({"dataset": "photos"})
        contenders = [
            Contender(BARE, from_memory(jpegs, threads), f"yardstick: {threads} threads"),
            Contender(STREAM, stream(selection), "numpy arrays"),
            Contender(LOADER, data_loader(selection), "DataLoader(batch_size=None), torch tensors"),
        ]
        for name in options.peers:
            place = Path(folder) / name
            place.mkdir()
            contenders += harness.peer(name, lambda n=name, p=place: [PEERS[n](p, jpegs, threads)])  # type: ignore[misc]
        harness.race(contenders, rounds=options.rounds, seconds=options.seconds)
        peers = [c.name for c in contenders if c.rates and c.name in PEERS]
        targets = [Target(STREAM, BARE, 0.95), *(Target(LOADER, peer, 1.0) for peer in peers)]
        size = sum(map(len, jpegs)) // len(jpegs)
        context = {
            "samples": len(jpegs),
            "batch": BATCH,
            "bytes_a_sample": size,
            "data": "scikit-image photographs, cropped",
        }
        title = f"B2 photographs: {len(jpegs):,} JPEGs of 500 × 375 ({size:,} B) to {SIDE} × {SIDE}, batches of {BATCH}"
        return harness.report(title, contenders, targets, options, context, PACKAGES + REQUIRED, "images")


def decode(jpeg: Any) -> Array:
    """The work itself, the same for everybody."""
    import cv2

    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def shrink(sample: dict[str, Any]) -> dict[str, Any]:
    """The same as a transform of a stream, which has decoded the image already."""
    import cv2

    return {**sample, "image": cv2.resize(sample["image"], (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)}


def from_memory(jpegs: list[bytes], threads: int) -> Callable[[], Any]:
    rng = np.random.default_rng(0)

    @contextlib.contextmanager
    def opened() -> Iterator[Batches]:
        def fill(batch: Array, rows: Array, part: int) -> None:
            for place in range(part, len(rows), threads):
                batch[place] = decode(jpegs[rows[place]])

        def batches() -> Batches:
            while True:
                order = rng.permutation(len(jpegs))
                for start in range(0, len(order), BATCH):
                    rows = order[start : start + BATCH]
                    batch = np.empty((len(rows), SIDE, SIDE, 3), np.uint8)
                    for done in [pool.submit(fill, batch, rows, part) for part in range(threads)]:
                        done.result()
                    yield len(batch)

        with ThreadPoolExecutor(threads) as pool:
            yield batches()

    return opened


def stream(selection: Any) -> Callable[[], Any]:
    @contextlib.contextmanager
    def opened() -> Iterator[Batches]:
        stream = selection.stream(batch_size=BATCH, shuffle=True, seed=0, transform=shrink)
        try:
            yield (len(batch["label"]) for batch in stream)
        finally:
            stream.close()

    return opened


def data_loader(selection: Any) -> Callable[[], Any]:
    from torch.utils.data import DataLoader

    from tensordb_data.torch import QueryDataset

    @contextlib.contextmanager
    def opened() -> Iterator[Batches]:
        stream = selection.stream(batch_size=BATCH, shuffle=True, seed=0, transform=shrink)
        try:
            yield (len(batch["label"]) for batch in DataLoader(QueryDataset(stream), batch_size=None))
        finally:
            stream.close()

    return opened


def files(folder: Path, jpegs: list[bytes], workers: int) -> Contender:
    from torch.utils.data import DataLoader, Dataset

    paths = [folder / f"{number:05d}.jpg" for number in range(len(jpegs))]
    for path, jpeg in zip(paths, jpegs, strict=True):
        path.write_bytes(jpeg)

    class Files(Dataset[tuple[Array, int]]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, row: int) -> tuple[Array, int]:
            return decode(paths[row].read_bytes()), row % 10

    loader = DataLoader(Files(), batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=True)
    return Contender("files", looped(lambda: loader, _size), f"DataLoader, {workers} workers")


def mosaicml(folder: Path, jpegs: list[bytes], workers: int) -> Contender:
    harness.allow_streaming()
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

    with MDSWriter(out=str(folder), columns={"image": "bytes", "label": "int"}) as writer:
        for number, jpeg in enumerate(jpegs):
            writer.write({"image": jpeg, "label": number % 10})

    class Photos(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> tuple[Array, int]:
            sample = super().__getitem__(at)
            return decode(sample["image"]), sample["label"]

    def loader() -> Any:
        dataset = Photos(local=str(folder), shuffle=True, shuffle_seed=0, batch_size=BATCH)
        return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers)

    return Contender("mosaicml", looped(loader, _size), f"{workers} workers")


def webdataset(folder: Path, jpegs: list[bytes], workers: int) -> Contender:
    import webdataset as wds

    with wds.ShardWriter(str(folder / "%04d.tar"), maxcount=max(1, len(jpegs) // 8), verbose=0) as writer:
        for number, jpeg in enumerate(jpegs):
            writer.write({"__key__": f"{number:06d}", "jpg": jpeg, "cls": number % 10})
    shards = sorted(str(path) for path in folder.glob("*.tar"))

    def both(sample: dict[str, bytes]) -> tuple[Array, int]:
        return decode(sample["jpg"]), int(sample["cls"])

    def loader() -> Any:
        dataset = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(1_000).map(both).batched(BATCH)
        return wds.WebLoader(dataset, batch_size=None, num_workers=workers)

    return Contender("webdataset", looped(loader, _size), f"{workers} workers")


def litdata(folder: Path, jpegs: list[bytes], workers: int) -> Contender:
    import litdata as lit
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_bytes="32MB")
    for number, jpeg in enumerate(jpegs):
        cache[number] = {"image": jpeg, "label": number % 10}
    cache.done()
    cache.merge()

    class Photos(lit.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> tuple[Array, int]:
            sample = super().__getitem__(at)
            return decode(sample["image"]), sample["label"]

    def loader() -> Any:
        return lit.StreamingDataLoader(Photos(str(folder), shuffle=True, seed=0), batch_size=BATCH, num_workers=workers)

    return Contender("litdata", looped(loader, _size), f"{workers} workers")


def _size(batch: Any) -> int:
    return len(batch[1])


PEERS: dict[str, Callable[[Path, list[bytes], int], Contender]] = {
    "files": files,
    "mosaicml": mosaicml,
    "webdataset": webdataset,
    "litdata": litdata,
}


if __name__ == "__main__":
    main()

"""B1: how fast do small tensors reach the training loop, shuffled, once the data is warm?

60,000 images of 784 bytes with a label, in shuffled batches of 256, as numpy arrays, as torch tensors and as TensorFlow
tensors. The yardsticks are the least work that could do: a numpy gather of the same batches from memory, and tf.data
over tensors held in memory. The peers read their own format from the same disk.

    python benchmarks/small_tensors.py --peers webdataset,lance
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from shared import harness
from shared.fixtures import Array, grey_images
from shared.harness import Batches, Contender, Target, looped

BATCH = 256
PACKAGES = ["tensordb-data", "numpy", "pymongo", "torch", "tensorflow-cpu"]
GATHER, STREAM, LOADER = "numpy gather", "TensorDB stream", "TensorDB DataLoader"
TF_MEMORY, TF_OURS = "tf.data from memory", "TensorDB tf.data"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", list(PEERS), argv)
    harness.quiet()
    count = 2_000 if options.quick else 60_000
    images, labels, source = grey_images(count)
    with tempfile.TemporaryDirectory(prefix="tdbb") as folder, warehouse(Path(folder), images, labels) as db:
        selection = db.data.find({"dataset": "grey"})
        contenders = [
            Contender(GATHER, gather(images, labels), "yardstick: batches from memory"),
            Contender(STREAM, stream(selection), "numpy arrays"),
            Contender(LOADER, data_loader(selection), "DataLoader(batch_size=None), torch tensors"),
            Contender("TensorDataset", tensor_dataset(images, labels), "in memory, torch tensors"),
        ]
        for name in options.peers:
            place = Path(folder) / name
            place.mkdir()
            contenders += harness.peer(name, lambda n=name, p=place: PEERS[n](p, images, labels))  # type: ignore[misc]
        contenders += harness.peer(
            TF_MEMORY, lambda: [Contender(TF_MEMORY, tf_memory(images, labels), "yardstick for TF")]
        )
        contenders += harness.peer(TF_OURS, lambda: [Contender(TF_OURS, tf_ours(selection), "query_dataset")])
        harness.race(contenders, rounds=options.rounds, seconds=options.seconds)
        peers = [c for c in contenders if c.rates and c.name.split(" ")[0] in PEERS]
        best_peer = [Target(STREAM, max(peers, key=lambda c: c.median).name, 15.0)] if peers else []
        targets = [
            Target(STREAM, GATHER, 0.5),
            Target(LOADER, GATHER, 0.35),
            *best_peer,
            Target(TF_OURS, TF_MEMORY, 1.5),
        ]
        context = {"samples": count, "batch": BATCH, "bytes_a_sample": 784, "data": source}
        title = f"B1 small tensors: {count:,} samples of 784 B + label, shuffled, batches of {BATCH}, warm ({source})"
        return harness.report(title, contenders, targets, options, context, PACKAGES + REQUIRED, "small_tensors")


@contextlib.contextmanager
def warehouse(folder: Path, images: Array, labels: Array) -> Iterator[Any]:
    with harness.warehouse(folder) as db:
        with db.data.writer("grey") as writer:
            writer.add_many(image=images, label=labels)
        yield db


def gather(images: Array, labels: Array) -> Callable[[], Any]:
    rng = np.random.default_rng(0)

    def one_pass() -> Iterator[tuple[Array, Array]]:
        order = rng.permutation(len(images))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            yield images[rows], labels[rows]

    return looped(one_pass, lambda batch: len(batch[1]))


def tensor_dataset(images: Array, labels: Array) -> Callable[[], Any]:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(
        TensorDataset(torch.from_numpy(images), torch.from_numpy(labels)), batch_size=BATCH, shuffle=True
    )
    return looped(lambda: loader, lambda batch: len(batch[1]))


def stream(selection: Any) -> Callable[[], Any]:
    @contextlib.contextmanager
    def opened() -> Iterator[Batches]:
        stream = selection.stream(batch_size=BATCH, fields=["image", "label"], shuffle=True, seed=0)
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
        stream = selection.stream(batch_size=BATCH, fields=["image", "label"], shuffle=True, seed=0)
        try:
            yield (len(batch["label"]) for batch in DataLoader(QueryDataset(stream), batch_size=None))
        finally:
            stream.close()

    return opened


def tf_memory(images: Array, labels: Array) -> Callable[[], Any]:
    import tensorflow as tf

    dataset = (
        tf.data.Dataset.from_tensor_slices((images, labels))
        .shuffle(len(images))
        .batch(BATCH)
        .prefetch(tf.data.AUTOTUNE)
    )
    return looped(lambda: dataset, lambda batch: int(batch[1].shape[0]))


def tf_ours(selection: Any) -> Callable[[], Any]:
    from tensordb_data.tf import query_dataset

    @contextlib.contextmanager
    def opened() -> Iterator[Batches]:
        stream = selection.stream(batch_size=BATCH, fields=["image", "label"], shuffle=True, seed=0)
        try:
            yield (int(batch["label"].shape[0]) for batch in query_dataset(stream))
        finally:
            stream.close()

    return opened


def workers(name: str, make: Callable[[int], Any], size: Callable[[Any], int]) -> list[Contender]:
    """A loader of torch tensors, in this process and with two workers: which is faster depends on the peer."""
    return [
        Contender(name if count == 0 else f"{name} {count} workers", looped(lambda loader=make(count): loader, size))
        for count in (0, 2)
    ]


def mosaicml(folder: Path, images: Array, labels: Array) -> list[Contender]:
    harness.allow_streaming()
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

    columns = {"image": "ndarray:uint8:28,28", "label": "int"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for image, label in zip(images, labels, strict=True):
            writer.write({"image": image, "label": int(label)})

    def loader(count: int) -> Any:
        dataset = StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=0, batch_size=BATCH)
        return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=count)

    return workers("mosaicml", loader, lambda batch: len(batch["label"]))


def webdataset(folder: Path, images: Array, labels: Array) -> list[Contender]:
    import torch
    import webdataset as wds

    with wds.ShardWriter(str(folder / "%04d.tar"), maxcount=len(images) // 8, verbose=0) as writer:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            writer.write({"__key__": f"{number:06d}", "bin": image.tobytes(), "cls": int(label)})
    shards = sorted(str(path) for path in folder.glob("*.tar"))

    def decode(sample: dict[str, bytes]) -> tuple[Array, int]:
        return np.frombuffer(sample["bin"], np.uint8).reshape(28, 28), int(sample["cls"])

    def stack(samples: list[tuple[Array, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = zip(*samples, strict=True)
        return torch.from_numpy(np.stack(images)), torch.tensor(labels)

    def loader(count: int) -> Any:
        dataset = (
            wds.WebDataset(shards, shardshuffle=len(shards))
            .shuffle(5_000)
            .map(decode)
            .batched(BATCH, collation_fn=stack)
        )
        return wds.WebLoader(dataset, batch_size=None, num_workers=count)

    return workers("webdataset", loader, lambda batch: len(batch[1]))


def litdata(folder: Path, images: Array, labels: Array) -> list[Contender]:
    import litdata
    from litdata.streaming import Cache

    # The documented entry point, litdata.optimize, runs a script in worker processes; this is the writer beneath it.
    cache = Cache(str(folder), chunk_bytes="32MB")
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        cache[number] = {"image": image, "label": int(label)}
    cache.done()
    cache.merge()

    def loader(count: int) -> Any:
        dataset = litdata.StreamingDataset(str(folder), shuffle=True, seed=0)
        return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=count)

    return workers("litdata", loader, lambda batch: len(batch["label"]))


def lance(folder: Path, images: Array, labels: Array) -> list[Contender]:
    import lance
    import pyarrow as pa
    import torch

    rows = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 784)
    dataset = lance.write_dataset(pa.table({"image": rows, "label": labels}), str(folder / "grey.lance"))
    rng = np.random.default_rng(0)

    def one_pass() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = rng.permutation(len(images))
        for start in range(0, len(order), BATCH):
            table = dataset.take(order[start : start + BATCH]).combine_chunks()
            pixels = table["image"].chunk(0).flatten().to_numpy().reshape(-1, 28, 28)
            yield torch.tensor(pixels), torch.tensor(table["label"].chunk(0).to_numpy())

    return [Contender("lance", looped(one_pass, lambda batch: len(batch[1])), "Dataset.take of random rows")]


def huggingface(folder: Path, images: Array, labels: Array) -> list[Contender]:
    import datasets
    import torch
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    datasets.disable_progress_bars()
    features = datasets.Features(
        {"image": datasets.Sequence(datasets.Value("uint8"), 784), "label": datasets.Value("int64")}
    )
    made = datasets.Dataset.from_dict({"image": images.reshape(-1, 784), "label": labels}, features=features)
    made.save_to_disk(str(folder))
    dataset = datasets.load_from_disk(str(folder)).with_format("numpy")

    def tensors(batch: dict[str, Array]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(batch["image"].reshape(-1, 28, 28)), torch.from_numpy(batch["label"])

    def loader(count: int) -> Any:
        sampler = BatchSampler(RandomSampler(dataset), BATCH, drop_last=False)
        return DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=count, collate_fn=tensors)

    return workers("huggingface", loader, lambda batch: len(batch[1]))


def grain(folder: Path, images: Array, labels: Array) -> list[Contender]:
    import grain
    import torch
    from array_record.python.array_record_module import ArrayRecordWriter

    path = str(folder / "grey.array_record")
    writer = ArrayRecordWriter(path, "group_size:1")
    for image, label in zip(images, labels, strict=True):
        writer.write(int(label).to_bytes(1, "little") + image.tobytes())
    writer.close()

    def decode(record: bytes) -> tuple[Array, int]:
        return np.frombuffer(record, np.uint8, offset=1).reshape(28, 28), record[0]

    def one_pass() -> Iterator[Any]:
        source = grain.sources.ArrayRecordDataSource([path])
        dataset = grain.MapDataset.source(source).seed(0).shuffle().map(decode).to_iter_dataset().batch(BATCH)
        for pixels, classes in dataset:
            yield torch.from_numpy(pixels), torch.from_numpy(classes)

    return [Contender("grain", looped(one_pass, lambda batch: len(batch[1])), "ArrayRecord, its own read threads")]


PEERS: dict[str, Callable[[Path, Array, Array], list[Contender]]] = {
    "mosaicml": mosaicml,
    "webdataset": webdataset,
    "litdata": litdata,
    "lance": lance,
    "huggingface": huggingface,
    "grain": grain,
}
REQUIRED = ["mosaicml-streaming", "webdataset", "litdata", "pylance", "datasets", "grain"]


if __name__ == "__main__":
    main()

"""B5: how soon does the first batch of a query come, that matches one sample in a hundred of a million?

A million samples of 64 bytes with a label from 0 to 999, of which ten labels are wanted: 256 samples, as arrays. The
first batch of the stream is timed in the order of the query and shuffled, each with no plan kept from before; whoever
comes next begins when the threads that were reading ahead have ended. The peers filter or scan, each in the way that
its documentation shows as the fastest. Lance is measured twice: scanning with a filter that is pushed down, and with a
scalar index that was built for it beforehand. WebDataset has no index at all: it reads its tar files until the batch is
full; it is given the first tenth of the samples, of which it needs a quarter.

    python benchmarks/query_scan.py --peers lance,huggingface
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from shared import harness
from shared.fixtures import Array
from shared.harness import Contender, Target

BATCH, BYTES, LABELS = 256, 64, 1000
WANTED = list(range(7, 1000, 100))
IN_ORDER, SHUFFLED = "TensorDB stream", "TensorDB stream, shuffled"
PACKAGES = ["tensordb-data", "numpy", "pymongo", "pylance", "datasets", "webdataset", "pyarrow"]

First = Callable[[], Array]
"""Gives the labels of a first batch."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", list(PEERS), argv)
    harness.quiet()
    count = 40_000 if options.quick else 1_000_000
    rng = np.random.default_rng(0)
    labels = rng.integers(0, LABELS, count)
    data = rng.integers(0, 256, (count, BYTES), np.uint8)
    with tempfile.TemporaryDirectory(prefix="tdbb") as name, harness.warehouse(Path(name)) as db:
        folder = Path(name)
        with db.data.writer("d") as writer:
            for low in range(0, count, 50_000):
                writer.add_many(x=data[low : low + 50_000], label=labels[low : low + 50_000])
        firsts: dict[str, First] = {
            IN_ORDER: lambda: ours(db, folder, shuffle=False),
            SHUFFLED: lambda: ours(db, folder, shuffle=True),
        }
        contenders = {name: Contender(name, contextlib.nullcontext) for name in firsts}  # type: ignore[arg-type]
        for peer in options.peers:
            (folder / peer).mkdir()
            found: dict[str, First] = {}
            made = harness.peer(peer, lambda p=peer, f=found: _made(PEERS[p](folder / p, data, labels), f))  # type: ignore[misc]
            contenders.update({contender.name: contender for contender in made})
            firsts.update(found)
        for round_ in range(0 if options.quick else -1, options.rounds):
            for name in harness.rotated(list(firsts), round_):
                start = time.perf_counter()
                batch = firsts[name]()
                seconds = time.perf_counter() - start
                for thread in threading.enumerate():
                    if thread.name.startswith("tensordb-stream"):
                        thread.join()
                assert len(batch) == BATCH and np.isin(batch, WANTED).all(), name
                if round_ >= 0:
                    contenders[name].rates.append(1 / seconds)
        for contender in contenders.values():
            if contender.rates:
                contender.note = f"first batch after {1000 / contender.median:,.1f} ms"
        scans = [c for c in contenders.values() if c.rates and c.name not in (IN_ORDER, SHUFFLED)]
        targets = []
        for best in ([max(scans, key=lambda c: c.median)] if scans else []):
            targets = [Target(IN_ORDER, best.name, 20), Target(SHUFFLED, best.name, 20)]
            scanning = [c for c in scans if c.name != LANCE_INDEX]
            if best.name == LANCE_INDEX and scanning:
                scan = max(scanning, key=lambda c: c.median).name
                targets += [Target(IN_ORDER, scan, 20), Target(SHUFFLED, scan, 20)]
        context = {"samples": count, "matching": int(np.isin(labels, WANTED).sum()), "bytes_a_sample": BYTES}
        title = f"B5 query: first batches a second, of {BATCH} of the 1 % that match of {count:,} samples"
        return harness.report(
            title, list(contenders.values()), targets, options, context, PACKAGES, "query_scan"
        )


def _made(firsts: dict[str, First], found: dict[str, First]) -> list[Contender]:
    found.update(firsts)
    return [Contender(name, contextlib.nullcontext) for name in firsts]  # type: ignore[arg-type]


def ours(db: Any, folder: Path, shuffle: bool) -> Array:
    shutil.rmtree(folder / "warehouse" / "cache" / "plans", ignore_errors=True)
    selection = db.data.find({"dataset": "d", "label": {"$in": WANTED}})
    stream = selection.stream(batch_size=BATCH, fields=["x", "label"], shuffle=shuffle)
    batch = next(iter(stream))
    stream.close()
    assert batch["x"].shape == (BATCH, BYTES)
    return batch["label"]  # type: ignore[no-any-return]


LANCE_SCAN, LANCE_INDEX = "lance filter", "lance filter, scalar index"


def lance(folder: Path, data: Array, labels: Array) -> dict[str, First]:
    import lance as library
    import pyarrow as pa

    rows = pa.FixedSizeListArray.from_arrays(pa.array(data.reshape(-1)), BYTES)
    wanted = ", ".join(map(str, WANTED))

    def opened(name: str, index: bool) -> First:
        path = str(folder / name)
        made = library.write_dataset(pa.table({"x": rows, "label": labels}), path)
        if index:
            made.create_scalar_index("label", "BTREE")

        def first() -> Array:
            scan = library.dataset(path).scanner(
                columns=["x", "label"], filter=f"label IN ({wanted})", batch_size=BATCH, limit=BATCH
            )
            return _first_of_arrow(scan.to_batches())

        return first

    return {LANCE_SCAN: opened("scanned", False), LANCE_INDEX: opened("indexed", True)}


def parquet(folder: Path, data: Array, labels: Array) -> dict[str, First]:
    import pyarrow as pa
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    rows = pa.FixedSizeListArray.from_arrays(pa.array(data.reshape(-1)), BYTES)
    pq.write_table(pa.table({"x": rows, "label": labels}), folder / "d.parquet", row_group_size=50_000)

    def first() -> Array:
        scan = ds.dataset(folder).scanner(filter=ds.field("label").isin(WANTED))
        return _first_of_arrow(scan.to_batches())

    return {"pyarrow parquet filter": first}


def huggingface(folder: Path, data: Array, labels: Array) -> dict[str, First]:
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    features = datasets.Features({"x": datasets.List(datasets.Value("uint8"), BYTES), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"x": data, "label": labels}, features=features).save_to_disk(str(folder))

    def first() -> Array:
        dataset = datasets.load_from_disk(str(folder)).with_format("numpy")
        found = dataset.filter(
            lambda column: np.isin(column, WANTED), input_columns=["label"], batched=True, batch_size=10_000,
            keep_in_memory=True,
        )  # fmt: skip
        batch = found[:BATCH]
        assert batch["x"].shape == (BATCH, BYTES)
        return np.asarray(batch["label"])

    return {"huggingface filter": first}


def webdataset(folder: Path, data: Array, labels: Array) -> dict[str, First]:
    import webdataset as wds

    count = max(len(labels) // 10, 40_000)
    with wds.ShardWriter(str(folder / "%04d.tar"), maxcount=20_000, verbose=0) as writer:
        for number in range(count):
            writer.write({"__key__": f"{number:07d}", "bin": data[number].tobytes(), "cls": int(labels[number])})
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    wanted = {str(label).encode() for label in WANTED}

    def first() -> Array:
        dataset = (
            wds.WebDataset(shards, shardshuffle=False)
            .select(lambda sample: sample["cls"] in wanted)
            .map(lambda sample: (np.frombuffer(sample["bin"], np.uint8), int(sample["cls"])))
            .batched(BATCH)
        )
        return np.asarray(next(iter(dataset))[1])

    return {"webdataset select": first}


def _first_of_arrow(batches: Any) -> Array:
    """The first BATCH rows, however they are cut, with their data as one array."""
    import pyarrow as pa

    found, rows = [], 0
    for batch in batches:
        found.append(batch)
        rows += batch.num_rows
        if rows >= BATCH:
            break
    table = pa.Table.from_batches(found).slice(0, BATCH).combine_chunks()
    pixels = table["x"].chunk(0).flatten().to_numpy().reshape(-1, BYTES)
    assert pixels.shape == (BATCH, BYTES)
    return table["label"].to_numpy()  # type: ignore[no-any-return]


PEERS: dict[str, Callable[[Path, Array, Array], dict[str, First]]] = {
    "lance": lance,
    "parquet": parquet,
    "huggingface": huggingface,
    "webdataset": webdataset,
}


if __name__ == "__main__":
    main()

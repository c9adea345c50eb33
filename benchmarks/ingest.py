"""B16: how fast are samples written, compared with bare inserts of ready documents and with other writers?

60,000 arrays of 784 bytes with a label, through `add_many`, and a third of them through `add`, until they are
committed. The bare insert is `insert_many` of documents that are ready, with the same fields, in a collection with the
indexes of version 0.1, and in one with those of this version: it writes no arrays. All take turns. `--before FOLDER`
measures a checkout of other code in the same rounds, in a process of its own, against a server of its own.

Beside the rate is the processor time for each sample, of the process and of the server: other programs disturb it less.

Peers write the same arrays with their own writers, which make no index: Hugging Face Datasets (`from_dict` and
`save_to_disk`), MosaicML Streaming (`MDSWriter`), WebDataset (`TarWriter`).

    python benchmarks/ingest.py --rounds 5 --before ../tensordb-before
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from shared import harness

SAMPLES = 60_000
OURS, SINGLE = "add_many", "add, one by one"
BARE, PLAIN = "bare insert_many, indexes of 0.1", "bare insert_many, these indexes"
BEFORE = ", before"
MDS, HF, TAR = "MosaicML MDSWriter", "Hugging Face from_dict", "WebDataset TarWriter"
PEERS = ("datasets", "mosaicml-streaming", "webdataset")
NEEDED = {OURS: BARE, SINGLE: SINGLE + BEFORE}
_ROOT = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", PEERS, argv, own)
    if options.serve is not None:
        serve(options.serve, options.samples)
        return {}
    samples = 600 if options.quick else options.samples
    runs: dict[str, list[dict[str, float]]] = {}
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tdbb", ignore_cleanup_errors=True)))
        ours = stack.enter_context(child(_ROOT, folder / "now", samples))
        todo: list[tuple[str, Callable[[int], dict[str, float]]]] = [
            (name, lambda round_, name=name: ours(name))
            for name in (OURS, BARE, SINGLE, PLAIN)  # type: ignore[misc]
        ]
        if options.before is not None:
            other = stack.enter_context(child(options.before, folder / "before", samples))
            todo += [(name + BEFORE, lambda round_, name=name: other(name)) for name in (OURS, SINGLE)]  # type: ignore[misc]
        for peer in options.peers:
            name, write = WRITERS[peer]
            todo.append((name, lambda round_, write=write: of_peer(write, folder, samples)))  # type: ignore[misc]
        for round_ in range(-1, options.rounds):  # the first one warms up
            for name, measure in harness.rotated(todo, max(round_, 0)):
                if name in missing:
                    continue
                try:
                    found = measure(round_)
                except ImportError as error:
                    missing[name] = f"missing: {error}"
                    continue
                if round_ >= 0:
                    runs.setdefault(name, []).append(found)
    contenders = [contender(name, runs.get(name, []), missing.get(name, "")) for name, _ in todo]
    targets = [harness.Target(OURS, BARE, 0.9), harness.Target(SINGLE, SINGLE + BEFORE, 1.4),
               harness.Target(OURS, OURS + BEFORE, 1.0), harness.Target(OURS, MDS, 0.75),
               harness.Target(OURS, TAR, 1.0)]  # fmt: skip
    context = {"samples": samples, "bytes of a sample": 784, "samples of `add`": samples // 3,
               "cpu_us": {name: {part: round(statistics.median(run[part] for run in of), 2)
                                 for part in of[0] if part.endswith("_us")} for name, of in runs.items()}}  # fmt: skip
    packages = ["tensordb-data", "pymongo", *PEERS]
    return harness.report(
        "Writing small arrays until they are committed", contenders, targets, options, context, packages, "ingest"
    )


def own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each round")
    parser.add_argument("--before", type=Path, help="a checkout of other code, to be measured too")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)


def contender(name: str, runs: Sequence[dict[str, float]], failure: str) -> harness.Contender:
    out = harness.Contender(name, contextlib.nullcontext, failure=failure)  # type: ignore[arg-type]
    out.rates = [run["rate"] for run in runs]
    if runs:
        own_, server = (statistics.median(run.get(part, 0) for run in runs) for part in ("client_us", "server_us"))
        out.note = f"CPU {own_:.1f} µs a sample" + (f" + {server:.1f} in the server" if server else "")
    return out


@contextlib.contextmanager
def child(checkout: Path, folder: Path, samples: int) -> Iterator[Callable[[str], dict[str, float]]]:
    """A process that runs the code of a checkout, and measures one thing at a time."""
    folder.mkdir()
    search = os.pathsep.join([str(checkout.resolve()), str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(folder), "--samples", str(samples)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": search},
    )  # fmt: skip
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None

    def ask(name: str) -> dict[str, float]:
        stdin.write(name + "\n")
        stdin.flush()
        found: dict[str, float] = json.loads(stdout.readline())
        return found

    try:
        yield ask
    finally:
        stdin.close()
        process.wait()
        stdout.close()


def serve(folder: Path, samples: int) -> None:
    """In the child: measure what each line of the input names."""
    import psutil

    import tensordb_data

    checkout, code = os.environ["PYTHONPATH"].split(os.pathsep)[0], str(tensordb_data.__file__)
    if not code.startswith(checkout):
        raise ImportError(f"expected the code of {checkout}, found {code}")
    images, labels = arrays(samples)
    with harness.warehouse(folder) as db:
        server = psutil.Process(db.database.client.admin.command("serverStatus")["pid"])
        measures = {
            OURS: lambda name: many(db, name, images, labels),
            SINGLE: lambda name: single(db, name, images[: samples // 3], labels),
            BARE: lambda name: bare(db, images, labels, unique=True),
            PLAIN: lambda name: bare(db, images, labels, unique=False),
        }
        for number, line in enumerate(sys.stdin):
            count, run, tidy = measures[line.strip()](f"d{number}")
            before, own_, begin = sum(server.cpu_times()[:2]), time.process_time(), time.perf_counter()
            run()
            wall, client = time.perf_counter() - begin, time.process_time() - own_
            used = sum(server.cpu_times()[:2]) - before
            tidy()
            found = {"rate": count / wall, "client_us": 1e6 * client / count, "server_us": 1e6 * used / count}
            print(json.dumps(found), flush=True)


Measured = tuple[int, Callable[[], object], Callable[[], object]]
"""How many samples, what is timed, and what comes after that."""


def many(db: Any, name: str, images: Any, labels: Any) -> Measured:
    def run() -> None:
        with db.data.writer(name) as writer:
            writer.add_many(image=images, label=labels)

    return len(images), run, lambda: db.data.drop(name)


def single(db: Any, name: str, images: Any, labels: Any) -> Measured:
    given = labels.tolist()

    def run() -> None:
        with db.data.writer(name) as writer:
            for image, label in zip(images, given, strict=False):
                writer.add(image=image, label=label)

    return len(images), run, lambda: db.data.drop(name)


def bare(db: Any, images: Any, labels: Any, *, unique: bool) -> Measured:
    """Documents like those of the samples, ready before the clock starts."""
    from bson import ObjectId
    from pymongo import IndexModel

    data = db.database["bare"]
    data.drop()
    sequence = [("_tdb.p", 1), ("dataset", 1), ("_tdb.s", 1)]
    data.create_indexes([
        IndexModel(sequence, unique=unique),
        IndexModel([("_tdb.p", 1), ("dataset", 1), ("label", 1), ("_tdb.s", 1)]),
        IndexModel([("_tdb.p", 1), ("tags", 1)]),
    ])  # fmt: skip
    segment, size = ObjectId(), images[0].nbytes
    docs = [
        {"_id": ObjectId(), "dataset": "d", "tags": [], "label": label,
         "_tdb": {"p": "default", "s": i, "b": {"image": {"k": segment, "o": size * i, "n": size}}}}
        for i, label in enumerate(labels.tolist(), 1)
    ]  # fmt: skip
    return len(docs), lambda: data.insert_many(docs), data.drop


def arrays(count: int) -> tuple[Any, Any]:
    """Arrays of 28 × 28 bytes that zstd cannot make smaller, and labels."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 28, 28), np.uint8), rng.integers(0, 10, count)


# Peers


def of_peer(write: Callable[[Path, Any, Any], None], folder: Path, samples: int) -> dict[str, float]:
    images, labels = arrays(samples)
    place = folder / "peer"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    own_, begin = time.process_time(), time.perf_counter()
    write(place, images, labels)
    wall = time.perf_counter() - begin
    return {"rate": samples / wall, "client_us": 1e6 * (time.process_time() - own_) / samples}


def hugging_face(place: Path, images: Any, labels: Any) -> None:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Array2D((28, 28), "uint8"), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).save_to_disk(str(place / "hf"))


def mosaic(place: Path, images: Any, labels: Any) -> None:
    harness.allow_streaming()
    from streaming import MDSWriter  # type: ignore[import-not-found]

    columns = {"image": "ndarray:uint8:28,28", "label": "int"}
    with MDSWriter(out=str(place / "mds"), columns=columns) as out:
        for image, label in zip(images, labels.tolist(), strict=True):
            out.write({"image": image, "label": label})


def webdataset(place: Path, images: Any, labels: Any) -> None:
    import webdataset as wds  # type: ignore[import-not-found]

    with wds.TarWriter(str(place / "shard.tar")) as out:
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            out.write({"__key__": f"{i:08d}", "npy": image, "cls": label})


WRITERS: dict[str, tuple[str, Callable[[Path, Any, Any], None]]] = {
    "datasets": (HF, hugging_face),
    "mosaicml-streaming": (MDS, mosaic),
    "webdataset": (TAR, webdataset),
}


if __name__ == "__main__":
    main()

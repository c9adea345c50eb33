"""B16: what does it cost that samples point into files which stay where they are?

A stream over a tar file in place against one over its copy in segments: JPEGs of 500 × 375, decoded and resized to 224,
shuffled batches of 64, warm; and their encoded bytes alone. And the ingest of a folder of them: in place, where each
file is read once, against the copy, with and without the decode that looks for damage; bytes of the index of each.

    python benchmarks/in_place.py
"""

from __future__ import annotations

import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from images import shrink
from shared import harness
from shared.fixtures import photos
from shared.harness import Contender, Target, looped

from tensordb_data import Bytes, TensorDB

BATCH = 64
LARGE = 4 << 20
"""Bytes behind each JPEG, for an ingest of large files."""
PACKAGES = ["tensordb-data", "numpy", "pymongo", "opencv-python-headless", "simplejpeg"]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = harness.arguments(__doc__ or "", [], argv)
    harness.quiet()
    import cv2

    cv2.setNumThreads(0)
    jpegs = photos(65 if options.quick else 2_000)
    with tempfile.TemporaryDirectory(prefix="tdbb") as folder:
        place = Path(folder)
        (place / "files").mkdir()
        with tarfile.open(place / "files/a.tar", "w") as tar:
            for number, jpeg in enumerate(jpegs):
                info = tarfile.TarInfo(f"{number:06}.jpg")
                info.size = len(jpeg)
                tar.addfile(info, io.BytesIO(jpeg))
        with TensorDB(place / "w", roots={"files": place / "files"}) as db:
            for kind in (None, Bytes()):
                types = {} if kind is None else {"types": {"jpg": kind}}
                for name, stays in (("place", True), ("copy", False)):
                    db.data.ingest(place / "files/a.tar", f"{name}{kind}", in_place=stays, verify="none", **types)
            contenders = []
            for kind, transform in ((None, shrink_jpg), (Bytes(), None)):
                for name in ("place", "copy"):
                    selection = db.data.find({"dataset": f"{name}{kind}"}, fields=["jpg"])
                    stream = selection.stream(batch_size=BATCH, shuffle=True, seed=0, transform=transform)
                    title = f"{'decoded' if kind is None else 'encoded'}, {'in place' if name == 'place' else 'copied'}"
                    contenders.append(Contender(title, looped(lambda s=stream: s, lambda b: len(b["jpg"]))))
            harness.race(contenders, rounds=options.rounds, seconds=options.seconds)
        targets = [Target(f"{what}, in place", f"{what}, copied", 0.95) for what in ("decoded", "encoded")]
        context: dict[str, Any] = {
            "samples": len(jpegs),
            "batch": BATCH,
            "bytes_a_sample": sum(map(len, jpegs)) // len(jpegs),
        }
        large = [jpeg + os.urandom(LARGE) for jpeg in jpegs[: 20 if options.quick else 150]]
        context["ingest"] = [ingests(place, files, 1 if options.quick else 3) for files in (jpegs, large)]
        title = f"B16 in place: {len(jpegs):,} JPEGs of 500 × 375 ({context['bytes_a_sample']:,} B), batches of {BATCH}"
        return harness.report(title, contenders, targets, options, context, PACKAGES, "in_place")


def shrink_jpg(sample: dict[str, Any]) -> dict[str, Any]:
    return {"jpg": shrink({"image": sample["jpg"]})["image"]}


def ingests(place: Path, jpegs: Sequence[bytes], rounds: int) -> dict[str, Any]:
    """Files a second of a folder, by way, the median of some rounds in turns; and bytes that each writes."""
    size = sum(map(len, jpegs)) // len(jpegs)
    folder, blobs = place / f"photos{size}", place / f"w{size}/blobs"
    folder.mkdir()
    for number, jpeg in enumerate(jpegs):
        (folder / f"{number:06}.jpg").write_bytes(jpeg)
    seconds: dict[str, list[float]] = {}
    written: dict[str, float] = {}
    with TensorDB(blobs.parent, roots={"photos": folder}) as db:
        for _ in range(rounds):
            for verify in ("none", "decode"):
                for stays in (True, False):
                    name = f"{'in place' if stays else 'copied'}, verify={verify}"
                    before, began = objects(blobs), time.perf_counter()
                    report = db.data.ingest(folder, "d", in_place=stays, verify=verify)
                    seconds.setdefault(name, []).append(time.perf_counter() - began)
                    assert report.added == len(jpegs), report
                    written[name] = (objects(blobs) - before) / len(jpegs)
                    db.data.drop("d")
    rates = {name: len(jpegs) / statistics.median(each) for name, each in seconds.items()}
    for name, rate in rates.items():
        print(f"ingest of {size:,} B, {name}: {rate:,.0f} files/s, {written[name]:,.0f} bytes a sample in the store")
    return {"bytes_a_file": size, "files_per_s": rates, "bytes_a_sample": written}


def objects(folder: Path) -> int:
    return sum(path.stat().st_size for path in walk(folder))


def walk(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()

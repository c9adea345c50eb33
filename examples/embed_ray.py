"""Embed many small pictures on all cores with Ray, write the vectors back, and search by them.

    pip install 'tensordb-data[ray,embedded]'
    python examples/embed_ray.py warehouse                       # 100,000 pictures of 8 x 8
    python examples/embed_ray.py mongodb://host/db --samples 1000000

Run it again: pictures that are there are not written twice, and those that have a vector are not embedded again.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import ray

from tensordb_data import TensorDB
from tensordb_data.ray import annotate, read

DATASET, SOURCE, SIZE = "pictures", "model:projection-1", 32


def add_pictures(db: TensorDB, samples: int) -> None:
    """Pictures of ten kinds, with noise. Each is known by its number."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 255, (10, 8, 8))
    with db.data.writer(DATASET, existing="skip") as writer:
        for start in range(0, samples, 10_000):
            numbers = np.arange(start, min(samples, start + 10_000))
            noise = rng.normal(0, 20, (len(numbers), 8, 8))
            images = np.clip(kinds[numbers % 10] + noise, 0, 255).astype(np.uint8)
            writer.add_many(image=images, kind=numbers % 10, number=numbers, _key=numbers)


class Embed:
    """The model. Each process of Ray makes one, and keeps it: here a projection, elsewhere a network on a GPU."""

    def __init__(self) -> None:
        self.weights = np.random.default_rng(1).normal(size=(64, SIZE)).astype(np.float32)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        pixels = batch["image"].reshape(len(batch["image"]), -1).astype(np.float32) / 255 - 0.5
        return {"_id": batch["_id"], "embedding": np.tanh(pixels @ self.weights)}


def main(warehouse: str, samples: int) -> int:
    """Returns how many pictures were embedded."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False)  # or ray.init("auto"), in a cluster
    with TensorDB(warehouse) as db:
        add_pictures(db, samples)
        new = db.data.find({"dataset": DATASET, "embedding": {"$exists": False}})
        begun, sink = time.monotonic(), annotate(db, source=SOURCE)
        if new.count():
            cores = max(1, int(ray.cluster_resources()["CPU"]) - 1)  # one is left for reading and writing
            read(new, fields=["image"]).map_batches(Embed, concurrency=cores).write_datasink(sink)
        count = 0 if sink.report is None else sink.report.written
        print(f"{count} pictures embedded in {time.monotonic() - begun:.1f} s")

        pictures = db.data.find({"dataset": DATASET})
        one = pictures.first()
        for near in pictures.similar(to=one, field="embedding", k=5):
            print(f"kind {near['kind']} is near to kind {one['kind']}: {near.score:.3f}")
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("warehouse", help="a folder or a mongodb:// address")
    parser.add_argument("--samples", type=int, default=100_000)
    given = parser.parse_args()
    main(given.warehouse, given.samples)

"""gc and fsck hold no more of an index that is ten times as large."""

from __future__ import annotations

import gc as garbage
import importlib
import tracemalloc

import pytest

from tensordb_data import TensorDB
from tensordb_data.housekeeping import gc, segment_usage
from tensordb_data.housekeeping.fsck import params, walk
from tests.conftest import ROOT

FEW, MANY = 150, 1_500
BATCH = 50


def peak(act):
    """Bytes that Python held at most during a call, above what it held before."""
    garbage.collect()
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("way", ["gc --dry-run", "gc", "fsck"])
def test_ten_times_as_many_documents(mongo_uri, monkeypatch, way):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("housekeeping")
    monkeypatch.setattr(benchmark, "PER_SET", BATCH)
    for module in (gc, segment_usage, walk, params):
        monkeypatch.setattr(module, "BATCH", BATCH)
    monkeypatch.setattr(segment_usage, "_ANSWER", BATCH)
    found = []
    for count in (FEW, MANY):
        with TensorDB(mongo_uri, blobs="memory://") as db:
            benchmark.fill(db, count)
            if way == "fsck":
                found.append(peak(lambda db=db: db.fsck()))
            else:
                found.append(peak(lambda db=db: db.gc(grace=0, dry_run=way != "gc")))
            for name in ("data", "segments", "tensors", "params"):
                db.database[name].delete_many({})
    few, many = found
    assert many < few + 500_000, f"{few / 1e6:.1f} MB for {FEW:,} documents, {many / 1e6:.1f} MB for {MANY:,}"

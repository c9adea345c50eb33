"""Each rank gets its part, in every launcher and mode: each sample comes once over all ranks, or an error says why not.

Two processes run all cells. MATRICES=all runs every combination, and more launchers.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensordb_data import TensorDB
from tests import warm
from tests.integration.torch import rank_cells
from tests.integration.torch.rank_cells import N

ALL = os.environ.get("MATRICES") == "all"
LIMIT = 1200 if ALL else 280
"""Seconds."""


def cells() -> list[str]:
    found = [f"torch/{mode}/{made}" for mode, made in product(("batch", "sample"), ("before", "after"))]
    found += ["torch/batch/forkserver", "torch/sample/fork", "torch/batch/dp", "torch/batch/tp", "torch/sample/tp"]
    choices = (("batch", "sample"), ("None", "True", "False"), ("before", "after"), ("", "/fork", "/forkserver"))
    accelerate = [f"accelerate/{mode}/{dispatch}/{made}{how}" for mode, dispatch, made, how in product(*choices)]
    found += accelerate if ALL else [cell for cell in accelerate if "fork" not in cell or cell in SOME]
    found += [f"accelerate/{mode}/own{workers}" for mode in ("batch", "sample") for workers in ("", "/fork")]
    found += ["accelerate/batch/None/alone", "accelerate/sample/False/alone"]
    found += ["accelerate/batch/None/ranks", "accelerate/sample/False/ranks", "accelerate/sample/False/ranks/fork"]
    return [*found, *TRAINERS, "fsdp1", "parallel/batch", "parallel/batch/tp"]


SOME = (
    "accelerate/batch/None/before/forkserver", "accelerate/sample/False/after/fork",
    "accelerate/batch/False/after/fork",
)  # fmt: skip
TRAINERS = ["lightning/batch/before", "trainer/sample/None/endless", "trainer/sample/False/endless/before"]
RESUMED = ["resume/accelerate/epochs", "resume/accelerate/False", "resume/lightning/batch", "resume/trainer/None"]
if ALL:
    TRAINERS += ["lightning/sample/after/fork", "trainer/sample/False/endless"]
    RESUMED += ["resume/accelerate/own", "resume/accelerate/None", "resume/trainer/False"]


def run(uri: str, folder: Path, cells: list[str]) -> dict[str, list[Any]]:
    """What each of two ranks got in each cell."""
    blobs = (folder / "blobs").as_uri()
    with TensorDB(uri, blobs=blobs) as db, db.data.writer("numbers") as writer:
        writer.add_many(label=np.arange(N))
    command = [sys.executable, rank_cells.__file__, uri, blobs]
    ranks = [
        warm.Popen([*command, str(rank), str(folder / "store"), *cells], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        printed = [rank.communicate(timeout=LIMIT)[0].splitlines() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0]
    found: dict[str, list[Any]] = {}
    for lines in printed:
        for cell, got in (json.loads(line) for line in lines if line.startswith('["')):
            found.setdefault(cell, []).append(got)
    return found


def judged(got: list[Any]) -> str:
    """What two ranks got, in words."""
    if any(isinstance(one, str) for one in got):
        return str(next(one for one in got if isinstance(one, str)))
    for epoch in zip(*got, strict=True):
        if sorted(itertools.chain(*epoch)) != list(range(N)):
            each = " + ".join(str(len(one)) for one in epoch)
            return "alike" if epoch[0] == epoch[1] else f"{each}, {len(set(itertools.chain(*epoch)))} distinct"
        if len({len(one) for one in epoch}) > 1:
            return "unequal"
    return "each once"


def expected(cell: str) -> str:
    parts = cell.split("/")
    if cell == "fsdp1":
        return "CheckpointError: the model is wrapped in FullyShardedDataParallel .* use fully_shard"
    if parts[0] == "parallel":
        return "each once" if "tp" in parts else "CheckpointError: the model is parallel over 'tp', .*Shard.mesh=mesh"
    if "tp" in parts:
        return "alike"
    if parts[0] == "accelerate" and "ranks" in parts:
        return "QueryError: .* would divide it once more: leave rank= and world_size= out, or make the loader with"
    if parts[:3] in (["accelerate", "batch", "False"],):
        return "QueryError: IterableDatasetShard of .* leave dispatch_batches=False out"
    return "each once"


@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.slow
def test_each_sample_comes_once_over_all_ranks_and_runs_resume_exactly(mongo_uri: str, tmp_path: Path) -> None:
    reason = "these are not installed: pip install accelerate lightning transformers"
    for library in ("accelerate", "lightning", "transformers"):
        pytest.importorskip(library, reason=reason)
    wanted = cells()
    found = run(mongo_uri, tmp_path, [*wanted, *RESUMED])
    assert all("WORLD_SIZE=2 is in the environment" in error for error in found.pop("too early"))
    losses = {cell: found.pop(cell) for cell in RESUMED}
    wrong = {cell: judged(got) for cell, got in found.items() if not re.match(expected(cell), judged(got), re.DOTALL)}
    assert wrong == {} and list(found) == wanted
    for cell, got in found.items():
        if expected(cell) == "each once" and cell.startswith(("torch", "accelerate")):  # loops that count epochs
            assert got[0][0] != got[0][1], cell
    for cell, ranks in losses.items():
        assert all(len(whole) == 12 and resumed == whole for whole, resumed in ranks), cell

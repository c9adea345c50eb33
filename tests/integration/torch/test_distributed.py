"""Ranks come from torch.distributed: a process each, and equal numbers of batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tensordb_data import TensorDB

SCRIPT = """
import itertools, json, sys
import torch.distributed as dist
from torch.utils.data import DataLoader
from tensordb_data import TensorDB, mix
from tensordb_data.torch import QueryDataset

if __name__ == "__main__":
    uri, rank, store, context = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=3)
    db = TensorDB(uri, blobs=sys.argv[5])
    sel = db.data.find({"dataset": "numbers"})
    options = {"num_workers": 2, "multiprocessing_context": context, "persistent_workers": True}
    for dataset, size in [
        (QueryDataset(sel, batch_size=16, shuffle=True, passes=1), None),
        (QueryDataset(sel, shuffle=True, passes=1), 16),
    ]:
        loader = DataLoader(dataset, batch_size=size, **options)
        whole = [batch["label"].tolist() for batch in loader]
        dataset.load_state_dict(dataset.advance(dataset.state_dict(), 3, loader))
        assert [batch["label"].tolist() for batch in loader] == whole[3:]
        print(json.dumps(whole))
    halves = [db.data.find({"dataset": "numbers", "label": part}) for part in ({"$lt": 100}, {"$gte": 100})]
    both = mix([(half.stream(batch_size=16, shuffle=True), 1) for half in halves])
    loader = DataLoader(QueryDataset(both), batch_size=None, **options)
    print(json.dumps([batch["label"].tolist() for batch in itertools.islice(loader, 12)]))
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_three_ranks_share_each_pass_in_equal_numbers_of_batches(mongo_uri: str, tmp_path: Path, context: str) -> None:
    blobs = (tmp_path / "blobs").as_uri()
    with TensorDB(mongo_uri, blobs=blobs) as db, db.data.writer("numbers") as writer:
        writer.add_many(label=list(range(301)))
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT)
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), mongo_uri, str(rank), str(tmp_path / "store"), context, blobs],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    printed = [rank.communicate(timeout=100)[0].splitlines() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    for mode in (0, 1):
        each: list[Any] = [json.loads(lines[mode]) for lines in printed]
        assert len({len(batches) for batches in each}) == 1
        assert sorted(label for batches in each for batch in batches for label in batch) == list(range(301))
    rounds = [
        [label for batch in batches for label in batch]
        for batches in zip(*(json.loads(lines[2]) for lines in printed), strict=True)
    ]
    mixed = [label for labels in rounds for label in labels]
    assert [len(labels) for labels in rounds] == [48] * 12
    halves = [label for label in mixed if label < 100], [label for label in mixed if label >= 100]
    assert sorted(halves[0][:100]) == list(range(100)) and sorted(halves[1][:201]) == list(range(100, 301))

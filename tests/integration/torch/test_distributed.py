"""Ranks come from torch.distributed: a process each, and equal numbers of batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tensordb_data import TensorDB
from tests import warm

SCRIPT = """
import itertools, json, multiprocessing, sys
import torch.distributed as dist
from torch.utils.data import DataLoader
from tensordb_data import TensorDB, mix
from tensordb_data.torch import QueryDataset

if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["tensordb_data.torch"])
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


def run(program: str, folder: Path, uri: str, *arguments: str) -> list[list[str]]:
    """What each of three ranks prints, by lines."""
    script = folder / "rank.py"
    script.write_text(program)
    ranks = [
        warm.Popen(
            [sys.executable, str(script), uri, str(rank), str(folder / "store"), *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        printed = [rank.communicate(timeout=100)[0].splitlines() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    return printed


@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_three_ranks_share_each_pass_in_equal_numbers_of_batches(mongo_uri: str, tmp_path: Path, context: str) -> None:
    blobs = (tmp_path / "blobs").as_uri()
    with TensorDB(mongo_uri, blobs=blobs) as db, db.data.writer("numbers") as writer:
        writer.add_many(label=list(range(301)))
    printed = run(SCRIPT, tmp_path, mongo_uri, context, blobs)
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


HOSTS = """
import itertools, json, sys
import torch.distributed as dist
from torch.utils.data import DataLoader
from tensordb_data import TensorDB
from tensordb_data.errors import TensorDBError
from tensordb_data.stream.passes.planner import Planner
from tensordb_data.torch import QueryDataset

if __name__ == "__main__":
    uri, rank, store, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=3)
    db = TensorDB(uri, blobs=f"file://{folder}/blobs", cache=f"{folder}/host-{rank}")
    sel = db.data.find({"dataset": "numbers"})
    for size in (None, 16):
        dataset = QueryDataset(sel, batch_size=None if size else 16, fields=["label"], shuffle=True)
        labels = []
        for number, batch in enumerate(DataLoader(dataset, batch_size=size)):
            labels += batch["label"].tolist()
            if number == 1:  # before the end of the first pass
                dist.barrier()
                if rank == 0:
                    sel.update({"$inc": {"label": 1000}})
                dist.barrier()
            if number == 14:
                break
        print(json.dumps(labels))

    def refused(query):
        try:
            next(iter(QueryDataset(db.data.find(query), batch_size=16, shuffle=True)))
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
        else:
            print("delivered")

    refused({"dataset": "none"})
    if rank == 0:  # alone, while the others are elsewhere
        dataset = QueryDataset(db.data.find({"dataset": "numbers", "label": {"$gte": 0}}), batch_size=16, passes=1)
        print(sum(len(batch["label"]) for batch in dataset))
        def fails(self, *args):
            raise OSError("no room")
        Planner.state_now = fails
    else:
        print("elsewhere")
    dist.barrier()
    refused({"dataset": "numbers"})
    dist.barrier()
    dist.destroy_process_group()
"""


def test_hosts_that_share_no_cache_agree_and_none_waits_for_another(mongo_uri: str, tmp_path: Path) -> None:
    n = 120
    with TensorDB(mongo_uri, blobs=(tmp_path / "blobs").as_uri()) as db, db.data.writer("numbers") as writer:
        writer.add_many(label=list(range(n)))
    printed = run(HOSTS, tmp_path, mongo_uri, str(tmp_path))
    for mode, first in ((0, 0), (1, 1000)):
        each: list[Any] = [json.loads(lines[mode]) for lines in printed]
        for number in range(4):  # of the passes, of which each rank has a third
            seen = sorted(label for labels in each for label in labels[n // 3 * number : n // 3 * (number + 1)])
            assert seen == list(range(first + 1000 * (number > 0), first + n + 1000 * (number > 0)))
    assert all(lines[2].startswith("NotFoundError: there is no dataset 'none'") for lines in printed)
    assert [lines[3] for lines in printed] == [str(n // 3), "elsewhere", "elsewhere"]
    assert [lines[4] for lines in printed] == ["OSError: no room", "delivered", "delivered"]

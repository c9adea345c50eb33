"""However a training script ends, its workers end too."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from tensordb_data import TensorDB
from tests import warm

SCRIPT = """
import sys
from torch.utils.data import DataLoader
from tensordb_data import TensorDB
from tensordb_data.torch import QueryDataset

if __name__ == "__main__":
    db = TensorDB(sys.argv[1], blobs=sys.argv[2])
    dataset = QueryDataset(db.data.find({"dataset": "numbers"}), batch_size=8, shuffle=True)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=sys.argv[3])
    for number, batch in enumerate(loader):
        if number == 4:
            print("going", flush=True)
"""


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_script(mongo_uri: str, tmp_path: Path, context: str, end: signal.Signals) -> None:
    blobs = (tmp_path / "blobs").as_uri()
    with TensorDB(mongo_uri, blobs=blobs) as db, db.data.writer("numbers") as writer:
        writer.add_many(image=np.zeros((100, 600), np.uint8), label=np.arange(100))
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), mongo_uri, blobs, context]
    with warm.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as train:
        assert train.stdout is not None and train.stdout.readline() == "going\n"
        workers = psutil.Process(train.pid).children(recursive=True)
        assert len(workers) >= 2
        train.send_signal(end)
        train.communicate(timeout=60)
    assert train.returncode != 0
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive

"""A signal to the whole process group, as terminals and schedulers send it: workers end at once, the loop saves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.integration.checkpoint import loops

LOOP = """
import sys
import torch
from tensordb_data import TensorDB
from tests.integration.checkpoint import loops
from tensordb_data.torch import StepCheckpointer

torch.set_num_threads(1)
with TensorDB(sys.argv[1], blobs=sys.argv[2]) as db:
    loader = getattr(loops, sys.argv[3])(db, workers=2)
    model = loops.net()
    optimizer, _ = loops.sgd(model)
    done = 0
    try:
        with StepCheckpointer(db, run="r", model=model, optimizer=optimizer, every=10**6, stream=loader) as ckpt:
            for step, batch in enumerate(loader, 1):
                loops.one_step(model, optimizer, None, batch)
                if step % 2 == 0 or sys.argv[4] == "1":
                    done = step
                    ckpt.step()
                if step == 12:
                    print("ready", flush=True)
    finally:
        print(done, flush=True)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
@pytest.mark.parametrize("mode", ["batchwise", "samplewise"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_workers_that_are_gone_keep_no_step_from_being_saved(
    db, mongo_uri, warehouse_dir, number, status, mode, accumulate
):
    loops.fill(db)
    command = [sys.executable, "-c", LOOP, mongo_uri, f"file://{warehouse_dir}/blobs", mode, str(accumulate)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    with process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, number)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == status
    saved = [row.step for row in db.params.find({"run": "r"})]
    assert saved == [int(out.split()[-1])] or (accumulate == 2 and saved == [])

"""A signal to the whole process group, as terminals and schedulers send it: workers end at once, the loop saves.

Four of the eight combinations, in which each two values meet, run always; MATRICES=all runs all of them.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys

import pytest

from tests import warm
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


STATUS = {signal.SIGTERM: 143, signal.SIGINT: -signal.SIGINT}
ALL = list(itertools.product(STATUS, ("batchwise", "samplewise"), (1, 2)))
SOME = [ALL[0], ALL[3], ALL[5], ALL[6]]


def test_the_smaller_matrix_meets_every_pair():
    for kinds in itertools.combinations(range(3), 2):
        assert len({tuple(row[kind] for kind in kinds) for row in SOME}) == 4


@pytest.mark.parametrize(("number", "mode", "accumulate"), ALL if os.environ.get("MATRICES") == "all" else SOME)
def test_workers_that_are_gone_keep_no_step_from_being_saved(db, mongo_uri, warehouse_dir, number, mode, accumulate):
    loops.fill(db)
    command = [sys.executable, "-c", LOOP, mongo_uri, f"file://{warehouse_dir}/blobs", mode, str(accumulate)]
    process = warm.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    with process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, number)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == STATUS[number]
    saved = [row.step for row in db.params.find({"run": "r"})]
    assert saved == [int(out.split()[-1])] or (accumulate == 2 and saved == [])

"""kill -9 at random moments: what is found is a whole set of one step, and nothing acknowledged is lost."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import time

from tensordb_data.checkpoint.run_saver import newest_set
from tensordb_data.params.load import load_parts, verify
from tests import warm

SCRIPT = """
import sys
import numpy as np
from tensordb_data import TensorDB
from tensordb_data.checkpoint.checkpointer import Checkpointer

db = TensorDB(sys.argv[1], blobs=sys.argv[2])
w = {name: np.zeros(20_000) for name in "abcdef"} | {"frozen": np.ones(50_000)}
ckpt = Checkpointer(db.warehouse, "r", lambda step: {"model": w, "training": {"step": step}}, every=1)
found = ckpt.load(None)
step = found[1]["training"]["step"] if found else 0
ckpt.start_at(step)
print(step, flush=True)
while True:
    step += 1
    for name in "abcdef":
        w[name].fill(step)
    ckpt.end_step(step, {"loss": 1.0})
    if step % 3 == 0:
        ckpt.wait()
        print(step, flush=True)
"""


def test_twenty_rounds(db, mongo_uri, warehouse_dir):
    dice = random.Random(0)
    acknowledged = 0
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), mongo_uri, f"file://{warehouse_dir}/blobs"]
    for number in range(20):
        process = warm.Popen(command, stdout=subprocess.PIPE, text=True)
        began = int(process.stdout.readline())
        assert began >= acknowledged
        if number % 4 == 3:  # however slow this machine is, some saves are acknowledged
            acknowledged = int(process.stdout.readline())
        time.sleep(dice.uniform(0, 0.15))
        process.kill()
        out, _ = process.communicate(timeout=30)
        acknowledged = max([began, acknowledged, *map(int, out.split())])
        document = newest_set(db.warehouse, "r")
        if document is None:
            assert acknowledged == 0
            continue
        assert document["step"] >= acknowledged
        parts = load_parts(db.warehouse, document, None, "auto")
        values = {float(v) for name in "abcdef" for v in set(parts["model"][name])}
        assert values == {float(document["step"])} and parts["training"]["step"] == document["step"]
        assert (parts["model"]["frozen"] == 1).all()
    assert acknowledged > 0
    assert all(verify(db.warehouse, row._doc) for row in db.params.find({"run": "r"}))
    # the server keeps what a killed client had open for a minute; the database is to be dropped now
    db.database.client.admin.command({"killAllSessions": []})

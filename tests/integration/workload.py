"""Entry points of the jobs in the tests of workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


def mean(data, scale=1.0, *, job, db):
    """All that a job may be given."""
    assert db == data.db and job["args"]["scale"] == scale
    labels = [sample["label"] for sample in data]
    print("mean of", len(labels), "labels")
    print("to stderr \udcff".encode(errors="surrogateescape").decode(errors="replace"), file=sys.stderr)
    job.heartbeat(0.5)
    return {"mean": scale * sum(labels) / len(labels)}


def add(a, b):
    return a + b


def fail(path):
    """Fails once."""
    if not Path(path).exists():
        Path(path).touch()
        raise ValueError("not yet")
    return "second time"


def unserialisable():
    return {"when": object()}


def results():
    import numpy as np

    return {"acc": np.float32(0.5), "confusion": np.eye(2), 0: "zero", "left": object()}


def exits():
    print("all is done")
    sys.exit(0)


def exits_when_told(path):
    """Saves and exits when it is asked to end, as training loops do."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Path(path).write_text(str(os.getpid()))
    while True:
        time.sleep(60)


def leaves_a_stranger(path):
    """Leaves behind a process that nothing says to be of this job, and that holds its output."""
    command = ["setsid", "env", "-i", "sh", "-c", "echo $$; exec sleep 600"]
    stranger = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    Path(path).write_text(stranger.stdout.readline())
    print("left")


def devices(path):
    """Waits for another like it; the GPUs that it sees."""
    mine = os.environ["CUDA_VISIBLE_DEVICES"]
    Path(path, mine).touch()
    while len(list(Path(path).iterdir())) < 2:
        time.sleep(0.02)
    return mine


def killed():
    print("about to go")
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(path):
    os._exit(0)


def forks(path):
    """Leaves behind a child that ignores SIGTERM, one in a session of its own, and one that comes out of the job."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for own_session in (False, True):
        if os.fork() == 0:
            if own_session:
                os.setsid()
            with Path(path).open("a") as file:
                file.write(f"{os.getpid()}\n")
            while True:
                time.sleep(60)
    while not Path(path).exists() or len(Path(path).read_text().split()) < 2:
        time.sleep(0.01)
    return {"pid": os.getpid()} if os.fork() else {"pid": 0}


def lingers(path):
    """Has a result, and a thread that keeps its process from ending."""
    Path(path).write_text(str(os.getpid()))
    threading.Thread(target=threading.Event().wait).start()
    return "long done"


def stubborn(path):
    """Ignores that it was cancelled, and SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(path).write_text(str(os.getpid()))
    while True:
        time.sleep(60)


def obeys(path, job):
    """Ends when it was cancelled."""
    Path(path).write_text(str(os.getpid()))
    try:
        while True:
            job.heartbeat()
            time.sleep(0.02)
    finally:
        Path(path).with_suffix(".end").touch()


def waits(path):
    """Until a file appears."""
    Path(path).with_suffix(".begun").write_text(str(os.getpid()))
    while not Path(path).exists():
        time.sleep(0.02)
    return "waited"


def prints(n):
    for i in range(n):
        print(i)
    sys.stdout.buffer.write(b"x" * 20_000 + b"\n\xff\n")


def counted(number, seconds, job):
    """Takes a while, and tells which attempt it was."""
    time.sleep(seconds)
    return {"number": number, "attempt": job["attempts"]}

"""SIGTERM, SIGHUP, Ctrl-C and others: what was trained is saved, and the process ends as it would have ended."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import textwrap

import pytest

from tensordb_data.checkpoint.checkpointer import Checkpointer
from tests import warm

HEAD = """
import os, signal, sys, threading, time
import numpy as np
from tensordb_data import SaveOptions, TensorDB
from tensordb_data.checkpoint.checkpointer import Checkpointer
from tensordb_data.checkpoint.batch_counter import BatchCounter

db = TensorDB(sys.argv[1], blobs=sys.argv[2])
w = np.zeros(10_000)

class Source:
    def __init__(self, n=10**9, hold=False): self.n, self.hold = n, hold
    def __iter__(self):
        yield from range(self.n)
        print("waiting", flush=True)
        threading.Event().wait()

def make(source=None, **options):
    batch_counter = None if source is None else BatchCounter(source)
    return Checkpointer(db.warehouse, "r", lambda step: {"model": w, "training": {"step": step}}, every=1000,
                        batch_counter=batch_counter, **options)
"""


@contextlib.contextmanager
def child(mongo_uri, folder, script):
    command = [sys.executable, "-c", HEAD + textwrap.dedent(script), mongo_uri, f"file://{folder}/blobs"]
    process = warm.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def saved(db):
    found = {row.step: row.load() for row in db.params.find({"run": "r"})}
    assert all((w == step).all() for step, w in found.items())
    return sorted(found)


LOOP = """
    ckpt = make()
    try:
        for step in range(1, 10**9):
            w += 1
            ckpt.end_step(step, {})
            if step == 20:
                print("ready", flush=True)
    finally:
        print("left after", step, flush=True)
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT), (signal.SIGHUP, 129)]
)
def test_the_step_at_hand_is_finished_and_saved(db, mongo_uri, warehouse_dir, number, status):
    with child(mongo_uri, warehouse_dir, LOOP) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=100)
    assert process.returncode == status
    assert saved(db)[-1] == int(out.split()[-1])
    assert f"{number.name}: saving at the end of this step" in err


def test_a_loop_that_waits_for_data_is_saved_while_it_waits(db, mongo_uri, warehouse_dir):
    script = """
        source = Source(n=7)
        ckpt = make(source)
        for step, _ in enumerate(source, 1):
            w += 1
            ckpt.end_step(step, {})
    """
    with child(mongo_uri, warehouse_dir, script) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=100)
    assert process.returncode == 143
    assert saved(db) == [7]


def test_a_step_that_does_not_end_is_not_saved_half_done(db, mongo_uri, warehouse_dir):
    script = """
        ckpt = make(options=SaveOptions(grace=0.5))
        for step in range(1, 1002):
            w += 1
            if step == 1001:
                w[:5] += 1
                print("long step", flush=True)
                time.sleep(60)
            ckpt.end_step(step, {})
    """
    with child(mongo_uri, warehouse_dir, script) as process:
        assert process.stdout.readline() == "long step\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 143 and "leaving with what was saved before" in err
    assert saved(db) == [1000]


def test_between_batch_and_step_nothing_is_saved_by_others(db, mongo_uri, warehouse_dir):
    """With gradient accumulation a loop may wait for data in the middle of a step."""
    script = """
        source = Source(n=7)
        ckpt = make(source, options=SaveOptions(grace=0.5))
        for number, _ in enumerate(source, 1):
            w += 1
            if number in (3, 6):
                ckpt.end_step(number, {})
    """
    with child(mongo_uri, warehouse_dir, script) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=100)
    assert process.returncode == 143 and saved(db) == []


def test_other_signals_if_they_are_asked_for(db, mongo_uri, warehouse_dir):
    script = """
        source = Source(n=7)
        ckpt = make(source, options=SaveOptions(signals=("SIGTERM", "SIGUSR2")))
        for step, _ in enumerate(source, 1):
            w += 1
            ckpt.end_step(step, {})
    """
    with child(mongo_uri, warehouse_dir, script) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGUSR2)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGUSR2 and "SIGUSR2: saving" in err
    assert saved(db) == [7]


def test_the_second_signal_does_not_wait(db, mongo_uri, warehouse_dir):
    script = """
        ckpt = make(options=SaveOptions(grace=100))
        ckpt.end_step(1, {})
        print("ready", flush=True)
        try:
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    with child(mongo_uri, warehouse_dir, script) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        while "once more" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and out == "interrupted\n"


def test_handlers_that_were_there_get_the_signal_afterwards(db, mongo_uri, warehouse_dir):
    script = """
        stop = []
        signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
        ckpt = make()
        for step in range(1, 10**9):
            w += 1
            ckpt.end_step(step, {})
            if step == 20:
                os.kill(os.getpid(), signal.SIGTERM)
            if stop:
                break
        ckpt.close()
        assert stop == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM).__name__ == "<lambda>"
        print("left after", step, flush=True)
    """
    with child(mongo_uri, warehouse_dir, script) as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert saved(db) == [int(out.split()[-1])]


def test_children_keep_their_own_ways(db, mongo_uri, warehouse_dir):
    script = """
        ckpt = make()
        ckpt.end_step(1, {})
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(write, b".")
            time.sleep(60)
            os._exit(0)
        os.read(read, 1)
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        ckpt.close()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    """
    with child(mongo_uri, warehouse_dir, script) as process:
        _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err


def test_a_process_that_forgets_to_close_stores_what_was_taken(db, mongo_uri, warehouse_dir):
    script = """
        ckpt = make()
        for step in range(1, 3001):
            w += 1
            ckpt.end_step(step, {"loss": 1.0 / step})
    """
    with child(mongo_uri, warehouse_dir, script) as process:
        _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert saved(db) == [1000, 2000, 3000]
    assert db.logs.find({"run": "r"}).count() == 3000


def test_a_signal_that_the_program_ignores_stays_ignored(db, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        saver = Checkpointer(db.warehouse, "r", lambda step: {"model": {}, "training": {"step": step}}, every=1)
        saver.end_step(1, {})
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGUSR1) not in (signal.SIG_IGN, signal.SIG_DFL)
        saver.close()
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)

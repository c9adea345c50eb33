"""However a training run ends, it goes on where it was: ends x ways to start workers x resumes x caches.

Every run delivers batches through a DataLoader with workers, from blobs that are far away (GridFS) through a cache, and
notes each with the state behind it. Its successor begins with the last state that was noted. All that was noted, in a
row, must be the batches of one stream that nothing ever happened to. Nothing may be left behind.

Nine of the 81 combinations, in which each two values of different kinds meet, run always; MATRICES=all, or `make
matrix`, runs all of them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from torch.utils.data import DataLoader

from tensordb_data import TensorDB
from tensordb_data.torch import QueryDataset
from tests import warm

N, BATCH, SIZE, PARTS = 64, 8, 4096, 4
PASS = N // BATCH
SEGMENT = N // PARTS * SIZE
ENDS = ("break", "ctrl-c", "kill -9")
CONTEXTS = ("fork", "spawn", "forkserver")
RESUMES = ("twice", "at a pass end", "with other workers and ranks")
CACHES = {"below one segment": SEGMENT // 2, "full": 2 * SEGMENT + SEGMENT // 2, "of two users": 1 << 30}
ALL = list(itertools.product(ENDS, CONTEXTS, RESUMES, CACHES))
# Two values determine the other two, in such a way that every pair of values occurs.
SOME = [(ENDS[a], CONTEXTS[b], RESUMES[(a + b) % 3], list(CACHES)[(a + 2 * b) % 3]) for a in range(3) for b in range(3)]
PATIENCE = 120

SCRIPT = """
import json, multiprocessing, sys
import torch
from torch.utils.data import DataLoader
from tensordb_data import TensorDB
from tensordb_data.torch import QueryDataset

def train(uri, cache, cap, context, workers, seed, rank, ranks, stop, breaks, log):
    torch.set_num_threads(1)
    multiprocessing.set_forkserver_preload(["tensordb_data.torch"])
    with TensorDB(uri, blobs="gridfs://", cache=cache, cache_bytes=cap) as db:
        found = db.data.find({"dataset": "d"})
        dataset = QueryDataset(found, batch_size=8, shuffle=True, seed=seed, rank=rank, world_size=ranks)
        state = sys.stdin.readline()
        if state.strip():
            dataset.load_state_dict(json.loads(state))
        context = context if workers else None
        loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=context)
        start = dataset.state_dict()
        with open(log, "a") as notes:
            for count, batch in enumerate(loader, 1):
                assert (batch["image"][:, 0] == batch["label"] % 251).all()
                state = dataset.advance(start, count, loader)
                notes.write(json.dumps({"labels": batch["label"].tolist(), "state": state}) + "\\n")
                notes.flush()
                if count == stop:
                    if breaks:
                        break
                    print("going", flush=True)
                    sys.stdin.readline()  # until the end comes

if __name__ == "__main__":
    train(**json.loads(sys.argv[1]))
"""


class Runs:
    """Training runs of one combination."""

    def __init__(self, folder: Path, uri: str, context: str, cap: int) -> None:
        self.folder = folder
        (folder / "train.py").write_text(SCRIPT)
        self.options: dict[str, Any] = {"uri": uri, "cache": str(folder / "cache"), "cap": cap, "context": context}
        self.left: list[psutil.Process] = []

    @contextlib.contextmanager
    def started(self, state: Any, log: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
        defaults = {"workers": 2, "seed": 0, "rank": 0, "ranks": 1, "breaks": True, "log": str(log)}
        command = [sys.executable, str(self.folder / "train.py"), json.dumps({**self.options, **defaults, **options})]
        with warm.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        ) as run:  # fmt: skip
            assert run.stdin is not None
            run.stdin.write(("" if state is None else json.dumps(state)) + "\n")
            run.stdin.flush()
            yield run

    def run(self, end: str, state: Any, log: Path, stop: int, **options: Any) -> None:
        """One run, that ends in this way after `stop` batches."""
        with self.started(state, log, stop=stop, breaks=end == "break", **options) as run:
            if end == "break":
                errors = ended(run)
                assert run.returncode == 0, errors
                assert "Traceback" not in errors, errors
                return
            assert run.stdout is not None and run.stderr is not None
            assert run.stdout.readline() == "going\n", run.stderr.read()
            self.left += psutil.Process(run.pid).children(recursive=True)
            if end == "ctrl-c":
                os.killpg(run.pid, signal.SIGINT)  # as a terminal does
            else:
                run.kill()
            ended(run)
            assert run.returncode != 0

    def go_on(self, state: Any, count: int, rank: int = 0, ranks: int = 1) -> list[list[int]]:
        """The labels of `count` more batches, without workers and in this process, which saves the start of another."""
        options = self.options
        with TensorDB(options["uri"], blobs="gridfs://", cache=options["cache"], cache_bytes=options["cap"]) as db:
            found = db.data.find({"dataset": "d"})
            dataset = QueryDataset(found, batch_size=BATCH, shuffle=True, rank=rank, world_size=ranks)
            dataset.load_state_dict(state)
            return [batch["label"].tolist() for batch in itertools.islice(DataLoader(dataset, batch_size=None), count)]


def ended(run: subprocess.Popen[str]) -> str:
    """What it wrote to stderr until its end; where that does not come, with the stacks of all its threads."""
    try:
        return run.communicate(timeout=PATIENCE)[1]
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGABRT)
        pytest.fail(f"it does not end: {run.communicate()[1]}")


def notes(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def labels(noted: list[dict[str, Any]]) -> list[list[int]]:
    return [note["labels"] for note in noted]


@pytest.mark.timeout(600)  # several processes, one after the other, perhaps on a busy machine
@pytest.mark.parametrize(("end", "context", "resume", "cache"), ALL if os.environ.get("MATRICES") == "all" else SOME)
def test_a_run_goes_on_where_it_was(
    end: str, context: str, resume: str, cache: str, mongo_uri: str, tmp_path: Path
) -> None:
    cap = CACHES[cache]  # on which the order depends too: more than it holds is shuffled in blocks
    with TensorDB(mongo_uri, blobs="gridfs://", cache=str(tmp_path / "quiet-cache"), cache_bytes=cap) as db:
        with db.data.writer("d") as writer:
            for part in np.split(np.arange(N), PARTS):
                writer.add_many(image=np.repeat((part % 251).astype(np.uint8)[:, None], SIZE, axis=1), label=part)
                writer.flush()
        selection = db.data.find({"dataset": "d"})
        streams = {seed: selection.stream(batch_size=BATCH, shuffle=True, seed=seed) for seed in (0, 1)}
        expected = {
            seed: [batch["label"].tolist() for batch in itertools.islice(stream, 3 * PASS)]
            for seed, stream in streams.items()
        }
        for stream in streams.values():
            stream.close()
    runs = Runs(tmp_path, mongo_uri, context, cap)
    log, other_log = tmp_path / "log", tmp_path / "other-log"
    with contextlib.ExitStack() as stack:
        other = None
        if cache == "of two users":
            other = stack.enter_context(runs.started(None, other_log, seed=1, stop=2 * PASS, workers=0))
        first = PASS if resume == "at a pass end" else PASS // 2 + 1
        runs.run(end, None, log, first)
        noted = notes(log)
        assert len(noted) >= first and labels(noted) == expected[0][: len(noted)]
        if resume == "with other workers and ranks":
            noted = noted[:first]
            # The tail of the pass, of three batches, is two rounds of both ranks; then begins the next pass.
            shares = [runs.go_on(noted[-1]["state"], 3, rank, 2) for rank in range(2)]
            assert [len(batch) for share in shares for batch in share[:2]] == [BATCH, BATCH // 2] * 2
            rest = [*shares[0][0], *shares[1][0], *shares[0][1], *shares[1][1]]
            assert rest == list(itertools.chain(*expected[0][first:PASS]))
            assert [shares[0][2], shares[1][2]] == expected[0][PASS : PASS + 2]
        else:
            noted = noted[:first] if resume == "at a pass end" else noted
            if resume == "twice":
                log.write_text("")
                runs.run(end, noted[-1]["state"], log, 3, workers=1)
                noted += notes(log)
                assert labels(noted) == expected[0][: len(noted)]
            more = runs.go_on(noted[-1]["state"], 3)
            assert more == expected[0][len(noted) : len(noted) + 3]
        if other is not None:
            errors = ended(other)
            assert other.returncode == 0, errors
            assert labels(notes(other_log)) == expected[1][: 2 * PASS]
    _, alive = psutil.wait_procs(runs.left, timeout=PATIENCE)
    assert not alive
    mine = {str(process.pid) for process in runs.left}
    assert not [name for name in os.listdir("/dev/shm") if mine & set(name.split("_"))]
    segments = [path for path in (tmp_path / "cache" / "segments").rglob("*") if path.is_file()]
    assert sum(512 * path.stat().st_blocks for path in segments) <= cap + SEGMENT


def test_the_smaller_matrix_meets_every_pair() -> None:
    for kinds in itertools.combinations(range(4), 2):
        assert len({tuple(row[kind] for kind in kinds) for row in SOME}) == 9

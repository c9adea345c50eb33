"""Worker processes: the same samples whatever their number, and none left behind, however an iteration ends."""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from torch.utils.data import DataLoader

from tensordb_data import Array, Bytes, TensorDB, mix
from tensordb_data.errors import QueryError, SampleError, WorkerError
from tensordb_data.stream.deliver.stream import Stream
from tensordb_data.torch import QueryDataset
from tests import pipelines, transforms, warm
from tests.leaks import raised_from_workers

N = 60


@pytest.fixture
def things(db: TensorDB) -> TensorDB:
    fill(db)
    return db


def fill(db: TensorDB) -> None:
    rng = np.random.default_rng(0)
    schema = {
        "image": Array("uint8", (8, 8, 3)), "wave": Array("float32", (None,)), "raw": Bytes(), "note": dict,
        "name": str, "label": int, "when": dt.datetime,
    }  # fmt: skip
    with db.data.writer("things", schema=schema) as writer:
        for label in range(N):
            writer.add(
                image=rng.integers(0, 255, (8, 8, 3), np.uint8), wave=rng.random(1 + label % 5, np.float32),
                raw=rng.bytes(10 + 900 * (label % 4)), note={"of": [label, None, 0.5]}, name=f"no {label}",
                label=label, tags=["a"], when=dt.datetime(2024, 1, 1 + label % 30),
            )  # fmt: skip


def stream(db: TensorDB, transform: Any, batch_size: int = 7, **options: Any) -> Stream:
    return db.data.find({"dataset": "things"}).stream(batch_size=batch_size, transform=transform, **options)


def flat(value: Any) -> Any:
    """A value with its types, to be compared bit for bit."""
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value).__name__, value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return [(key, flat(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [flat(item) for item in value]
    return type(value).__name__, repr(value)


def no_process_of(before: set[int]) -> None:
    """Processes that were forked by a forkserver have gone; itself, and what tracks resources, stay."""
    direct = {child.pid for child in psutil.Process().children()}
    for child in psutil.Process().children(recursive=True):
        if child.pid not in before:
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(child.cmdline())
                assert child.pid in direct and ("forkserver" in command or "resource_tracker" in command), command


@pytest.mark.parametrize("options", [{"shuffle": True, "seed": 3}, {"ragged": "pad"}])
def test_batches_are_the_same_bit_for_bit_with_0_1_and_3_workers(things: TensorDB, options: Any) -> None:
    fields = ["_id", "tags", "image", "wave", "raw", "note", "name", "label", "when"]

    def delivered(workers: int) -> list[Any]:
        made = stream(things, transforms.noisy, fields=fields, passes=2, workers=workers, **options)
        return [flat(batch) for batch in made]

    alone = delivered(0)
    assert len(alone) == 2 * -(-N // 7)
    assert delivered(1) == alone
    assert delivered(3) == alone


def test_a_pipeline_by_name_augments_as_in_threads(things: TensorDB) -> None:
    in_threads = stream(things, pipelines.PIPELINE, fields=["image", "label"], passes=1)
    by_name = stream(things, "tests.pipelines:PIPELINE", fields=["image", "label"], passes=1)
    remote = stream(things, "tests.pipelines:PIPELINE", fields=["image", "label"], passes=1, workers=2)
    expected = [flat(batch) for batch in in_threads]
    assert [flat(batch) for batch in by_name] == expected and [flat(batch) for batch in remote] == expected


def test_a_resume_with_other_workers_delivers_the_rest(things: TensorDB) -> None:
    whole = [flat(batch["image"]) for batch in stream(things, transforms.noisy, shuffle=True, passes=1)]
    first = stream(things, transforms.noisy, shuffle=True, passes=1, workers=2)
    got = [flat(batch["image"]) for batch in itertools.islice(first, 3)]
    first.close()
    second = stream(things, transforms.noisy, shuffle=True, passes=1, workers=1)
    second.load_state_dict(first.state_dict())
    assert got + [flat(batch["image"]) for batch in second] == whole


def test_a_mix_hands_over_each_transform(things: TensorDB) -> None:
    def batches(workers: int) -> list[Any]:
        pair = [(stream(things, transforms.noisy, workers=workers), 1), (stream(things, transforms.noisy, seed=2), 2)]
        mixed = mix(pair, seed=5)
        found = [flat(batch) for batch in itertools.islice(mixed, 9)]
        mixed.close()
        return found

    assert batches(1) == batches(0)


@pytest.mark.parametrize(
    "transform",
    [lambda sample: sample, transforms.Scale().apply, pipelines.PIPELINE, "tests.transforms:none", "noisy"],
)
def test_what_has_no_import_path_is_refused_at_once(things: TensorDB, transform: Any) -> None:
    with pytest.raises(QueryError, match=r"transform|function"):
        stream(things, transform, workers=2)


def test_bad_numbers_of_workers_are_refused(things: TensorDB) -> None:
    for workers in (-1, 1.5, True):
        with pytest.raises(QueryError, match="`workers`"):
            stream(things, transforms.plain, workers=workers)
    with pytest.raises(QueryError, match="there is none"):
        stream(things, None, workers=1)


def test_an_error_names_the_sample_and_shows_where(things: TensorDB) -> None:
    bad = things.data.find({"label": 17}).first().id
    with pytest.raises(SampleError, match=f"sample {bad}: the transform raised ValueError: seventeen") as caught:
        list(stream(things, transforms.bad_17, passes=1, workers=2))
    assert "transforms.py" in str(caught.value.__cause__)


def test_bad_samples_are_skipped_within_the_budget(things: TensorDB) -> None:
    made = stream(things, transforms.bad_17, passes=1, workers=2, max_failures=1)
    labels = [label for batch in made for label in batch["label"].tolist()]
    assert labels == [label for label in range(N) if label != 17] and made.stats()["skipped"] == 1


def test_what_cannot_be_sent_names_the_field(things: TensorDB) -> None:
    first = things.data.find({"label": 0}).first().id
    with pytest.raises(SampleError, match=f"{first}, field 'thing', .*; found object"):
        next(iter(stream(things, transforms.unsendable, workers=1)))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_worker_is_an_error_and_no_bad_sample(things: TensorDB, workers: int) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    made = stream(things, transforms.dies_at_17, passes=1, workers=workers, max_failures=N)
    with pytest.raises(WorkerError, match=r"worker process \d+ ended by signal 9 while it transformed"):
        list(made)
    no_process_of(before)
    # The position stays: once the cause is gone, the stream goes on.
    rest = stream(things, transforms.plain, passes=1, workers=workers)
    rest.load_state_dict(made.state_dict())
    assert [label for batch in rest for label in batch["label"].tolist()][-1] == N - 1


def test_an_idle_worker_that_is_killed_is_an_error(things: TensorDB) -> None:
    batches = iter(stream(things, transforms.by_pid, workers=1))
    os.kill(int(next(batches)["pid"][0]), signal.SIGKILL)
    with pytest.raises(WorkerError, match="signal 9"):
        for _ in batches:
            pass


def test_no_process_outlives_its_iteration_even_one_that_hangs(things: TensorDB) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    made = stream(things, transforms.stuck_at_17, batch_size=4, workers=2)
    for _ in made:
        break
    gc.collect()
    no_process_of(before)
    batches = iter(made)
    next(batches)
    made.close()
    no_process_of(before)
    assert next(batches, None) is None


SCRIPT = """
import sys, threading
from tensordb_data import TensorDB
from tests import transforms

def slow(sample):
    return transforms.stuck_at_17(sample)

if __name__ == "__main__":
    db = TensorDB(sys.argv[1], blobs=sys.argv[2])
    stream = db.data.find({"dataset": "things"}).stream(batch_size=4, transform=slow, workers=2)
    batches = iter(stream)
    try:
        print(*next(batches)["pid"].tolist(), flush=True)
        for batch in batches:
            pass
    except KeyboardInterrupt:
        print("stopped", flush=True)
        raise
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_a_script_that_is_stopped(
    things: TensorDB, mongo_uri: str, warehouse_dir: Path, tmp_path: Path, how: signal.Signals
) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), mongo_uri, f"file://{warehouse_dir}/blobs"]
    with warm.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        line = child.stdout.readline()
        assert line, child.stderr.read()
        below = psutil.Process(child.pid).children(recursive=True)
        assert {process.pid for process in below} >= set(map(int, line.split()))
        for pid in map(int, line.split()):  # what they share has no name that could stay behind
            assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                    assert not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("/dev/shm")
        if how == signal.SIGINT:
            os.killpg(child.pid, how)  # as a terminal does: all of them get it
        else:
            child.kill()
        out, err = child.communicate(timeout=60)
    if how == signal.SIGINT:
        assert "stopped" in out and err.count("Traceback") == 1, err
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive


SLOW_TO_IMPORT = """
import os

def plain(sample):
    return {"label": sample["label"]}

here = os.path.dirname(__file__)
if os.path.exists(here + "/seen"):  # by the script; this is the forkserver
    open(here + "/inside", "w").close()
    open(here + "/go").close()
else:
    open(here + "/seen", "w").close()
"""
STARTING = """
import sys
from tensordb_data import TensorDB

if __name__ == "__main__":
    db = TensorDB(sys.argv[1], blobs=sys.argv[2])
    stream = db.data.find({"dataset": "things"}).stream(batch_size=4, transform="slow_to_import:plain", workers=2)
    try:
        next(iter(stream))
    except KeyboardInterrupt:
        print("stopped", flush=True)
        raise
"""


def test_ctrl_c_while_workers_start_is_told_once_and_leaves_none(
    things: TensorDB, mongo_uri: str, warehouse_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "slow_to_import.py").write_text(SLOW_TO_IMPORT)
    script = tmp_path / "train.py"
    script.write_text(STARTING)
    for name in ("inside", "go"):
        os.mkfifo(tmp_path / name)
    command = [sys.executable, str(script), mongo_uri, f"file://{warehouse_dir}/blobs"]
    search = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])}
    with warm.Popen(
        command, env=search, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        (tmp_path / "inside").read_bytes()  # the forkserver imports
        below = psutil.Process(child.pid).children(recursive=True)
        os.killpg(child.pid, signal.SIGINT)
        (tmp_path / "go").write_bytes(b"")
        out, err = child.communicate(timeout=60)
    assert "stopped" in out and err.count("Traceback") == 1, err
    _, alive = psutil.wait_procs(below, timeout=30)
    assert below and not alive


BESIDE = """
import multiprocessing, signal, sys
from tensordb_data import TensorDB
from tests import transforms

def interrupts(sender):
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    sender.send((ours, signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])))

if __name__ == "__main__":
    db = TensorDB(sys.argv[1], blobs=sys.argv[2])
    next(iter(db.data.find().stream(batch_size=4, transform=transforms.plain, workers=1)))
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=interrupts, args=(sender,))
    process.start()
    print(*receiver.recv())
    process.join()
"""


def test_processes_of_the_program_itself_hear_ctrl_c_as_ever(
    things: TensorDB, mongo_uri: str, warehouse_dir: Path, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(BESIDE)
    command = [sys.executable, str(script), mongo_uri, f"file://{warehouse_dir}/blobs"]
    assert warm.run(command, capture_output=True, text=True, timeout=60).stdout.split() == ["True", "False"]


def test_a_script_ends_though_it_left_a_stream_open_and_a_worker_stuck(
    things: TensorDB, mongo_uri: str, warehouse_dir: Path, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\n"
        "from tensordb_data import TensorDB\n"
        "from tests import transforms\n"
        "if __name__ == '__main__':\n"
        f"    db = TensorDB({mongo_uri!r}, blobs='file://{warehouse_dir}/blobs')\n"
        "    things = db.data.find({'dataset': 'things'})\n"
        "    batches = iter(things.stream(batch_size=4, transform=transforms.stuck_at_17, workers=2))\n"
        "    next(batches)\n"
    )
    assert warm.run([sys.executable, str(script)], timeout=60).returncode == 0


def test_a_script_without_a_guard_is_told(
    things: TensorDB, mongo_uri: str, warehouse_dir: Path, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\n"
        "from tensordb_data import TensorDB\n"
        "from tests import transforms\n"
        f"db = TensorDB({mongo_uri!r}, blobs='file://{warehouse_dir}/blobs')\n"
        "next(iter(db.data.find().stream(batch_size=4, transform=transforms.plain, workers=1)))\n"
    )
    done = warm.run([sys.executable, str(script)], capture_output=True, text=True, timeout=90)
    assert done.returncode and 'if __name__ == "__main__"' in done.stderr.splitlines()[-1], done.stderr


def test_a_process_that_has_used_an_object_store_can_have_workers(mongo_uri: str, s3: str) -> None:
    with TensorDB(mongo_uri, blobs=s3) as db:
        fill(db)
        batch = next(iter(stream(db, transforms.noisy, batch_size=N, workers=2)))
        assert batch["label"].tolist() == list(range(N))


def test_a_worker_of_a_dataloader_has_none_of_its_own(things: TensorDB) -> None:
    dataset = QueryDataset(
        things.data.find({"dataset": "things"}), batch_size=8, transform=transforms.plain, workers=1, passes=1
    )
    assert [batch["label"].tolist()[0] for batch in DataLoader(dataset, batch_size=None)] == list(range(0, N, 8))
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="forkserver")
    with raised_from_workers(QueryError, "num_workers=0"):
        next(iter(loader))


def test_times_of_workers_are_counted(things: TensorDB) -> None:
    made = stream(things, transforms.python_heavy, workers=1, passes=1)
    list(made)
    stats = made.stats()
    assert stats["stages"]["transform"]["work"] > 0


def test_threads_that_iterate_several_streams_share_nothing(things: TensorDB) -> None:
    found: dict[int, list[int]] = {}

    def read(number: int) -> None:
        made = stream(things, transforms.plain, shuffle=True, seed=number, passes=1, workers=1)
        found[number] = sorted(label for batch in made for label in batch["label"].tolist())

    threads = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: list(range(N)) for number in range(3)}

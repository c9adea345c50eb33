"""What the jobs of a host take: each GPU once, and no more of the rest than the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tensordb_data.job_runner.host_slots import HostSlots, Slot

MACHINE = {"gpu": 2, "memory_gb": 64.0, "cpu": 8}


@pytest.fixture(autouse=True)
def _all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def taken(slots: HostSlots, **requires: float) -> Slot:
    slot = slots.take(requires)
    assert slot is not None
    return slot


def test_workers_of_a_machine_share_it(tmp_path: Path) -> None:
    first, second = (HostSlots(MACHINE, shared=True, gpus=2, folder=tmp_path) for _ in range(2))
    one = taken(first, gpu=1, memory_gb=48)
    assert one.devices == ("0",) and second.free() == {"gpu": 1, "memory_gb": 16.0, "cpu": 8}
    assert all(second.take({name: amount}) is None for name, amount in (("memory_gb", 17), ("gpu", 2), ("tpu", 1)))
    other = taken(second, gpu=0.5, memory_gb=16)
    assert other.devices == ("1",) and first.free()["gpu"] == 0 and first.take({"gpu": 0.1}) is None
    assert taken(first, gpu=0).devices == () and taken(first).devices == ()
    one.close()
    one.close()
    assert taken(second, gpu=1).devices == ("0",)
    other.close()
    assert second.free() == {"gpu": 1, "memory_gb": 64.0, "cpu": 8}


def test_what_a_worker_was_told_of_is_its_own_but_gpus_are_not(tmp_path: Path) -> None:
    first, second = (HostSlots({"gpu": 1, "licence": 1}, shared=False, gpus=2, folder=tmp_path) for _ in range(2))
    assert taken(first, gpu=1, licence=1).devices == ("0",) and taken(second, licence=1, gpu=1).devices == ("1",)
    third = HostSlots({"gpu": 2}, shared=False, gpus=2, folder=tmp_path)
    assert third.free() == {"gpu": 0}


def test_the_gpus_are_those_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-ab,-1")
    slots = HostSlots({"gpu": 8}, shared=False, gpus=8, folder=tmp_path)
    assert slots.free() == {"gpu": 2} and taken(slots, gpu=2).devices == ("3", "GPU-ab")


def test_what_a_killed_worker_had_is_free_again_and_odd_files_are_nothing(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from tensordb_data.job_runner.host_slots import HostSlots
slot = HostSlots({{"gpu": 2}}, shared=True, gpus=2, folder=Path({str(tmp_path)!r})).take({{"gpu": 2}})
assert len(slot.devices) == 2
print(len(list(Path({str(tmp_path)!r}).glob("*.job"))), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
    (tmp_path / "x.job").write_text("{")
    slots = HostSlots({"gpu": 2}, shared=True, gpus=2, folder=tmp_path)
    assert slots.problem is None and taken(slots, gpu=2).devices == ("0", "1")
    assert len(list(tmp_path.glob("*.job"))) == 1


def test_without_a_folder_a_worker_goes_on_alone_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    slots = HostSlots(MACHINE, shared=True, gpus=2, folder=tmp_path / "file" / "slots")
    assert "set XDG_CACHE_HOME" in str(slots.problem) and taken(slots, gpu=1, cpu=1).devices == ("0",)


def test_a_folder_of_this_user_and_host() -> None:
    slots = HostSlots({}, shared=False, gpus=0)
    assert slots._folder is not None and str(slots._folder).startswith(os.environ["XDG_CACHE_HOME"])

"""Files past the page cache: the same bytes, wherever they lie in memory."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data.blobs.stores import direct_io
from tensordb_data.blobs.stores.local import FileStore
from tensordb_data.errors import StorageError

MEMORY = np.random.default_rng(0).integers(0, 256, 12 << 20, dtype=np.uint8)
DIRECT = os.O_DIRECT
LENGTHS = st.one_of(st.integers(0, 9000), st.sampled_from([4096, 8192, 1 << 20, 4 << 20, (4 << 20) + 7]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9000), LENGTHS), min_size=1, max_size=8))
def test_any_parts(tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, int]]) -> None:
    store = FileStore(tmp_path_factory.mktemp("d"))
    parts = [MEMORY[start : start + length].data for start, length in [*places, (3, 1 << 20)]]
    store.put("k", parts, cold=True)
    assert store.get("k") == b"".join(parts)


@pytest.mark.parametrize("allowed", ["open", "write", "nothing"])
def test_a_file_system_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str) -> None:
    real, refused = {"open": os.open, "write": os.write}, []

    def open_(path: object, flags: int, *args: object, **options: object) -> int:
        if flags & DIRECT and allowed != "open":
            refused.append(path)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real["open"](path, flags, *args, **options)  # type: ignore[no-any-return,operator]

    def write(fd: int, data: memoryview) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & DIRECT:
            refused.append(fd)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real["write"](fd, data)  # type: ignore[no-any-return,operator]

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "write", write)
    if allowed == "nothing":
        monkeypatch.delattr(os, "O_DIRECT")
    parts = [b"abc", MEMORY[: 5 << 20].data]
    FileStore(tmp_path).put("k", parts, cold=True)
    assert (tmp_path / "k").read_bytes() == b"".join(parts) and (refused or allowed == "nothing")


def test_a_limit_within_a_block_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import resource, signal, pathlib
from tensordb_data.blobs.stores.local import FileStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
try:
    FileStore(pathlib.Path({str(tmp_path)!r})).put("k", [bytes(3_000_000)], cold=True)
except OSError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"StorageError cannot write {tmp_path}/k: File too large"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="no space left"):
        FileStore(tmp_path).put("k", [MEMORY[: 2 << 20].data], cold=True)
    assert list(tmp_path.iterdir()) == []


def test_small_files_are_written_in_the_ordinary_way(tmp_path: Path) -> None:
    assert direct_io.open_direct(tmp_path / "k", 1000) is None and not (tmp_path / "k").exists()

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tensordb_data.blobs.stores.local import FileStore
from tensordb_data.errors import StorageError
from tests.store_contract import StoreContract


class TestFileStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> FileStore:
        return FileStore(tmp_path / "folder with blanks" / "blobs")


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path)

    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"cannot write .*data.k: no space left \([\d,]+ bytes free\)"):
        store.put("data/k", [b"x"])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_file_size_limit_is_reported_with_the_path(tmp_path: Path) -> None:
    code = f"""
import resource, signal, pathlib
from tensordb_data.blobs.stores.local import FileStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    FileStore(pathlib.Path({str(tmp_path)!r})).put("k", [bytes(200_000)])
except OSError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"StorageError cannot write {tmp_path}/k: File too large")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(StorageError, match="cannot write"):
        FileStore(tmp_path / "file").put("k", [b"x"])


def test_a_put_that_was_killed_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".put-123-0123456789ab").write_bytes(b"half")
    store = FileStore(tmp_path)
    store.put("k", [b"whole"])
    assert list(store.list()) == [("k", 5)]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:3])))
    store = FileStore(tmp_path)
    store.put("k", [b"0123456789", b"abcdefg"])
    assert bytes(store.get("k")) == b"0123456789abcdefg"


def test_interrupted_put_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        FileStore(tmp_path).put("k", [b"x"])
    assert list(tmp_path.iterdir()) == []


def test_local_path_of_a_bad_key(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="expected a key"):
        FileStore(tmp_path).local_path("../outside")


def test_what_a_killed_put_has_left_goes_when_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path)
    store.put("segments/k", [b"whole"])
    for name, age in (("1", 2000), ("2", 0), ("3", 100), ("old", 2000)):  # the last name is none of ours
        path = tmp_path / "segments" / f".put-123-{name:>012}"
        path.write_bytes(b"half")
        stamp = path.stat().st_mtime - age
        os.utime(path, (stamp, stamp))
    monkeypatch.setattr("time.time", lambda: 0.0)  # only the clock of the file system counts
    assert store.sweep(1800, dry_run=True) == (1, 4)
    assert store.sweep(1800) == (1, 4)
    assert store.sweep(1800) == (0, 0)
    left = sorted(path.name for path in (tmp_path / "segments").iterdir())
    assert left == [".put-123-000000000002", ".put-123-000000000003", ".put-123-000000000old", "k"]
    assert [path.name for path in tmp_path.iterdir()] == ["segments"]


def test_a_put_whose_file_was_swept_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that was stopped for so long that it counted as dead."""
    store = FileStore(tmp_path)
    real = os.fsync

    def stopped(fd: int) -> None:
        store.sweep(0)
        real(fd)

    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises(StorageError, match="cannot write"):
        store.put("k", [b"whole"])
    assert list(store.list()) == []

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tensordb_data.common.system import file_locks


def test_shares_and_exclusive(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    one = file_locks.acquire(path, fcntl.LOCK_SH)
    two = file_locks.acquire(path, fcntl.LOCK_SH)
    assert not file_locks.is_held(path)
    assert file_locks.holders(path) == [os.getpid()] * 2
    with pytest.raises(BlockingIOError):
        file_locks.acquire(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file_locks.close_fd(one)
    file_locks.close_fd(two)
    with file_locks.exclusive(path):
        assert file_locks.is_held(path)
        assert file_locks.holders(path) == []
    file_locks.wait_released(path)


def test_a_forked_child_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    fd = file_locks.acquire(path, fcntl.LOCK_EX)
    reader, writer = os.pipe()
    release, hold = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hold)
        try:
            os.fstat(fd)
        except OSError:
            os.write(writer, b"closed")
        os.read(release, 1)
        os._exit(0)
    assert os.read(reader, 6) == b"closed"
    assert file_locks.is_held(path)  # the parent's lock is untouched
    file_locks.close_fd(fd)
    assert not file_locks.is_held(path)  # and the living child does not keep it
    os.close(hold)
    os.waitpid(child, 0)
    for end in (reader, writer, release):
        os.close(end)


def test_no_descriptor_is_left_when_the_lock_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_locks.exclusive(path):
        before = os.listdir("/proc/self/fd")
        for _ in range(3):
            assert file_locks.is_held(path)
        assert os.listdir("/proc/self/fd") == before


class Msvcrt:
    """The locks of Windows, on a byte of a file, by its number."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.held: set[tuple[int, int]] = set()

    def locking(self, fd: int, mode: int, nbytes: int) -> None:
        assert (mode, nbytes) == (self.LK_NBLCK, 1)
        byte = os.fstat(fd).st_ino, os.lseek(fd, 0, os.SEEK_CUR)
        if byte in self.held:
            raise PermissionError(13, "Permission denied")
        self.held.add(byte)


def test_locks_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_locks, "_fcntl", None)
    both = file_locks.LOCK_EX | file_locks.LOCK_NB
    with pytest.raises(OSError, match="not supported"):
        file_locks.acquire(tmp_path / "lock", both)
    monkeypatch.setattr(file_locks, "_msvcrt", windows := Msvcrt())
    fd = file_locks.acquire(tmp_path / "lock", both)
    (byte,) = windows.held
    assert byte[1] > 1 << 20 and os.lseek(fd, 0, os.SEEK_CUR) == 0
    with pytest.raises(BlockingIOError):
        file_locks.acquire(tmp_path / "lock", both)
    with pytest.raises(OSError, match="not supported"):
        file_locks.acquire(tmp_path / "lock", file_locks.LOCK_SH)
    file_locks.close_fd(fd)

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensordb_data.common.system import files
from tensordb_data.common.system.file_urls import file_path

NAMES = ("pread", "preadv", "pwrite", "memfd_create", "O_DIRECTORY")


@pytest.fixture(params=["of the system", "portable"])
def file(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """An open file of ten bytes, at position 4."""
    if request.param == "portable":
        for name in NAMES:
            monkeypatch.delattr(os, name)
    (tmp_path / "file").write_bytes(b"0123456789")
    fd = os.open(tmp_path / "file", os.O_RDWR | files.OWN)
    os.lseek(fd, 4, os.SEEK_SET)
    yield fd
    os.close(fd)


def test_reads_and_writes_at_a_place_leave_the_position_alone(file: int) -> None:
    assert files.read_at(file, 3, 2) == b"234" and files.read_at(file, 9, 8) == b"89"
    assert files.read_at(file, 1, 10) == b""
    memory = bytearray(5)
    assert files.read_into(file, memoryview(memory)[1:4], 6) == 3 and memory == b"\0" + b"678" + b"\0"
    assert files.read_into(file, memoryview(memory), 10) == 0
    assert files.write_at(file, b"xy", 9) == 2 and files.write_at(file, memoryview(b"z"), 20) == 1
    assert os.read(file, 99) == b"45678xy" + bytes(9) + b"z"


def test_threads_share_a_descriptor(file: int) -> None:
    wrong: list[bytes] = []

    def read(at: int) -> None:
        wrong.extend(found for _ in range(200) if (found := files.read_at(file, 1, at)) != b"%d" % at)

    threads = [threading.Thread(target=read, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_file_without_a_name(file: int, tmp_path: Path) -> None:
    nameless = files.nameless_file("test")
    assert files.write_at(nameless, b"abc", 5) == 3 and files.read_at(nameless, 99, 0) == bytes(5) + b"abc"
    assert not os.get_inheritable(nameless)
    os.close(nameless)
    files.sync_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_to_sync_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.sync_folder(tmp_path / "none")


def test_bytes_on_disk(tmp_path: Path) -> None:
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 20)
    found = os.stat(tmp_path / "sparse")
    assert files.occupied(found) == 512 * found.st_blocks < 1 << 20
    assert files.occupied(os.stat_result(tuple(found)[:10])) == 1 << 20


def test_paths_of_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    assert file_path("file:///a%20b/c") == Path("/a b/c")
    monkeypatch.setattr(os, "name", "nt")
    monkeypatch.setattr("tensordb_data.common.system.file_urls.Path", str)
    assert file_path("file:///C:/a%20b") == "C:/a b"

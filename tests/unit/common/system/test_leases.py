"""While a lease is held, nobody cuts the file short."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tensordb_data.common.system.leases import Lease, lease_on

N = 100_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(N))
    lease = made(path)
    if not lease.hold():
        pytest.skip("this file system has no leases")
    lease.let_go()
    return path


def made(path: Path, nbytes: int = N) -> Lease:
    lease = lease_on(path, nbytes)
    assert lease is not None
    return lease


def test_who_cuts_it_short_waits(file: Path) -> None:
    lease = made(file)
    assert lease.hold()
    cut = threading.Thread(target=os.truncate, args=(file, 10))
    cut.start()
    while lease.hold():  # until the kernel knows that somebody waits: then nobody else gets it
        lease.let_go()
    assert file.stat().st_size == N and cut.is_alive()
    lease.let_go()
    cut.join()
    assert file.stat().st_size == 10 and not lease.hold()


def test_what_is_not_whole_has_none(file: Path) -> None:
    assert not made(file, N + 1).hold()
    sparse = file.with_name("sparse")
    with sparse.open("wb") as other:
        other.truncate(N)
    assert lease_on(sparse, N) is None
    with file.open("r+b"):
        assert not made(file).hold()
    assert made(file).hold()
    assert lease_on(file.with_name("none"), N) is None


def test_threads_share_one(file: Path) -> None:
    lease, wrong = made(file), []

    def use() -> None:
        for _ in range(300):
            if lease.hold():
                lease.let_go()
            else:
                wrong.append(1)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    with file.open("r+b"):  # it was given back
        assert not lease.hold()


def test_a_forked_process_has_its_own(file: Path) -> None:
    lease = made(file)
    assert lease.hold()
    child = os.fork()
    if child == 0:
        held = lease.hold()
        lease.let_go()
        os._exit(0 if held else 1)
    assert os.waitpid(child, 0)[1] == 0
    cut = threading.Thread(target=os.truncate, args=(file, 10))
    cut.start()
    while lease.hold():
        lease.let_go()
    assert file.stat().st_size == N, "the child gave back the lease of its parent"
    lease.let_go()
    cut.join()

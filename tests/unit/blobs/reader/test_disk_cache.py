from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tensordb_data.blobs.reader import cached_file
from tensordb_data.blobs.reader.disk_cache import DEFAULT_CAP, SegmentCache
from tensordb_data.blobs.reader.reader import BlobReader
from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.blobs.stores.local import FileStore
from tensordb_data.blobs.stores.memory import MemoryStore
from tensordb_data.errors import CacheWarning
from tests.delayed_store import DelayedStore
from tests.shelf import Shelf

BYTES = 50_000


class Library:
    """Segments of one store with a cache, and what their blobs must be."""

    def __init__(self, folder: Path, segments: int = 3, blobs: int = 40, cap: int = 1 << 30, size: int = BYTES) -> None:
        self.store = DelayedStore(MemoryStore(), 0)
        self.shelf = Shelf(self.store)
        self.rows = np.random.default_rng(0).integers(0, 256, (segments * blobs, size), np.uint8)
        parts = np.array_split(self.rows, segments)
        self.plan = BlobRefs.from_docs([doc for part in parts for doc in self.shelf.put([r.tobytes() for r in part])])
        self.folder, self.cap = folder, cap
        self.asked()

    def reader(self, cap: int | None = None) -> BlobReader:
        self.shelf.cache = SegmentCache(self.folder, cap or self.cap)
        return self.shelf.reader()

    def check(self, reader: BlobReader, seed: int = 0, batch: int = 16) -> None:
        """A shuffled pass delivers every sample as it was written."""
        order = np.random.default_rng(seed).permutation(len(self.rows))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            found = reader.gather(self.plan.take(rows))
            assert found is not None
            assert (found == self.rows[rows]).all()

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.seg"))

    def on_disk(self) -> int:
        return sum(512 * path.stat().st_blocks for path in self.files() if len(path.stem) == 32)

    def asked(self) -> tuple[int, int]:
        """Requests and bytes since the last call."""
        found = self.store.requests, self.store.nbytes
        self.store.requests = self.store.nbytes = 0
        return found


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "segments")


def test_another_segment_under_the_name_of_one_in_the_cache(tmp_path: Path) -> None:
    library = Library(tmp_path, segments=2)
    with contextlib.closing(library.reader()) as reader:
        library.check(reader)
    one, other = (path for path in library.files() if len(path.stem) == 32)
    shutil.copyfile(one, other)
    with contextlib.closing(library.reader()) as reader:
        library.check(reader)


def test_what_was_read_once_is_read_from_disk(library: Library) -> None:
    first = library.reader()
    library.check(first)
    _, nbytes = library.asked()
    assert library.rows.nbytes <= nbytes <= 1.01 * library.rows.nbytes
    library.check(first, seed=1)
    assert first.ahead > 0
    for seed in range(20):
        library.check(first, seed)
    assert first.ahead == 0
    first.close()
    for key, _ in list(library.store.list()):
        library.store.delete(key)
    library.asked()
    library.check(library.reader())
    assert library.asked() == (0, 0)
    assert len(library.files()) == 3


FOREIGN = {"another user's": lambda path: os.chown(path, 4321, -1), "writable": lambda path: path.chmod(0o622)}


@pytest.mark.parametrize("way", FOREIGN)
def test_a_file_that_others_can_write_is_not_used(library: Library, way: str) -> None:
    if way == "another user's" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    library.check(library.reader())
    assert {path.stat().st_mode & 0o777 for path in library.files()} == {0o600}
    assert library.folder.stat().st_mode & 0o777 == 0o700
    for path in library.files():
        path.write_bytes(path.read_bytes()[:-100] + bytes(100))
        FOREIGN[way](path)
    library.asked()
    before = {path: path.read_bytes() for path in library.files()}
    with pytest.warns(CacheWarning, match=r"nobody else may write to, found one of user \d+ with mode 06\d\d") as told:
        library.check(library.reader())
    assert len(told) == 1
    assert library.asked()[1] >= library.rows.nbytes
    assert {path: path.read_bytes() for path in library.files()} == before


def test_a_few_blobs_cost_a_few_bytes(library: Library) -> None:
    tenth = library.plan.take(np.arange(0, 120, 10))
    plan = BlobRefs(tenth.segments, tenth.segment, tenth.offset, tenth.length)
    reader = library.reader()
    for row in np.random.default_rng(0).permutation(12):
        found = reader.gather(plan.take([row]))
        assert found is not None and (found[0] == library.rows[10 * row]).all()
    assert library.asked()[1] <= 1.2 * 12 * BYTES
    assert library.on_disk() <= 2 * 12 * BYTES + 3 * 3 * 4096
    library.check(reader)
    assert library.asked()[1] <= 1.01 * 108 * BYTES


def test_a_plan_that_wants_all_is_fetched_in_large_pieces(library: Library) -> None:
    found = library.reader().gather(library.plan.take([0, 50, 100]))
    assert found is not None
    requests, nbytes = library.asked()
    assert requests == 6  # an index and all blobs of each segment
    assert nbytes >= library.rows.nbytes


def test_small_blobs_come_together(tmp_path: Path) -> None:
    library = Library(tmp_path, segments=2, blobs=500, size=784)
    reader = library.reader()
    library.check(reader, batch=7)
    assert library.asked()[0] == 4  # an index and all blobs of each segment


def test_least_recently_used_segments_go_first_and_nothing_else(tmp_path: Path) -> None:
    library = Library(tmp_path / "segments", segments=12)
    folder = library.folder
    folder.mkdir()
    others = {name: os.urandom(3_000_000) for name in ("notes.txt", "a.seg", f"{'0' * 32}.seg", f"new-{'0' * 32}.tmp")}
    for name, content in others.items():
        (folder / name).write_bytes(content)
        os.utime(folder / name, (0, 0))
    cap = 3_000_000 + 5 * 40 * BYTES
    reader = library.reader(cap)
    for seed in range(3):
        library.check(reader, seed, batch=5)
        assert library.on_disk() <= cap
    for name, content in others.items():
        assert (folder / name).read_bytes() == content
    before = set(library.files())
    refs = library.plan.take(np.arange(40))
    reader.gather(refs)
    assert len(set(library.files()) - before) <= 1
    library.asked()
    reader.gather(refs)
    assert library.asked() == (0, 0)


def test_an_abandoned_temporary_file_goes(tmp_path: Path) -> None:
    library = Library(tmp_path, segments=4, cap=4_500_000)
    mine = [tmp_path / f"new-{'1' * 32}-{i}23456789abc.tmp" for i in range(2)]
    for path in mine:
        path.write_bytes(b"TDBcache and more")
    os.utime(mine[0], (0, 0))
    library.check(library.reader())
    assert [path.exists() for path in mine] == [False, True]


def test_a_cap_below_one_segment(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    reader = library.reader(cap=1_000_000)
    library.check(reader)
    library.check(reader, seed=1)
    assert library.files() == []
    assert [r.message for r in caplog.records if "cache_bytes=1,000,000" in r.message] == [
        r.message for r in caplog.records
    ]
    assert len(caplog.records) == 1


def test_the_default_cap(tmp_path: Path) -> None:
    cap = SegmentCache(tmp_path / "not" / "there").cap
    assert 0 < cap <= DEFAULT_CAP
    assert cap <= shutil.disk_usage(tmp_path).total // 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield disk
    gc.collect()
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_large_pieces_reserve_their_place_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(tmp_path, segments=1, blobs=60)
    reserved: list[tuple[int, int]] = []
    real = cached_file.reserve
    monkeypatch.setattr(cached_file, "reserve", lambda fd, at, n: (reserved.append((at, n)), real(fd, at, n))[1])
    few = library.plan.take(np.arange(5))
    reader = library.reader()
    reader.gather(BlobRefs(few.segments, few.segment, few.offset, few.length))
    assert not reserved
    library.check(reader)
    begin = int(library.plan.offset[5]) + cached_file.begins(60)
    assert reserved == [(begin, 55 * BYTES)]
    assert library.on_disk() <= library.rows.nbytes + 5 * 4096
    reader.close()


def test_a_full_disk(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    library = Library(small_disk / "segments")
    reader = library.reader()
    for seed in range(3):
        library.check(reader, seed)
    assert [record.message for record in caplog.records] == [
        f"cannot cache in {library.folder}: No space left on device; blobs are read from their store each time"
    ]
    reader.close()


def test_a_read_only_folder_serves_what_it_has(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    library = Library(small_disk / "segments", segments=2)
    half = library.plan.take(np.arange(40))
    library.reader().gather(half)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    library.asked()
    reader = library.reader()
    reader.gather(half)
    assert library.asked() == (0, 0)
    library.check(reader)
    library.check(reader, seed=1)
    assert len(caplog.records) == 1 and "Read-only file system" in caplog.text
    reader.close()


def test_a_limit_on_file_sizes(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        library.check(library.reader())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(caplog.records) == 1 and "File too large" in caplog.text


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    library = Library(tmp_path / "file" / "segments")
    library.check(library.reader())
    assert len(caplog.records) == 1 and "Not a directory" in caplog.text


@pytest.mark.parametrize("at", [0, 9, 13, 17, 4096, 8192, 8192 + 70_000, -5, -60, -400])
def test_a_flipped_bit_in_a_cached_file(library: Library, at: int) -> None:
    library.check(library.reader())
    library.asked()
    for path in library.files():
        flip(path, at)
    library.check(library.reader())
    assert library.asked()[1] <= 1.01 * library.rows.nbytes
    library.check(library.reader())  # and it was mended, or is read through
    assert at in (0, 4096) or library.asked()[0] == 0


def test_a_mark_without_the_bytes(library: Library) -> None:
    library.reader().gather(library.plan.take([0]).take([0]))
    for path in library.files():
        with open(path, "r+b") as file:
            file.seek(4096)
            file.write(b"\1" * 40)
    library.check(library.reader())


def test_a_cached_file_cut_short_or_replaced(library: Library, tmp_path: Path) -> None:
    library.check(library.reader())
    cut, replaced, folder = library.files()
    cut.write_bytes(cut.read_bytes()[:-1])
    replaced.write_bytes(b"something else")
    folder.unlink()
    folder.mkdir()
    library.check(library.reader())
    assert replaced.read_bytes() == b"something else" and folder.is_dir()
    assert cut.stat().st_size > BYTES


def test_the_folder_goes_while_it_is_used(library: Library) -> None:
    reader = library.reader()
    reader.gather(library.plan.take(np.arange(0, 120, 40)))
    shutil.rmtree(library.folder)
    library.check(reader)
    shutil.rmtree(library.folder, ignore_errors=True)
    library.check(reader, seed=1)


def test_a_file_that_another_process_removes_and_makes_anew_is_never_taken_for_the_old_one(library: Library) -> None:
    reader, other = library.reader(), library.reader()
    for _ in range(3):
        library.check(reader)
        assert library.plan.checksum_cache is not None and library.plan.checksum_cache.verified is not None
        gone = library.files()
        for path in gone:
            path.unlink()
        other._tables._drop({path.name for path in gone})
        other.gather(library.plan.take([3]))
        reader._tended = -1e9  # it is time to look what has become of the files
        library.check(reader)
        library.check(other)


def test_many_threads_fetch_everything_once(library: Library) -> None:
    reader = library.reader()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: library.check(reader, seed), range(8)))
    assert library.asked()[1] <= 1.01 * library.rows.nbytes
    reader.close()


def test_many_threads_in_a_cache_that_is_too_small(tmp_path: Path) -> None:
    library = Library(tmp_path, segments=10, cap=3 * 40 * BYTES)
    reader = library.reader()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda seed: library.check(reader, seed), range(6)))
    assert library.on_disk() <= library.cap
    reader.close()


def test_announced_batches_are_fetched_before_they_are_read(library: Library) -> None:
    reader = library.reader()
    batches = [library.plan.take(rows) for rows in np.random.default_rng(0).permutation(120).reshape(6, 20)]
    for refs in batches:
        reader.prefetch(refs)
    for refs in batches:
        assert refs.ahead is not None
        for *_, futures in refs.ahead.result().wanted:
            for future in futures:
                future.result()
    asked = library.store.requests
    for refs in batches:
        found = reader.gather(refs)
        assert found is not None and refs.at is not None
        assert (found == library.rows[refs.at]).all()
    assert library.store.requests == asked
    reader.close()


def test_announced_batches_without_a_cache(library: Library) -> None:
    reader = library.shelf.reader()
    batches = [library.plan.take(rows) for rows in np.random.default_rng(0).permutation(120).reshape(6, 20)]
    for refs in batches:
        reader.prefetch(refs)
    for refs in batches:
        blobs = reader.read(refs)
        assert refs.at is not None
        assert b"".join(blobs) == library.rows[refs.at].tobytes()
    assert library.asked()[1] <= 1.01 * library.rows.nbytes
    reader.close()


def test_a_cache_costs_the_descriptors_of_no_segment(library: Library) -> None:
    reader = library.reader()
    library.check(reader)
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd.isdigit() and alive(fd)]
    assert not [name for name in names if str(library.folder) in name]
    reader.close()
    del reader
    gc.collect()
    assert str(library.folder) not in Path("/proc/self/maps").read_text()


def test_no_cache_for_a_store_of_files(tmp_path: Path) -> None:
    shelf = Shelf(FileStore(tmp_path / "blobs"), SegmentCache(tmp_path / "segments"))
    assert [bytes(b) for b in shelf.reader().read(BlobRefs.from_docs(shelf.put([b"abc"])))] == [b"abc"]
    assert not (tmp_path / "segments").exists()


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    with open(path, "r+b") as file:
        file.write(content)


def alive(fd: str) -> bool:
    try:
        os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False
    return True


def test_import_is_light() -> None:
    code = "import sys, tensordb_data.blobs.reader.disk_cache; assert 'obstore' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cached_file_cut_short_while_it_is_mapped(library: Library) -> None:
    """Its blobs are fetched anew. A read of the mapping would end the process with SIGBUS."""
    reader = library.reader()
    for size in (None, 0, 4096, BYTES):
        if size is not None:
            for path in library.files():
                os.truncate(path, size)
        library.asked()
        library.check(reader)
        blobs = reader.read(library.plan)
        assert [bytes(blob) for blob in blobs] == [row.tobytes() for row in library.rows]
        assert library.asked()[1] >= library.rows.nbytes

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import ObjectId
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensordb_data.blobs.reader.disk_cache import SegmentCache
from tensordb_data.blobs.reader.reader import BlobReader
from tensordb_data.blobs.reader.segment_table import Table
from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.blobs.stores.local import FileStore
from tensordb_data.blobs.stores.memory import MemoryStore
from tensordb_data.errors import CorruptBlobError, StorageError
from tests.delayed_store import DelayedStore
from tests.shelf import Shelf, shuffled

BLOB = st.one_of(st.binary(max_size=60), st.integers(0, 5000).map(bytes))
SEGMENT = st.lists(st.tuples(BLOB, st.sampled_from([None, 3])), min_size=1, max_size=12)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["local", "remote", "cached"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    if request.param == "cached":
        return Shelf(DelayedStore(MemoryStore(), 0), SegmentCache(tmp_path / "segments"))
    return Shelf(FileStore(tmp_path) if request.param == "local" else MemoryStore())


def fill(shelf: Shelf, segments: list[list[tuple[bytes, int | None]]]) -> tuple[list[bytes], list[dict[str, Any]]]:
    blobs = [blob for segment in segments for blob, _ in segment]
    docs = [ref for s in segments for ref in shelf.put([blob for blob, _ in s], [level for _, level in s])]
    return blobs, docs


@quick
@given(st.lists(SEGMENT, min_size=1, max_size=4), st.integers(0, 100))
def test_any_mixture_comes_back_in_order(
    shelf: Shelf, segments: list[list[tuple[bytes, int | None]]], seed: int
) -> None:
    blobs, docs = fill(shelf, segments)
    reader = shelf.reader()
    refs, order = shuffled(docs, seed)
    for _ in range(2):
        assert [bytes(blob) for blob in reader.read(refs)] == [blobs[i] for i in order]
        rows = reader.gather(refs)
        if len({len(blobs[i]) for i in order}) == 1:
            assert rows is not None
            assert [row.tobytes() for row in rows] == [blobs[i] for i in order]
        else:
            assert rows is None
    reader.close()


def test_large_blobs_whose_memory_lies_far_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heap and what is mapped may lie at two ends of the address space: times their size, numpy cannot count."""
    find = Table._map

    def far(table: Table) -> None:
        find(table)
        table._span = 1 << 47

    monkeypatch.setattr(Table, "_map", far)
    shelf = Shelf(FileStore(tmp_path))
    blobs = [bytes([i]) * 150_000 for i in range(6)]
    docs = [ref for half in (blobs[:3], blobs[3:]) for ref in shelf.put(half, [None] * 3)]
    refs, order = shuffled(docs, 0)
    reader = shelf.reader()
    for _ in range(2):
        rows = reader.gather(refs)
        assert rows is not None and [row.tobytes() for row in rows] == [blobs[i] for i in order]
    reader.close()


@quick
@given(
    st.one_of(st.integers(0, 300), st.integers(16_000, 20_000)),
    st.integers(1, 5),
    st.integers(0, 100),
    st.sampled_from([[None], [3], [3, None]]),
)
def test_blobs_of_one_size_become_one_array(
    shelf: Shelf, size: int, n: int, seed: int, levels: list[int | None]
) -> None:
    rng = np.random.default_rng(seed)
    segments = [
        [(rng.integers(0, 3, size, np.uint8).tobytes(), levels[i % len(levels)]) for i in range(6)] for _ in range(n)
    ]
    blobs, docs = fill(shelf, segments)
    reader = shelf.reader()
    plan = BlobRefs.from_docs(docs)
    for _ in range(3):  # the first pass checks, the later ones need not
        order = rng.permutation(len(docs))
        for rows in np.array_split(order, 4):
            batch = reader.gather(plan.take(rows))
            assert batch is not None
            if len(rows):
                assert batch.shape == (len(rows), size)
            assert [row.tobytes() for row in batch] == [blobs[i] for i in rows]
            assert batch.flags.writeable
            batch[:] = 7  # it is the caller's own
    assert plan.checksum_cache is not None
    reader.close()


def test_sizes_that_differ_only_between_batches(shelf: Shelf) -> None:
    _, docs = fill(shelf, [[(bytes([i]) * (3 if i < 5 else 4), None) for i in range(10)]])
    reader, plan = shelf.reader(), BlobRefs.from_docs(docs)
    for _ in range(3):
        three, four = reader.gather(plan.take(slice(0, 5))), reader.gather(plan.take(slice(5, 10)))
        assert three is not None and three.shape == (5, 3)
        assert four is not None and four.shape == (5, 4)
        assert (four[:, 0] == np.arange(5, 10)).all()
        assert reader.gather(plan.take([4, 5])) is None


def test_one_batch_from_two_stores(tmp_path: Path) -> None:
    shelves = [Shelf(FileStore(tmp_path)), Shelf(MemoryStore())]
    blobs = [bytes([i]) * 9 for i in range(40)]
    docs = [doc for i in range(0, 40, 5) for doc in shelves[i // 5 % 2].put(blobs[i : i + 5], 3 if i > 20 else None)]
    segments = shelves[0].segments | {id: doc | {"root": 1} for id, doc in shelves[1].segments.items()}
    reader = BlobReader(lambda ids: [segments[id] for id in ids], lambda root: shelves[root].store)
    for seed in range(4):
        refs, order = shuffled(docs, seed)
        rows = reader.gather(refs)
        assert rows is not None
        assert rows.tolist() == [[i] * 9 for i in order]
        assert [bytes(blob) for blob in reader.read(refs)] == [blobs[i] for i in order]
    damage(shelves[0], docs[3], at=docs[3]["o"])
    damage(shelves[1], docs[7], at=docs[7]["o"])
    for bad, row in ((7, 0), (3, 1)):
        reader = BlobReader(lambda ids: [segments[id] for id in ids], lambda root: shelves[root].store)
        with pytest.raises(CorruptBlobError) as caught:
            reader.gather(BlobRefs.from_docs([docs[20] if bad == 3 else docs[7], docs[bad]]))
        assert caught.value.row == row


def test_no_references(shelf: Shelf) -> None:
    reader = shelf.reader()
    nothing = BlobRefs.from_docs([])
    assert reader.read(nothing) == []
    rows = reader.gather(nothing)
    assert rows is not None and len(rows) == 0


@pytest.mark.parametrize("level", [None, 3])
@pytest.mark.parametrize("how", ["read", "gather"])
def test_a_damaged_blob_is_found_and_named(shelf: Shelf, how: str, level: int | None) -> None:
    docs = shelf.put([bytes([i]) * 100 for i in range(20)], level)
    damage(shelf, docs[13], at=docs[13]["o"] + docs[13]["n"] // 2)
    refs = BlobRefs.from_docs([docs[i] for i in (3, 4, 13, 5)])
    reader = shelf.reader()
    for _ in range(2):
        with pytest.raises(CorruptBlobError, match=f"{docs[13]['k']}.* at {docs[13]['o']} do not match") as caught:
            getattr(reader, how)(refs)
        assert caught.value.row == 2
    assert len(reader.read(refs.take([0, 1, 3]))) == 3
    assert shelf.reader().gather(BlobRefs.from_docs(docs[:13])) is not None


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_flipped_byte_is_found_or_changes_nothing(shelf: Shelf, data: st.DataObject) -> None:
    blobs = [bytes([i]) * (i % 5 + 1) for i in range(12)]
    docs = shelf.put(blobs, [3 if i % 3 == 0 else None for i in range(12)])
    at = data.draw(st.integers(0, shelf.segments[docs[0]["k"]]["bytes"] - 1))
    damage(shelf, docs[0], at=at, mask=data.draw(st.integers(1, 255)))
    reader = shelf.reader()
    for blob, doc in zip(blobs, docs, strict=True):
        try:
            assert [bytes(found) for found in reader.read(BlobRefs.from_docs([doc]))] == [blob]
        except CorruptBlobError as error:
            assert shelf.key(docs[0]) in str(error)
    reader.close()


@pytest.mark.parametrize(
    "change",
    [{"o": 9}, {"n": 99}, {"n": 101}, {"o": -5}, {"o": 10**15}, {"n": 10**15}, {"n": -1}, {"o": 0}, {"z": True}],
)
@pytest.mark.parametrize("how", ["read", "gather"])
def test_a_reference_to_what_is_no_blob(shelf: Shelf, how: str, change: dict[str, Any]) -> None:
    docs = shelf.put([bytes([i]) * 100 for i in range(20)])
    with pytest.raises(CorruptBlobError, match=str(docs[0]["k"])):
        getattr(shelf.reader(), how)(BlobRefs.from_docs([docs[3] | change]))


@pytest.mark.parametrize("how", ["read", "gather"])
def test_bounds_hold_even_when_all_is_checked(shelf: Shelf, how: str) -> None:
    docs = shelf.put([bytes([i]) * 100 for i in range(20)])
    reader = shelf.reader()
    reader.gather(BlobRefs.from_docs(docs))
    for change in ({"o": 10**15}, {"o": -(10**15)}, {"o": 8 + 1950}):
        with pytest.raises(CorruptBlobError) as caught:
            getattr(reader, how)(BlobRefs.from_docs([docs[0], docs[1] | change]))
        assert caught.value.row == 1


def test_a_segment_that_the_index_does_not_have(shelf: Shelf) -> None:
    docs = [*shelf.put([b"abc"]), {"k": ObjectId(), "o": 8, "n": 3}]
    with pytest.raises(StorageError, match=rf"expected the segment {docs[1]['k']} in the index") as caught:
        shelf.reader().read(BlobRefs.from_docs(docs))
    assert caught.value.row == 1


def test_a_segment_that_the_store_does_not_have(shelf: Shelf) -> None:
    docs = shelf.put([b"abc"])
    shelf.store.delete(shelf.key(docs[0]))
    with pytest.raises(StorageError, match=r"found none: was it deleted|expected a blob") as caught:
        shelf.reader().gather(BlobRefs.from_docs(docs))
    assert caught.value.row == 0
    assert shelf.key(docs[0]) in str(caught.value)


@pytest.mark.parametrize(
    ("replace", "reason"),
    [
        (lambda data: data[:-1], "found .* cut off or replaced"),
        (lambda data: b"\0" + data, "cut off|ends with"),
        (lambda data: bytes(len(data)), "begins with|ends with"),
        (lambda data: b"", "cut off"),
        (lambda data: data[:-12] + b"\x09\0\0\0" + data[-8:], "expected segment format 1, found 9"),
    ],
)
def test_an_object_that_is_not_the_segment(shelf: Shelf, replace: Callable[[bytes], bytes], reason: str) -> None:
    docs = shelf.put([b"abc"])
    key = shelf.key(docs[0])
    shelf.store.put(key, [replace(bytes(shelf.store.get(key)))])
    with pytest.raises(CorruptBlobError, match=reason) as caught:
        shelf.reader().gather(BlobRefs.from_docs(docs))
    assert key in str(caught.value)


def test_another_segment_of_the_same_shape_in_its_place(shelf: Shelf) -> None:
    [ref], [other] = shelf.put([b"right"]), shelf.put([b"wrong"])
    shelf.store.put(shelf.key(ref), [shelf.store.get(shelf.key(other))])
    with pytest.raises(CorruptBlobError, match="its index is another than the one that was"):
        shelf.reader().gather(BlobRefs.from_docs([ref]))
    del shelf.segments[ref["k"]]["sum"]  # as 0.1 wrote it
    found = shelf.reader().gather(BlobRefs.from_docs([ref]))
    assert found is not None and found.tobytes() == b"wrong"


def test_references_outside_their_own_table(shelf: Shelf) -> None:
    docs = shelf.put([b"abc"])
    good = BlobRefs.from_docs(docs)
    bad = BlobRefs(good.segments, np.array([7], np.uint32), good.offset, good.length)
    reader = shelf.reader()
    for _ in range(2):
        with pytest.raises(StorageError, match="1 segments"):
            reader.gather(bad)
        reader.gather(good)


def test_each_segment_is_looked_up_once(shelf: Shelf) -> None:
    docs = [doc for _ in range(5) for doc in shelf.put([b"abcd", b"efgh"])]
    reader = shelf.reader()
    for _ in range(3):
        reader.gather(BlobRefs.from_docs(docs))
    assert shelf.finds == 1


def test_threads_that_come_together_look_a_segment_up_once(shelf: Shelf) -> None:
    docs = shelf.put([b"abcd", b"efgh"])
    reader, together, find = shelf.reader(), threading.Barrier(4), shelf.find

    def slow_find(ids: Sequence[ObjectId]) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.2)  # all of them would pass, if all of them asked
        return find(ids)

    reader._tables._find_segments = slow_find
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: reader.gather(BlobRefs.from_docs(docs)) is not None, range(4)))
    assert shelf.finds == 1


def test_few_open_segments_are_enough(shelf: Shelf) -> None:
    blobs = [bytes([i]) * 50 for i in range(40)]
    docs = [doc for i in range(0, 40, 4) for doc in shelf.put(blobs[i : i + 4])]
    reader = shelf.reader(max_open=2, max_index_bytes=300)
    plan = BlobRefs.from_docs(docs)
    rng = np.random.default_rng(0)
    for _ in range(60):
        order = rng.integers(0, 40, 5)
        rows = reader.gather(plan.take(order))
        assert rows is not None
        assert rows[:, 0].tolist() == order.tolist()
        assert len(reader._tables._opened) <= 7
    views = reader.read(plan)
    reader.close()
    assert [bytes(view) for view in views] == blobs


def test_many_threads_at_once(shelf: Shelf) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 64), np.uint8)
    docs = [doc for i in range(0, 300, 10) for doc in shelf.put([row.tobytes() for row in images[i : i + 10]], None)]
    reader = shelf.reader(max_open=7, max_index_bytes=2000)
    plan = BlobRefs.from_docs(docs)

    def work(seed: int) -> bool:
        order = np.random.default_rng(seed).integers(0, 300, 40)
        rows, blobs = reader.gather(plan.take(order)), reader.read(plan.take(order))
        return rows is not None and (rows == images[order]).all() and b"".join(blobs) == images[order].tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
    reader.close()


def test_nothing_is_left_after_close(tmp_path: Path) -> None:
    shelf = Shelf(FileStore(tmp_path))
    docs = [doc for _ in range(3) for doc in shelf.put([bytes(4000)] * 3)]
    reader = shelf.reader()
    batch, views = reader.gather(BlobRefs.from_docs(docs)), reader.read(BlobRefs.from_docs(docs))
    assert mapped(tmp_path) == 3
    assert open_files(tmp_path) == 3  # for their leases
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("tensordb-blobs")]
    reader.close()
    reader.close()
    assert bytes(views[0]) == bytes(4000)
    del views
    gc.collect()
    assert mapped(tmp_path) == open_files(tmp_path) == 0
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert batch is not None and not batch.any()
    with pytest.raises(StorageError, match="closed"):
        reader.gather(BlobRefs.from_docs(docs))


def test_a_reader_that_is_dropped_unmaps(tmp_path: Path) -> None:
    shelf = Shelf(FileStore(tmp_path))
    reader = shelf.reader()
    reader.gather(BlobRefs.from_docs(shelf.put([bytes(4000)] * 3)))
    del reader
    gc.collect()
    assert mapped(tmp_path) == 0


def test_a_20_mb_blob_beside_empty_ones(shelf: Shelf) -> None:
    big = os.urandom(20 << 20)
    docs = shelf.put([b"", big, b"", bytes(20 << 20), b"x"], [None, None, 3, 3, 3])
    reader = shelf.reader()
    assert [bytes(blob) for blob in reader.read(BlobRefs.from_docs(docs))] == [b"", big, b"", bytes(20 << 20), b"x"]
    rows = reader.gather(BlobRefs.from_docs([docs[3], docs[1]]))
    assert rows is not None
    assert not rows[0].any()
    assert rows[1].tobytes() == big


def damage(shelf: Shelf, doc: dict[str, Any], at: int, mask: int = 0x20) -> None:
    data = bytearray(shelf.store.get(shelf.key(doc)))
    data[at] ^= mask
    shelf.store.put(shelf.key(doc), [data])


def mapped(folder: Path) -> int:
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def open_files(folder: Path) -> int:
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{fd}").startswith(str(folder))
        except FileNotFoundError:
            continue
    return count


@pytest.mark.parametrize("compress", [None, 3])
def test_a_file_cut_short_while_it_is_mapped(tmp_path: Path, compress: int | None) -> None:
    """A read of its mapping would end the process with SIGBUS."""
    shelf = Shelf(FileStore(tmp_path))
    docs = shelf.put([bytes([i]) * 9000 for i in range(40)], compress)
    refs, reader = BlobRefs.from_docs(docs), shelf.reader()
    some = refs.take(slice(0, 2))
    assert reader.gather(some) is not None
    path = shelf.store.local_path(shelf.key(docs[0]))
    assert path is not None
    whole = path.read_bytes()
    for size in (8192, 0) if compress is None else (0,):
        os.truncate(path, size)
        for read in (reader.gather, reader.read):
            with pytest.raises(CorruptBlobError, match="found some gone while it was read: cut off"):
                read(refs)
    with pytest.raises(CorruptBlobError, match="cut off"):
        reader.gather(some)
    with open(path, "r+b") as file:
        file.write(whole)
    assert [bytes(blob)[:1] for blob in reader.read(refs)] == [bytes([i]) for i in range(40)]

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from tensordb_data.blobs.reader import download_pool
from tensordb_data.blobs.reader.disk_cache import SegmentCache
from tensordb_data.blobs.reader.download_pool import Fetcher, Window
from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.blobs.stores.base import TransientError
from tensordb_data.blobs.stores.memory import MemoryStore
from tensordb_data.errors import CorruptBlobError, StorageError
from tests.delayed_store import DelayedStore
from tests.shelf import Shelf
from tests.store_contract import StoreContract


class TestDelayedStore(StoreContract):
    @pytest.fixture
    def store(self) -> DelayedStore:
        return DelayedStore(MemoryStore("delayed"), 0.0001)


def test_a_delayed_store_counts() -> None:
    store = DelayedStore(MemoryStore(), 0)
    store.put("k", [b"0123456789"])
    store.get_ranges("k", [0, 5], [2, 3])
    store.get("k")
    assert (store.requests, store.nbytes) == (4, 15)
    assert store.local_path("k") is None


class Line:
    """A line of some bandwidth and latency, of which a window decides how much is on its way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bandwidth: float, latency: float) -> None:
        self.now = 0.0
        monkeypatch.setattr(download_pool.time, "monotonic", lambda: self.now)
        self.window, self.bandwidth, self.latency = Window(), bandwidth, latency

    def run(self, seconds: float, more: bool = True) -> None:
        request, end = 1 << 20, self.now + seconds
        while self.now < end:
            rate = min(self.bandwidth, self.window.limit / self.latency)
            self.now += request / rate
            self.window.finished(request, more)


def test_more_is_in_flight_as_long_as_more_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch, bandwidth=900e6, latency=0.1)
    line.run(5)
    assert line.window.limit >= 0.9 * 900e6 * 0.1
    line.latency = 0.001
    line.run(60)
    assert line.window.limit <= download_pool._MOST


def test_no_more_is_in_flight_than_the_line_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch, bandwidth=500e6, latency=0.001)
    line.run(2)
    assert line.window.limit == download_pool._FIRST
    line.latency = 0.1  # and when the way gets longer, it is found out
    line.run(15)
    assert line.window.limit >= 0.9 * 500e6 * 0.1


def test_a_line_that_is_not_full_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch, bandwidth=500e6, latency=0.1)
    line.run(60, more=False)
    assert line.window.limit == download_pool._FIRST


def test_bytes_in_flight_are_bounded_and_urgent_ones_go_first() -> None:
    fetcher, gate, go_on, begun, order = Fetcher(), threading.Event(), threading.Event(), threading.Semaphore(0), []
    half = fetcher.window.limit // 2

    def begin(number: int) -> None:
        order.append(number)
        begun.release()
        assert go_on.wait(60)

    first = [fetcher.submit(lambda: gate.wait(60), lambda: half) for _ in range(2)]
    later = [fetcher.submit(lambda i=i: begin(i), lambda: half, urgent=i == 3) for i in range(4)]  # type: ignore[misc]
    assert not any(future.running() or future.done() for future in later)
    gate.set()
    assert begun.acquire(timeout=60) and begun.acquire(timeout=60)
    assert sorted(order) == [0, 3], "two at a time"
    go_on.set()
    for future in [*first, *later]:
        future.result(60)
    fetcher.close()
    with pytest.raises(StorageError, match="closed"):
        fetcher.submit(lambda: None, lambda: 1)


def test_the_newest_waits_to_grow_while_the_line_is_busy() -> None:
    fetcher, gate = Fetcher(), threading.Event()
    most = int(0.6 * fetcher.window.limit)
    busy = fetcher.submit(lambda: gate.wait(30), lambda: most)
    one = fetcher.submit(lambda: 1, lambda: 1)
    assert fetcher.submit(lambda: 2, lambda: 1, urgent=True).result(30) == 2
    assert not one.running() and not one.done()
    other = fetcher.submit(lambda: 3, lambda: 1)
    assert one.result(30) == 1
    assert not other.running() and not other.done()
    gate.set()
    assert busy.result(30) and other.result(30) == 3
    fetcher.close()


def test_one_request_that_is_larger_than_the_window_is_made() -> None:
    fetcher = Fetcher()
    assert fetcher.submit(lambda: 1, lambda: 10 * fetcher.window.limit).result(30) == 1
    fetcher.close()


def test_closing_drops_what_waits() -> None:
    fetcher, gate = Fetcher(), threading.Event()
    first = fetcher.submit(lambda: gate.wait(30), lambda: fetcher.window.limit)
    waiting = fetcher.submit(lambda: None, lambda: 1)
    fetcher.close()
    assert waiting.cancelled()
    gate.set()
    assert first.result(30)


class Flaky(DelayedStore):
    """Fails, or answers with a flipped bit, a few times."""

    def __init__(self, failures: int = 0, flips: int = 0) -> None:
        super().__init__(MemoryStore(), 0)
        self.failures, self.flips = failures, flips

    def get_ranges(self, key: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        found = super().get_ranges(key, offsets, lengths)
        if self.failures:
            self.failures -= 1
            raise TransientError("the line was cut")
        if self.flips:
            self.flips -= 1
            flipped = bytearray(found[0])
            flipped[1] ^= 4
            found[0] = memoryview(flipped)
        return found


@pytest.fixture(params=["cached", "read through"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentCache | None:
    return SegmentCache(tmp_path / "segments") if request.param == "cached" else None


def test_failed_requests_are_made_again(cache: SegmentCache | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_pool, "_BACKOFF", 0.001)
    store = Flaky()
    shelf = Shelf(store, cache)
    refs = BlobRefs.from_docs(shelf.put([b"first", b"second"]))
    reader = shelf.reader()
    store.failures = 2
    assert [bytes(blob) for blob in reader.read(refs)] == [b"first", b"second"]
    store.failures = 50
    more = BlobRefs.from_docs(shelf.put([b"third"]))
    with pytest.raises(StorageError, match="the line was cut") as caught:
        reader.read(more)
    assert caught.value.row == 0
    store.failures = 0
    assert [bytes(blob) for blob in reader.read(more)] == [b"third"]
    reader.close()


def test_those_who_failed_together_do_not_come_back_together(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def fail() -> None:
        raise TransientError("the line was cut")

    for _ in range(20):
        fetcher = Fetcher()
        monkeypatch.setattr(fetcher.closed, "wait", waits.append)
        with pytest.raises(TransientError):
            fetcher.retried(fail)
    first, second = waits[::2], waits[1::2]
    assert len(waits) == 40 and len(set(waits)) == 40
    assert 0 <= max(first) <= download_pool._BACKOFF < max(second) <= 2 * download_pool._BACKOFF


def test_what_was_damaged_on_its_way_is_fetched_again(cache: SegmentCache | None) -> None:
    store = Flaky()
    shelf = Shelf(store, cache)
    refs = BlobRefs.from_docs(shelf.put([b"first", b"second"]))
    reader = shelf.reader()
    reader.read(refs.take([0]).take(slice(0, 0)))
    reader._tables.table(refs)  # its index is there
    store.flips = 1
    assert [bytes(blob) for blob in reader.read(refs)] == [b"first", b"second"]
    assert [bytes(blob) for blob in reader.read(refs)] == [b"first", b"second"]
    reader.close()
    fresh = shelf.reader()
    fresh._tables.table(refs)
    store.flips = 9
    if cache is None:
        with pytest.raises(CorruptBlobError, match="do not match"):
            fresh.read(refs)
    else:
        assert [bytes(blob) for blob in fresh.read(refs)] == [b"first", b"second"]
    fresh.close()

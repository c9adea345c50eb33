"""What every blob store must do. A backend's tests subclass `StoreContract` and give it a fresh store."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tensordb_data.blobs.stores.base import Store
from tensordb_data.errors import StorageError

BAD_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "a/../b",
    "..",
    "a//b",
    "a/",
    ".hidden",
    "a/.put-1",
    "a\\b",
    "a b",
    "a\0b",
    "ä",
    "a?b",
]


class StoreContract:
    """The contract of `tensordb_data.blobs.stores.base.Store`."""

    @pytest.fixture
    def store(self) -> Store:
        """A store with nothing in it."""
        raise NotImplementedError

    def test_put_then_get(self, store: Store) -> None:
        store.put("data/one", [b"hello ", bytearray(b"wide "), memoryview(b"world")])
        assert bytes(store.get("data/one")) == b"hello wide world"
        assert store.size("data/one") == 16

    def test_parts_of_nothing_make_an_empty_object(self, store: Store) -> None:
        store.put("empty", [])
        store.put("empty-too", [b"", b""])
        assert bytes(store.get("empty")) == bytes(store.get("empty-too")) == b""
        assert store.size("empty") == 0
        assert [bytes(found) for found in store.get_ranges("empty", [0], [0])] == [b""]

    def test_large_object_of_odd_parts(self, store: Store) -> None:
        data = os.urandom((12 << 20) + 13)
        store.put("large", [data[:1], data[1:300_000], b"", data[300_000:]])
        assert bytes(store.get("large")) == data
        offsets = [0, 255 * 1024 - 1, len(data) - 7, 5_000_000, 1]
        lengths = [10, 2, 7, 3_000_000, 0]
        found = store.get_ranges("large", offsets, lengths)
        assert [bytes(each) for each in found] == [data[o : o + n] for o, n in zip(offsets, lengths, strict=True)]

    def test_a_sweep_takes_no_object(self, store: Store) -> None:
        store.put("data/one", [b"1" * 300_000])
        assert store.sweep(0, dry_run=True) == store.sweep(0) == (0, 0)
        assert store.size("data/one") == 300_000

    def test_ranges_come_in_the_order_asked_overlapping_or_not(self, store: Store) -> None:
        store.put("digits", [b"0123456789"])
        found = store.get_ranges("digits", [5, 0, 0, 9, 4, 10], [5, 10, 1, 1, 3, 0])
        assert [bytes(each) for each in found] == [b"56789", b"0123456789", b"0", b"9", b"456", b""]
        assert store.get_ranges("digits", [], []) == []

    @pytest.mark.parametrize(("offset", "length"), [(8, 3), (10, 1), (11, 0), (-1, 2), (2, -1), (1000, 5)])
    def test_a_range_that_the_object_does_not_have(self, store: Store, offset: int, length: int) -> None:
        store.put("digits", [b"0123456789"])
        with pytest.raises(StorageError, match="expected a range within 10 bytes"):
            store.get_ranges("digits", [0, offset], [1, length])

    def test_put_again_replaces_the_whole(self, store: Store) -> None:
        store.put("k", [b"a longer first version"])
        store.get_ranges("k", [0], [3])
        store.put("k", [b"second"])
        assert bytes(store.get("k")) == b"second"
        assert store.size("k") == 6
        assert list(store.list()) == [("k", 6)]

    def test_what_is_not_there(self, store: Store) -> None:
        for read in (store.get, store.size, lambda key: store.get_ranges(key, [0], [1])):
            with pytest.raises(StorageError, match=r"expected a blob .*nothing"):
                read("data/nothing")

    def test_delete(self, store: Store) -> None:
        store.put("a/1", [b"1"])
        store.put("a/2", [b"2"])
        store.delete("a/1")
        store.delete("a/1")
        store.delete("never/was")
        assert list(store.list()) == [("a/2", 1)]
        with pytest.raises(StorageError):
            store.get("a/1")

    def test_list_by_prefix(self, store: Store) -> None:
        for key in ("data/a", "data/ab", "data/b/c", "database", "other"):
            store.put(key, [key.encode()])
        assert sorted(store.list("data/")) == [("data/a", 6), ("data/ab", 7), ("data/b/c", 8)]
        assert sorted(key for key, _ in store.list("data/a")) == ["data/a", "data/ab"]
        assert sorted(key for key, _ in store.list("data")) == ["data/a", "data/ab", "data/b/c", "database"]
        assert len(list(store.list())) == 5
        assert list(store.list("zzz")) == []

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_a_key_that_could_lead_elsewhere_is_refused(self, store: Store, key: str) -> None:
        for act in (
            lambda: store.put(key, [b"x"]),
            lambda: store.get(key),
            lambda: store.get_ranges(key, [0], [1]),
            lambda: store.size(key),
            lambda: store.delete(key),
        ):
            with pytest.raises(StorageError, match="expected a key"):
                act()

    def test_many_threads_at_once(self, store: Store) -> None:
        def work(i: int) -> bool:
            data = bytes([i]) * (1000 * i + 1)
            store.put(f"thread/{i}", [data])
            return bytes(store.get(f"thread/{i}")) == data and len(store.get_ranges(f"thread/{i}", [0], [1])) == 1

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(24)))
        assert len(list(store.list("thread/"))) == 24

    def test_replacing_while_others_read_never_shows_a_mixture(self, store: Store) -> None:
        versions = [bytes([i]) * 400_000 for i in range(6)]
        store.put("k", [versions[0]])

        def read(_: int) -> bool:
            return bytes(store.get("k")) in versions

        with ThreadPoolExecutor(4) as pool:
            reads = [pool.submit(read, i) for i in range(20)]
            for version in versions:
                store.put("k", [version[:100_000], version[100_000:]])
            assert all(each.result() for each in reads)

    def test_url_and_repr_name_the_store(self, store: Store) -> None:
        assert "://" in store.url
        assert store.url.split("://")[1] in repr(store)

    def test_local_path_is_the_object(self, store: Store) -> None:
        store.put("here/it-is", [b"bytes"])
        path = store.local_path("here/it-is")
        assert path is None or path.read_bytes() == b"bytes"

    def test_close_keeps_the_objects(self, store: Store) -> None:
        store.put("k", [b"kept"])
        store.close()
        assert bytes(store.get("k")) == b"kept"

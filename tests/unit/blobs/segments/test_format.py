from __future__ import annotations

import os
import struct

import bson
import numpy as np
import pytest
import xxhash
from bson import ObjectId
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data.blobs.segments.format import MAGIC, TRAILER_BYTES, SegmentBuilder
from tensordb_data.blobs.segments.read import read_segment
from tensordb_data.blobs.stores.memory import MemoryStore
from tensordb_data.errors import CorruptBlobError, StorageError

BLOB = st.one_of(st.binary(max_size=40), st.integers(0, 3000).map(lambda n: bytes(n)))


def build(
    blobs: list[tuple[bytes, int | None]], samples: list[dict[str, object]]
) -> tuple[bytes, list[tuple[int, int, bool]]]:
    builder = SegmentBuilder("shoes", "fäshion", {"image": {"kind": "bytes"}})
    found = [builder.add(*blob) for blob in blobs]
    made = builder.finish(samples)
    data = b"".join(made.parts)
    assert len(data) == made.nbytes
    assert made.index[0] + made.index[1] + TRAILER_BYTES == made.nbytes
    return data, found


def stored(data: bytes) -> tuple[MemoryStore, str]:
    store = MemoryStore("test")
    store.put("segment", [data])
    return store, "segment"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(BLOB, st.sampled_from([None, 1, 3])), max_size=30))
def test_round_trip_from_the_object_alone(blobs: list[tuple[bytes, int | None]]) -> None:
    samples: list[dict[str, object]] = [
        {"label": i, "naïve": "ü", "nested": {"a": [1, None]}} for i in range(len(blobs))
    ]
    data, found = build(blobs, samples)
    index, documents = read_segment(*stored(data))
    assert (documents.project, documents.dataset) == ("shoes", "fäshion")
    assert documents.schema == {"image": {"kind": "bytes"}}
    assert documents.samples == samples
    assert index.offsets.tolist() == [offset for offset, _, _ in found]
    assert index.lengths.tolist() == [length for _, length, _ in found]
    assert index.compressed.tolist() == [packed for _, _, packed in found]
    for (blob, level), (offset, length, packed), checksum in zip(blobs, found, index.checksums.tolist(), strict=True):
        raw = data[offset : offset + length]
        assert packed or raw == blob
        assert level is not None or not packed
        assert checksum == xxhash.xxh3_64_intdigest(raw)


def test_rows_and_single_blobs_in_one_segment() -> None:
    rows = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7)
    builder = SegmentBuilder("p", "d", {})
    first, *_ = builder.add(b"first")
    offsets = builder.add_rows(rows)
    none = builder.add_rows(np.empty((3, 0), np.uint8))
    last, *_ = builder.add(b"last")
    rows[:] = 0  # the builder has its own copy
    data = b"".join(builder.finish([]).parts)
    index, _ = read_segment(*stored(data))
    assert index.offsets.tolist() == [first, *offsets.tolist(), *none.tolist(), last]
    assert [data[o : o + 7] for o in offsets] == [bytes(range(7 * i, 7 * i + 7)) for i in range(5)]
    with pytest.raises(ValueError, match="uint8"):
        builder.add_rows(np.zeros((2, 3), np.float32))  # type: ignore[arg-type]


def test_rows_from_memory_that_is_not_contiguous() -> None:
    wide = np.arange(60, dtype=np.uint8).reshape(6, 10)
    builder = SegmentBuilder("p", "d", {})
    offsets = builder.add_rows(wide[::2, 1:4])
    data = b"".join(builder.finish([]).parts)
    assert [data[o : o + 3] for o in offsets] == [bytes(row[1:4]) for row in wide[::2]]


def test_a_20_mb_blob_between_empty_ones() -> None:
    big = os.urandom(20 << 20)
    data, found = build([(b"", None), (big, 1), (b"", 1), (bytes(20 << 20), 1)], [])
    index, _ = read_segment(*stored(data))
    assert [packed for _, _, packed in found] == [False, False, False, True]
    assert data[found[1][0] : found[1][0] + (20 << 20)] == big
    assert len(data) < (20 << 20) + 10_000
    assert index.lengths.tolist()[:3] == [0, 20 << 20, 0]


def test_compression_is_kept_only_where_it_pays() -> None:
    builder = SegmentBuilder("p", "d", {})
    noise = os.urandom(1000)
    assert builder.add(noise, 3)[1:] == (1000, False)
    assert builder.add(bytes(1000), 3)[2] is True
    assert builder.add(bytes(1000))[1:] == (1000, False)


def test_values_that_bson_cannot_hold() -> None:
    with pytest.raises(StorageError, match="cannot write the samples"):
        SegmentBuilder("p", "d", {}).finish([{"label": object()}])


def test_every_flipped_byte_outside_the_blobs_is_found() -> None:
    data, found = build([(b"blob", None), (bytes(500), 3)], [{"label": 1}])
    end = found[1][0] + found[1][1]
    for at in [*range(len(MAGIC)), *range(end, len(data))]:
        broken = bytearray(data)
        broken[at] ^= 0x10
        with pytest.raises(CorruptBlobError, match="memory://test/segment"):
            read_segment(*stored(bytes(broken)))


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 30, TRAILER_BYTES, TRAILER_BYTES + 8, -1, -8, -TRAILER_BYTES])
def test_a_segment_that_was_cut_off(cut: int) -> None:
    data, _ = build([(bytes(100), None)], [{"label": 1}])
    with pytest.raises(CorruptBlobError, match="segment"):
        read_segment(*stored(data[:cut]))


def test_something_appended() -> None:
    data, _ = build([(bytes(100), None)], [])
    with pytest.raises(CorruptBlobError):
        read_segment(*stored(data + data))
    with pytest.raises(CorruptBlobError):
        read_segment(*stored(data + b"\0"))


def test_other_versions_and_other_files_are_named() -> None:
    data, _ = build([(b"x", None)], [])
    newer = data[:-12] + struct.pack("<I", 2) + MAGIC
    with pytest.raises(CorruptBlobError, match="expected segment format 1, found 2: damaged, or written by a newer"):
        read_segment(*stored(newer))
    with pytest.raises(CorruptBlobError, match="begins with"):
        read_segment(*stored(b"PK\x03\x04" + bytes(500)))
    with pytest.raises(CorruptBlobError, match="ends with"):
        read_segment(*stored(MAGIC + bytes(500)))


def test_samples_keep_every_bson_type() -> None:
    sample = {"_id": ObjectId(), "raw": b"\0\1", "big": bson.Int64(2**62), "nan": float("inf"), "tags": ["a", "b"]}
    data, _ = build([], [sample])
    assert read_segment(*stored(data))[1].samples == [sample]

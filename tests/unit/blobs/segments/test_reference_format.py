"""Reference segments: the round trip from the object alone, and objects that are damaged or made up."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb_data.blobs.segments.foreign import SELF, ForeignBlob, pack_files, read_files
from tensordb_data.blobs.segments.format import MAGIC, TRAILER_BYTES, Trailer
from tensordb_data.blobs.segments.read import read_segment
from tensordb_data.blobs.segments.reference_format import (
    REFERENCES,
    ReferenceBuilder,
    ReferenceIndex,
    parse_references,
)
from tensordb_data.blobs.stores.foreign import ForeignFile
from tensordb_data.blobs.stores.memory import MemoryStore
from tensordb_data.errors import CorruptBlobError, StorageError

KEY = st.lists(st.sampled_from(["a b", "ü", "日本", "x.jpg", "-"]), min_size=1, max_size=3).map("/".join)
FILE = st.builds(
    ForeignFile, st.sampled_from(["photos", "ct"]), KEY, st.integers(0, 2**40), st.integers(-(2**62), 2**62)
)
PLACE = st.builds(
    ForeignBlob, FILE, st.integers(0, 2**40), st.integers(0, 2**30), st.integers(0, 2**64 - 1), st.booleans()
)
BLOBS = st.lists(st.one_of(PLACE, st.binary(max_size=30)), max_size=20)


def build(blobs: list[Any], samples: list[dict[str, object]]) -> tuple[bytes, list[int]]:
    builder = ReferenceBuilder("p", "d", {"image": {"kind": "image"}})
    offsets = [builder.add(blob)[0] for blob in blobs]
    made = builder.finish(samples)
    data = b"".join(made.parts)
    assert (len(data), made.index[0] + made.index[1] + TRAILER_BYTES) == (made.nbytes, made.nbytes)
    assert made.roots == tuple(sorted({blob.file.root for blob in blobs if isinstance(blob, ForeignBlob)}))
    return data, offsets


def stored(data: bytes) -> tuple[MemoryStore, str]:
    store = MemoryStore()
    store.put("s", [data])
    return store, "s"


@settings(max_examples=60)
@given(BLOBS)
def test_round_trip_from_the_object_alone(blobs: list[Any]) -> None:
    samples: list[dict[str, object]] = [{"label": i} for i in range(len(blobs))]
    data, offsets = build(blobs, samples)
    index, documents = read_segment(*stored(data))
    assert documents.samples == samples
    assert index.offsets.tolist() == offsets
    # References count as they would if all bytes were in the segment.
    lengths = [len(blob) for blob in blobs]
    assert index.lengths.tolist() == lengths
    assert offsets == [len(MAGIC) + sum(lengths[:i]) for i in range(len(blobs))]
    refers = any(isinstance(blob, ForeignBlob) for blob in blobs)
    assert isinstance(index, ReferenceIndex) == refers == data.startswith(REFERENCES)
    for number, blob in enumerate(blobs):
        if isinstance(blob, ForeignBlob):
            assert isinstance(index, ReferenceIndex) and index.blob(number) == blob
            continue
        assert int(index.checksums[number]) == xxhash.xxh3_64_intdigest(blob)
        at = int(index.at[number]) if isinstance(index, ReferenceIndex) else int(index.offsets[number])
        assert data[at : at + len(blob)] == blob
        assert not isinstance(index, ReferenceIndex) or index.blob(number) is None


def test_damage_is_noticed() -> None:
    file = ForeignFile("photos", "a.jpg", 10, 5)
    data, _ = build([ForeignBlob(file, 0, 10, 1), b"mask"], [{"a": 1}])
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1
        if len(MAGIC) <= at < len(MAGIC) + 4:
            continue  # a copied blob, whose own checksum tells
        with pytest.raises(CorruptBlobError):
            read_segment(*stored(bytes(broken)))
    for cut in range(0, len(data), 7):
        with pytest.raises(StorageError):
            read_segment(*stored(data[:cut]))


def index_part(files: bytes, columns: tuple[list[int], ...]) -> bytes:
    n = len(columns[0])
    packed = [np.array(c, t).tobytes() for c, t in zip(columns, ("<u4", "<i8", "<i8", "<u8", "<u1"), strict=True)]
    return struct.pack("<QQ", len(files), n) + files + b"".join(packed)


@pytest.mark.parametrize(
    "columns",
    [
        ([1], [0], [5], [0], [0]),  # no such file
        ([0], [-1], [5], [0], [0]),
        ([0], [0], [-5], [0], [0]),
        ([0], [2**63 - 1], [2**62], [0], [0]),
        ([0], [0], [5], [0], [7]),
        ([SELF], [0], [1000], [0], [0]),  # beyond what was copied
        ([0] * 9, [0] * 9, [2**60] * 9, [0] * 9, [0] * 9),
    ],
)
def test_places_that_cannot_be(columns: tuple[list[int], ...]) -> None:
    part = index_part(pack_files([ForeignFile("r", "k", 9, 0)]), columns)
    with pytest.raises(CorruptBlobError, match="places that cannot be"):
        parse_references(part, Trailer((20, 5), 0, (25, len(part)), 0), "s")


@pytest.mark.parametrize("key", ["../etc/passwd", "/etc/passwd", "a/../../b", "a//b", "./a", "", "a\0b", "..", "a/.."])
def test_a_key_that_leads_out_is_no_file(key: str) -> None:
    table = read_files(pack_files([ForeignFile("r", "good", 1, 1), ForeignFile("r", key, 1, 1)]), "s")
    assert table.file(0).key == "good"
    with pytest.raises(CorruptBlobError, match="expected the path of a file below a root"):
        table.file(1)


@pytest.mark.parametrize("name", ["", "a b", "\x1b[2J", "a/b", "x" * 101])
def test_a_name_that_no_root_has(name: str) -> None:
    with pytest.raises(CorruptBlobError, match="expected a table of files"):
        read_files(pack_files([ForeignFile(name, "k", 1, 1)]), "s")


@settings(max_examples=200)
@given(st.binary(max_size=80), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_made_up_indexes_are_refused(data: bytes, table: int, count: int) -> None:
    with pytest.raises(CorruptBlobError):
        parse_references(struct.pack("<QQ", table, count) + data, Trailer((8, 0), 0, (8, 0), 0), "s")

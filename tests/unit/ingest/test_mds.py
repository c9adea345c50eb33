"""Shards of MDS."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import struct
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data import Array, Bytes, Image, Scalar
from tensordb_data.errors import CorruptBlobError, SchemaError, UnsupportedError
from tensordb_data.ingest.readers.shards.mds import MdsShard, field_of, read_index, read_shard, unpacked


def shard(columns: dict[str, tuple[str, int | None]], samples: list[dict[str, bytes]]) -> tuple[bytes, MdsShard]:
    """A shard as the writer of MosaicML lays it out."""
    names = sorted(columns)
    bodies = []
    for sample in samples:
        sizes = [len(sample[name]) for name in names if columns[name][1] is None]
        bodies.append(np.array(sizes, np.uint32).tobytes() + b"".join(sample[name] for name in names))
    config = json.dumps({"version": 2}).encode()
    offsets = np.array([0, *map(len, bodies)]).cumsum() + 4 + 4 * (len(bodies) + 1) + len(config)
    data = struct.pack("<I", len(bodies)) + offsets.astype(np.uint32).tobytes() + config + b"".join(bodies)
    pairs = {name: columns[name][0] for name in names}
    return data, MdsShard("s.mds", None, "", pairs, {name: columns[name][1] for name in names}, len(bodies))


def read(columns: dict[str, tuple[str, int | None]], *samples: dict[str, bytes]) -> list[dict[str, Any]]:
    data, about = shard(columns, list(samples))
    return list(read_shard(io.BytesIO(data), about, about.encodings))


def test_values_are_those_of_their_encoding() -> None:
    columns: dict[str, tuple[str, int | None]] = {
        "a": ("int", 8), "b": ("str", None), "c": ("json", None), "d": ("jpeg", None), "e": ("ndarray:float32:2,3", 24),
        "f": ("ndarray:int16", None), "g": ("uint8", 1), "h": ("float64", 8), "i": ("str_int", None),
        "j": ("float16", 2), "k": ("str_decimal", None), "l": ("pil", None), "m": ("bytes", None),
    }  # fmt: skip
    grid = np.arange(6, dtype="<f4").reshape(2, 3)
    pil = struct.pack("<3I", 2, 1, 3) + b"RGB" + bytes(range(6))
    (row,) = read(columns, {
        "a": struct.pack("<q", -3), "b": "größe".encode(), "c": b'{"x": [1, null]}', "d": b"\xff\xd8\xff",
        "e": grid.tobytes(), "f": bytes([2 << 2, 2, 1]) + b"\x07\x00\xff\xff", "g": b"\xff",
        "h": struct.pack("<d", 0.1), "i": b"12", "j": np.float16(0.5).tobytes(), "k": b"1.10", "l": pil, "m": b"",
    })  # fmt: skip
    assert (row["a"], row["b"], row["c"], row["d"]) == (-3, "größe", {"x": [1, None]}, b"\xff\xd8\xff")
    assert row["e"].tolist() == grid.tolist() and row["f"].tolist() == [[7], [-1]]
    assert (row["g"], row["h"], row["i"], row["j"], row["k"], row["m"]) == (255, 0.1, 12, 0.5, "1.10", b"")
    assert row["l"].tolist() == [[[0, 1, 2], [3, 4, 5]]]


def test_fields() -> None:
    assert field_of("x", "int") == field_of("x", "uint64") == field_of("x", "str_int") == Scalar("int")
    assert field_of("x", "png") == Image() and field_of("x", "bytes") == Bytes()
    assert field_of("x", "ndarray:float32:2,3") == Array("float32", (2, 3))
    assert field_of("x", "ndarray:int64") == Array("int64")
    with pytest.raises(UnsupportedError, match=r"column 'x' holds pickles.*skip=\['x'\]"):
        field_of("x", "pkl")
    for encoding in ("ndarray", "what", "ndarray:object"):
        with pytest.raises(UnsupportedError):
            field_of("x", encoding)


def test_a_large_number_without_a_sign_is_refused() -> None:
    with pytest.raises((SchemaError, CorruptBlobError), match="18446744073709551615"):
        read({"a": ("uint64", 8)}, {"a": b"\xff" * 8})


@pytest.mark.parametrize(
    ("compression", "compress"),
    [("zstd", lambda data: zstandard.compress(data)), ("gz", gzip.compress), ("bz2", bz2.compress)],
)
def test_compressed_shards(compression: str, compress: Any) -> None:
    data, about = shard({"a": ("int", 8)}, [{"a": struct.pack("<q", n)} for n in range(3)])
    plain = unpacked(io.BytesIO(compress(data)), compression, len(data))
    assert [row["a"] for row in read_shard(plain, about, about.encodings)] == [0, 1, 2]
    with pytest.raises(CorruptBlobError, match="a larger one"):
        unpacked(io.BytesIO(compress(data)), compression, len(data) - 1)
    with pytest.raises(CorruptBlobError):
        unpacked(io.BytesIO(b"noise" * 9), compression, 100)


def entry(**changes: Any) -> dict[str, Any]:
    return {"format": "mds", "column_names": ["a"], "column_encodings": ["int"], "column_sizes": [8], "samples": 1,
            "compression": None, "raw_data": {"basename": "s.mds"}, "zip_data": None, **changes}  # fmt: skip


def test_an_index_names_files_beside_it_alone() -> None:
    (found,) = read_index(json.dumps({"version": 2, "shards": [entry()]}).encode())
    assert found == MdsShard("s.mds", None, "", {"a": "int"}, {"a": 8}, 1)
    for name in ("../s.mds", "/etc/passwd", "a\\b", "", "..", 3, "a\0"):
        with pytest.raises(CorruptBlobError):
            read_index(json.dumps({"version": 2, "shards": [entry(raw_data={"basename": name})]}).encode())
    for changes in ({"column_sizes": []}, {"column_sizes": [-1]}, {"samples": "x"}, {"raw_data": None}):
        with pytest.raises(CorruptBlobError):
            read_index(json.dumps({"version": 2, "shards": [entry(**changes)]}).encode())
    for data in (b"", b"[]", b"{}", b'{"version": 2}', b'{"version": 2, "shards": [1]}', b"\xff"):
        with pytest.raises((CorruptBlobError, UnsupportedError)):
            read_index(data)
    with pytest.raises(UnsupportedError, match="version 2, found 1"):
        read_index(b'{"version": 1, "shards": []}')
    with pytest.raises(UnsupportedError, match="snappy"):
        packed = entry(compression="snappy", zip_data={"basename": "s"})
        read_index(json.dumps({"version": 2, "shards": [packed]}).encode())


@given(st.binary(max_size=40), st.integers(0, 90))
def test_damage_is_one_error(noise: bytes, at: int) -> None:
    data, about = shard({"a": ("int", 8), "b": ("str", None), "c": ("ndarray:int16", None), "d": ("json", None)},
                        [{"a": bytes(8), "b": b"x", "c": bytes([4, 1, 0, 0]), "d": b"[1]"}] * 2)  # fmt: skip
    damaged = bytearray(data)
    damaged[at : at + len(noise)] = noise
    try:
        list(read_shard(io.BytesIO(bytes(damaged)), about, about.encodings))
    except CorruptBlobError:
        pass

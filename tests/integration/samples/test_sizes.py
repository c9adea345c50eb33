"""Values that are far larger than they may be: refused by what they claim, before they are expanded."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest

from tensordb_data import Array, Bytes, Image, TensorDB, Text
from tensordb_data.blobs.segments import format as segments
from tensordb_data.blobs.segments.inline import inline_reference
from tensordb_data.errors import CorruptBlobError, SampleError, SchemaError
from tests.helpers import at_most, bomb

SCHEMA = {"x": Array("uint8", (100,)), "rows": Array("uint8"), "note": Text(), "raw": Bytes(), "image": Image()}


def png(width: int, height: int) -> bytes:
    """A PNG of zeros, two colours, of 109 kB where it is 30,000 x 30,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    line = bytes(1 + -(-width // 8))
    pixels = zlib.compress(line * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def fill(db: TensorDB, **given: Any) -> None:
    """Three samples, whose blobs are in the documents or in a segment."""
    values = {"x": np.zeros(100, np.uint8), "rows": np.zeros((2, 50), np.uint8), "note": "n" * 99, "raw": bytes(99)}
    with db.data.writer("d", schema=SCHEMA, compression="zstd:3", **given) as writer:
        for _ in range(3):
            writer.add(image=png(40, 40), **values)


def each_way(db: TensorDB, name: str, says: str) -> None:
    """A sample with a field that is too large is refused by every reader, and no memory is asked for."""
    with at_most(20 << 20):
        with pytest.raises(CorruptBlobError, match=says):
            db.data.find({"dataset": "d"}).all()[1][name]
        for options in ({}, {"shuffle": True}):
            stream = db.data.find({"dataset": "d"}).stream(batch_size=3, fields=[name], **options)
            with stream, pytest.raises(SampleError, match=rf"field '{name}'.*{says}"):
                next(iter(stream))


LARGE = [("x", 3 * 10**9), ("x", 101), ("x", 2**50), *((name, 3 * 10**9) for name in ("rows", "note", "raw", "image"))]


def test_blobs_in_documents(db: TensorDB) -> None:
    fill(db, live=True)
    data = db.database["data"]
    second = data.find_one({"_tdb.s": 2})
    assert second is not None
    for name, size in LARGE:
        part = inline_reference(bomb(min(size, 3 * 10**9), claimed=size), compressed=True)
        data.update_one({"_id": second["_id"]}, {"$set": {f"_tdb.b.{name}": part}})
        each_way(db, name, f"claims {size:,}")
        data.update_one({"_id": second["_id"]}, {"$set": {f"_tdb.b.{name}": second["_tdb"]["b"][name]}})
    for part in ({"d": "text", "n": 4, "x": 1}, {"d": b"bytes", "n": 5}, {"d": b"bytes", "n": 5, "x": "text"}):
        data.update_one({"_id": second["_id"]}, {"$set": {"_tdb.b.raw": part}})
        with pytest.raises(CorruptBlobError, match="another tool"):
            db.data.find({"dataset": "d"}).all()[1]["raw"]
        with db.data.find({"dataset": "d"}).stream(batch_size=3, fields=["raw"]) as stream:
            with pytest.raises(SampleError, match="field 'raw'"):
                next(iter(stream))


@pytest.mark.parametrize("name, size", LARGE)
def test_blobs_in_a_segment(db: TensorDB, monkeypatch: pytest.MonkeyPatch, name: str, size: int) -> None:
    def pack(self: Any, data: Any, compress: int | None = None) -> tuple[bytes, bool]:
        return real(self, data, compress) if bytes(data) != marked else (bomb(min(size, 3 * 10**9), claimed=size), True)

    real, marked = (
        segments.SegmentBuilder.pack,
        SCHEMA[name].encode(
            {"x": np.ones(100, np.uint8), "rows": np.ones(7, np.uint8), "note": "m", "raw": b"m", "image": png(9, 9)}[
                name
            ]
        ),
    )
    monkeypatch.setattr(segments.SegmentBuilder, "pack", pack)
    values = {"x": np.zeros(100, np.uint8), "rows": np.zeros(7, np.uint8), "note": "n", "raw": b"n", "image": png(8, 8)}
    with db.data.writer("d", schema=SCHEMA, compression="zstd:3") as writer:
        writer.add(**values)
        writer.add(**values | {name: SCHEMA[name].decode(marked) if name != "image" else marked})
        writer.add(**values)
    each_way(db, name, f"claims {size:,}")


def test_an_image_of_900_million_pixels(db: TensorDB, monkeypatch: pytest.MonkeyPatch) -> None:
    large = png(30_000, 30_000)
    assert len(large) < 120_000
    says = "at most 100,000,000 pixels, found one that claims 30,000 x 30,000.*TENSORDB_MAX_PIXELS to 900000000 or more"
    with db.data.writer("d", schema={"raw": Bytes()}) as writer:
        writer.add(raw=large)
    db.database["datasets"].update_one({"_id.d": "d"}, {"$set": {"schema.raw": Image().to_doc()}})
    with at_most(20 << 20):
        with pytest.raises(SchemaError, match=says), db.data.writer("e", schema={"raw": Image()}) as writer:
            writer.add(raw=large)
        with pytest.raises(CorruptBlobError, match=says):
            db.data.find({"dataset": "d"}).all()[0]["raw"]
        with pytest.raises(SampleError, match=says):
            with db.data.find({"dataset": "d"}).stream(batch_size=1) as stream:
                next(iter(stream))
    monkeypatch.setenv("TENSORDB_MAX_PIXELS", str(30 * 40))
    assert Image().decode(png(30, 40)).shape == (40, 30)
    with pytest.raises(CorruptBlobError, match="claims 31 x 40"):
        Image().decode(png(31, 40))
    monkeypatch.setenv("TENSORDB_MAX_PIXELS", "many")
    with pytest.raises(SchemaError, match="expected a number of pixels in the environment variable"):
        Image().decode(png(30, 40))

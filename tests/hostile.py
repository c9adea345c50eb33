"""Hostile files: bytes that were cut, flipped, joined or made up, for every format that is read from others.

    make soak-files                                         # 10,000 inputs a format
    .venv/bin/python -m tests.hostile --inputs 500          # fewer

Each input ends as a value or as one of our errors, and asks for little memory and time.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import bson
import cv2
import numpy as np
import torch
import xxhash
import zstandard
from bson import ObjectId

from tensordb_data.blobs.reader.disk_cache import SegmentCache
from tensordb_data.blobs.segments import format as layout
from tensordb_data.blobs.segments.foreign import ForeignBlob
from tensordb_data.blobs.segments.format import SegmentBuilder, Trailer
from tensordb_data.blobs.segments.inline import inline_reference, read_inline
from tensordb_data.blobs.segments.read import read_segment
from tensordb_data.blobs.segments.reference_format import ReferenceBuilder, parse_references
from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.blobs.stores.foreign import ForeignFile
from tensordb_data.blobs.stores.memory import MemoryStore
from tensordb_data.errors import TensorDBError
from tensordb_data.params.exchange.reading import read_source
from tensordb_data.schema import Array, Audio, Image, Scalar, Text, Video, Volume
from tensordb_data.schema.media.dicom import pack
from tensordb_data.schema.orientation import orientation
from tensordb_data.schema.schema import Schema
from tensordb_data.schema.views.clip import Clip
from tensordb_data.schema.views.window import Window
from tensordb_data.stream.plan.format import DAMAGED, pack_plan, unpack_plan
from tensordb_data.stream.plan.plan import Plan
from tensordb_data.stream.plan.sample_table import FieldLayout, compact, table_from_docs
from tensordb_data.tensors.compression import decompress
from tensordb_data.warehouse import deletion_log
from tests.helpers import bomb
from tests.media.recordings import sound, video
from tests.media.volumes import dicom, nifti

SECONDS, MEMORY = 2.0, 200 << 20
LAYOUT = FieldLayout.choose(
    None, {"d": Schema({"x": Array("uint8", (2,)), "label": Scalar("int"), "name": Scalar("str")})}
)


def spoiled(dice: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds, or what is left of it."""
    data = bytearray(dice.choice(seeds))
    for _ in range(dice.choice((0, 1, 1, 1, 2, 8))):
        at = dice.randrange(len(data) + 1)
        way = dice.randrange(6)
        if way == 0:
            del data[at:]
        elif way == 1 and at < len(data):
            data[at] ^= 1 << dice.randrange(8)
        elif way == 2:
            data[at : at + 8] = dice.choice((0, 1, 2**31, 2**50, 2**63, 2**64 - 1)).to_bytes(8, "little")
        elif way == 3:
            data[at:at] = dice.randbytes(dice.randrange(20))
        elif way == 4:
            data[at:at] = data[:at]
        else:
            del data[at : at + dice.randrange(40)]
    return bytes(data[: 1 << 20])


def segment(samples: list[dict[str, Any]]) -> bytes:
    builder = SegmentBuilder("p", "d", {"x": {"kind": "bytes"}})
    for blob, level in ((b"one", None), (bytes(500), 3), (b"", None)):
        builder.add(blob, level)
    return b"".join(builder.finish(samples).parts)


def read_as_segment(data: bytes) -> None:
    store = MemoryStore()
    store.put("s", [data])
    read_segment(store, "s")


def reference_index() -> bytes:
    builder = ReferenceBuilder("p", "d", {})
    for number in range(5):
        builder.add(ForeignBlob(ForeignFile("r", f"a/{number % 2}.jpg", 90, 5), 10 * number, 10, number))
    builder.add(b"own")
    made = builder.finish([])
    return b"".join(made.parts)[made.index[0] :][: made.index[1]]


def read_as_references(data: bytes) -> None:
    """The index of a reference segment with a checksum that is right."""
    found = parse_references(data, Trailer((11, 0), 0, (11, len(data)), 0), "s")
    for number in range(min(len(found.offsets), 100)):
        found.blob(number)


def with_documents(data: bytes) -> bytes:
    """A segment whose documents part is what is given, and whose checksums are right."""
    with mock.patch.object(layout, "pack_documents", lambda documents: data):
        return segment([])


def plan_bytes(small: bool) -> bytes:
    docs = [
        {"_id": ObjectId(), "dataset": "d", "label": i, "name": f"n{i}",
         "_tdb": {"s": i, "b": {"x": {"k": ObjectId("1" * 24), "o": 8 + 2 * i, "n": 2}}}}
        for i in range(9)
    ]  # fmt: skip
    table = compact(table_from_docs(LAYOUT, docs))
    return b"".join(pack_plan(Plan(table, {"d": (9, 0)}, "ids"), small=small))


def read_as_plan(data: bytes) -> None:
    """A plan with a checksum that is right: what is behind it is read."""
    whole = bytearray(data)
    if len(whole) >= 24:
        whole[16:24] = xxhash.xxh3_64_intdigest(bytes(whole[24:])).to_bytes(8, "little")
    try:
        unpack_plan(np.frombuffer(bytes(whole), np.uint8), LAYOUT)
    except DAMAGED:
        pass  # the one who asks takes it for no plan


def tombstone(data: bytes) -> None:
    head = deletion_log._MAGIC + xxhash.xxh3_64_intdigest(data).to_bytes(8, "little")
    store = MemoryStore()
    store.put("t", [head + data])
    deletion_log.read(store, "t")


def references(data: bytes) -> None:
    """A BSON document in place of a reference."""
    try:
        found = bson.decode(data)
    except (bson.errors.BSONError, RecursionError):
        return
    BlobRefs.from_docs([found])
    if "d" in found:
        read_inline(found, 100)


def cached(folder: Path) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        cache, name = SegmentCache(folder, 1 << 30), "0" * 32 + ".seg"
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
        cache.open(name, 100, 3)

    return read


def tensor(data: bytes) -> None:
    try:
        decompress(data, np.empty(1000, np.uint8).data, 1000)
    except zstandard.ZstdError:
        pass  # the one who asks names the tensor


def imported(folder: Path) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        (folder / "model").write_bytes(data)
        read_source(folder / "model")

    return read


def parameter_files() -> dict[str, list[bytes]]:
    """Files of parameters: of safetensors, of `torch.save` today, and as it was until 1.6."""
    header = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    header |= {"b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}, "__metadata__": {"t": "w"}}
    text = json.dumps(header).encode()
    state = {"w": torch.zeros(3, 2), "nested": [{"t": (1, None, "x")}], "n": 2**70}
    files = [io.BytesIO(), io.BytesIO()]
    for file, zipped in zip(files, (True, False), strict=True):
        torch.save(state, file, _use_new_zipfile_serialization=zipped)
    deep = b"[" * 100_000
    return {
        "safetensors": [len(text).to_bytes(8, "little") + text + bytes(32), len(deep).to_bytes(8, "little") + deep],
        "torch": [file.getvalue() for file in files],
    }


def media() -> dict[str, tuple[Callable[[bytes], Any], list[bytes]]]:
    """For sound, video and volumes: what reads them, and whole ones to spoil."""
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    sounds = [sound(200, form=form) for form in ("WAV", "FLAC", "MP3", "OGG", "AIFF", "AU", "CAF")]
    videos = [video(4, form, codec, height=16) for form, codec in (
        ("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("mpegts", "libx264"), ("flv", "libx264"),
        ("webm", "libvpx"))]  # fmt: skip
    volumes = [nifti(voxels), nifti(voxels, packed=True), nifti(voxels, version=2), dicom(voxels)]
    volumes.append(pack([dicom(voxels[0]), dicom(voxels[1], 2.0)]))
    window, clip = Window(0.01, rate=4000, pad="zeros", at="middle"), Clip(frames=2, at="middle", pad="loop")
    return {
        "sound": (Audio(rate=4000).decode, sounds),
        "window": (lambda data: window.decode(Audio(), data, None, None), sounds),
        "video": (Video().decode, videos),
        "clip": (lambda data: clip.decode(Video(), data, None, None), videos),
        "volume": (Volume().decode, volumes),
    }


def formats(folder: Path) -> dict[str, tuple[Callable[[bytes], Any], list[bytes]]]:
    """For each format: what reads it, and whole ones to spoil."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
    images = [cv2.imencode(kind, pixels)[1].tobytes() for kind in (".png", ".jpg")]
    images.append(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes())
    nested: dict[str, Any] = {}
    for _ in range(90):
        nested = {"a": nested}
    head = bson.encode({"project": "p", "dataset": "d", "schema": {}})
    packed = [zstandard.compress(head + bson.encode({"x": 1})), zstandard.compress(bson.encode(nested)), bomb(2**31)]
    stones = bson.encode({"p": "p", "c": "data", "dataset": "d", "stones": [{"t": ObjectId(), "ids": b"", "s": b""}]})
    docs = [{"k": ObjectId(), "o": 8, "n": 3, "z": True}, inline_reference(b"data"), nested,
            inline_reference(bomb(3 * 10**9), True)]  # fmt: skip
    array = Array("float32")
    cache = SegmentCache(folder / "seed", 1 << 30)
    cache.create("0" * 32 + ".seg", 100, 3, [(0, memoryview(b"x" * 100))])
    made = [path.read_bytes() for path in (folder / "seed").glob("*.seg")]
    return {
        "image": (Image().decode, images),
        "turned": (lambda data: (orientation(data), Image("rgb", orient=True).decode_scaled(data, 4)), images),
        **media(),
        "array": (array.decode, [bytes(array.encode(np.zeros((3, 4), "f4"))), b"\x02" + bytes(16), b""]),
        "text": (Text().decode, ["äöü".encode(), b""]),
        "segment": (read_as_segment, [segment([{"label": 1}]), segment([]), b""]),
        "references": (read_as_references, [reference_index()]),
        "documents": (lambda data: read_as_segment(with_documents(data)), packed),
        "plan": (read_as_plan, [plan_bytes(False), plan_bytes(True), b""]),
        "tombstone": (tombstone, [zstandard.compress(stones), bomb(2**31), zstandard.compress(bson.encode(nested))]),
        "reference": (references, [*map(bson.encode, docs)]),
        "cache": (cached(folder), made),
        **{name: (imported(folder), files) for name, files in parameter_files().items()},
        "tensor": (tensor, [zstandard.compress(bytes(1000)), bomb(1000, 2**50), bomb(2**31)]),
    }


def attack(name: str, read: Callable[[bytes], Any], seeds: list[bytes], inputs: int, seed: int) -> int:
    """Read so many spoiled inputs of a format; returns how many were refused."""
    dice, refused = random.Random(f"{name} {seed}"), 0
    tracemalloc.start()
    try:
        for number in range(inputs):
            data = spoiled(dice, seeds) if number >= len(seeds) else seeds[number]
            tracemalloc.reset_peak()
            began = time.thread_time()
            try:
                read(data)
            except TensorDBError:
                refused += 1
            except BaseException as error:
                raise AssertionError(f"{name}, input {number} of seed {seed}: {data[:200]!r}") from error
            assert time.thread_time() - began < SECONDS, f"{name}, input {number} of seed {seed} takes long"
            peak = tracemalloc.get_traced_memory()[1]
            assert peak < MEMORY, f"{name}, input {number} of seed {seed} takes {peak:,} bytes"
    finally:
        tracemalloc.stop()
    return refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None)
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    print(f"seed {seed}")
    logging.disable()
    with tempfile.TemporaryDirectory(prefix="tdbh") as folder:
        for name, (read, seeds) in formats(Path(folder)).items():
            refused = attack(name, read, seeds, asked.inputs, seed)
            print(f"{name}: {asked.inputs} inputs, {refused} refused", flush=True)


if __name__ == "__main__":
    main()

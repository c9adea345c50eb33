"""Small datasets for the tests of exports, and what is in the files of each format, read with nothing of ours."""

from __future__ import annotations

import datetime as dt
import io
import json
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import xxhash

from tensordb_data import Array, Bytes, Image, Scalar, TensorDB, Text

NOON = dt.datetime(2026, 11, 30, 12, tzinfo=dt.timezone.utc)
SCHEMA: dict[str, Any] = {
    "image": Image("rgb"), "raw": Bytes(optional=True), "note": Text(optional=True),
    "grid": Array("int16", (2, 3)), "label": Scalar("int"), "class": Scalar("str"), "split": Scalar("str"),
    "ok": Scalar("bool", optional=True), "score": Scalar("float", optional=True),
    "at": Scalar("datetime", optional=True), "meta": Scalar("json", optional=True),
}  # fmt: skip
LOSSLESS = ("label", "class", "split", "ok", "score", "meta")
"""Index fields that JSON gives back as they are."""


def picture(seed: int, suffix: str = ".png") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), np.uint8)
    return bytes(cv2.imencode(suffix, pixels)[1])


def sample(n: int) -> dict[str, Any]:
    return {
        "image": picture(n, ".jpg" if n % 2 else ".png"), "raw": bytes([n]) * (n + 1) if n % 3 else None,
        "note": f"größe {n}" if n % 2 else None, "grid": np.arange(6, dtype=np.int16).reshape(2, 3) + n,
        "label": n % 2, "class": ("cat", "dog")[n % 2], "split": "test" if n % 4 == 3 else "train",
        "ok": n % 2 == 0 if n % 3 else None, "score": n / 3 if n % 5 else None,
        "at": NOON + dt.timedelta(milliseconds=n) if n else None, "meta": {"a": [1, None, "x"]} if n % 2 else None,
    }  # fmt: skip


def fill(db: TensorDB, count: int = 8, dataset: str = "pets") -> list[dict[str, Any]]:
    rows = [sample(n) for n in range(count)]
    with db.data.writer(dataset, schema=SCHEMA) as writer:
        for row in rows:
            writer.add(**row)
    return rows


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest, when every file is there with its checksum, and no other."""
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    named = {entry["path"]: (entry["bytes"], entry["xxh3"]) for entry in found["files"]}
    there = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del there["manifest.json"]
    assert named == {path: (len(data), xxhash.xxh3_64_hexdigest(data)) for path, data in there.items()}
    return found


def contents(folder: Path, format: str) -> list[dict[str, Any]]:
    """What is in an export, split by split: index fields as JSON has them, blobs as bytes, arrays as arrays."""
    manifest(folder)
    readers = {"parquet": _parquet, "jsonl": _jsonl, "folder": _folder, "webdataset": _tar, "mds": _mds}
    return list(readers[format](folder))


def _parquet(folder: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for path in sorted((folder / "data").iterdir()):
        for row in pq.read_table(path).to_pylist():
            yield {name: value["bytes"] if isinstance(value, dict) and "bytes" in value else value
                   for name, value in row.items()}  # fmt: skip


def _jsonl(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((folder / "data").iterdir()):
        for text in path.read_text().splitlines():
            yield {name: _file(folder / value) if isinstance(value, str) and value.startswith("files/") else value
                   for name, value in json.loads(text).items()}  # fmt: skip


def _folder(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.rglob("metadata.jsonl")):
        for text in path.read_text().splitlines():
            row = json.loads(text)
            row["image"] = _file(path.parent / row.pop("file_name"))
            for name in [name for name in row if name.endswith("_file_name") and name != "original_file_name"]:
                row[name.removesuffix("_file_name")] = row.pop(name) and _file(path.parent / row[name])
            for name in ("raw", "grid"):
                row[name] = _file(path.parent / row[name]) if row.get(name) else None
            yield row


def _tar(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((folder / "data").iterdir()):
        rows: dict[str, dict[str, Any]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.mtime == 0 and member.isreg()
                key, _, suffix = member.name.partition(".")
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                row = rows.setdefault(key, {})
                if suffix == "json":
                    row.update(json.loads(data))
                else:
                    row["image" if suffix in ("png", "jpg") else suffix.rpartition(".")[0]] = _value(data, suffix)
        yield from rows.values()


def _mds(folder: Path) -> Iterator[dict[str, Any]]:
    for index in sorted(folder.rglob("index.json")):
        for shard in json.loads(index.read_text())["shards"]:
            data = (index.parent / shard["raw_data"]["basename"]).read_bytes()
            (count,) = struct.unpack_from("<I", data)
            offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
            assert count == shard["samples"] and offsets[-1] == len(data)
            for low in offsets[:-1]:
                yield _mds_sample(data, low, shard)


def _mds_sample(data: bytes, at: int, shard: dict[str, Any]) -> dict[str, Any]:
    sizes = list(shard["column_sizes"])
    varying = [n for n, size in enumerate(sizes) if size is None]
    for n, size in zip(varying, struct.unpack_from(f"<{len(varying)}I", data, at), strict=True):
        sizes[n] = size
    at += 4 * len(varying)
    row = {}
    for name, encoding, size in zip(shard["column_names"], shard["column_encodings"], sizes, strict=True):
        value, at = data[at : at + size], at + size
        kind, _, rest = encoding.partition(":")
        if kind == "ndarray":
            dtype, _, shape = rest.partition(":")
            row[name] = np.frombuffer(value, dtype).reshape([int(n) for n in shape.split(",")])
        else:
            row[name] = {"int": lambda v: struct.unpack("<q", v)[0], "float64": lambda v: struct.unpack("<d", v)[0],
                         "str": bytes.decode, "json": json.loads}.get(kind, bytes)(value)  # fmt: skip
    return row


def _file(path: Path) -> Any:
    return _value(path.read_bytes(), path.suffix[1:])


def _value(data: bytes, suffix: str) -> Any:
    return np.load(io.BytesIO(data)) if suffix.endswith("npy") else data

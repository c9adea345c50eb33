"""MDS, the format of MosaicML Streaming: `index.json`, and shards of samples. Pickles are refused.

A shard is

    u32 n | u32 offset[n + 1], from the beginning of the file | JSON | samples
    sample: u32 size of each value whose size varies | all values, in the order of their names
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import zstandard

from tensordb_data.common.zstd import decompressor
from tensordb_data.errors import CorruptBlobError, SchemaError, UnsupportedError
from tensordb_data.schema import Array, Bytes, Field, Image, Scalar

_MOST_JSON = 256 << 20
_ENDS = {"": "", "zstd": ".zstd", "gz": ".gz", "bz2": ".bz2"}
_INTS = {"int": "<i8", **{f"{sign}int{bits}": f"<{kind}{bits // 8}"
         for sign, kind in (("", "i"), ("u", "u")) for bits in (8, 16, 32, 64)}}  # fmt: skip
_FLOATS = {f"float{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)}
_ARRAYS = {name for name in (*_INTS, *_FLOATS) if name != "int"}
_SHAPE_BITS = ("<u1", "<u2", "<u4", "<u8")


@dataclass(frozen=True)
class MdsShard:
    """What `index.json` says of a shard."""

    name: str
    """Of the file, as it is before it is compressed."""
    packed: str | None
    """The name of the compressed file; None if there is none."""
    compression: str
    encodings: Mapping[str, str]
    sizes: Mapping[str, int | None]
    samples: int


def read_index(data: bytes) -> list[MdsShard]:
    """The shards that `index.json` names.

    Raises:
        CorruptBlobError: It is no such index, or names a file that is not beside it.
        UnsupportedError: The shards are of another version or format.
    """
    try:
        found = json.loads(data)
        if found.get("version") != 2:
            raise UnsupportedError(f"expected an MDS index of version 2, found {found.get('version')!r:.40}")
        return [_shard(each) for each in found["shards"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        if isinstance(error, UnsupportedError):
            raise
        raise CorruptBlobError(f"expected the index of MDS files, found something else: {error!r:.100}") from None


def _shard(doc: Mapping[str, Any]) -> MdsShard:
    if doc["format"] != "mds":
        raise UnsupportedError(f"expected shards of the format mds, found {doc['format']!r:.40}")
    names, encodings, sizes = doc["column_names"], doc["column_encodings"], doc["column_sizes"]
    if len({len(names), len(encodings), len(sizes), len(set(names))}) != 1:
        raise ValueError("names, encodings and sizes of columns differ in number")
    compression = (doc.get("compression") or "").partition(":")[0]
    packed = (doc.get("zip_data") or {}).get("basename")
    for name in (doc["raw_data"]["basename"], packed):
        if name is not None and (not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0")):
            raise ValueError(f"the name of a shard is {name!r:.60}")
    if packed is not None and compression not in _ENDS:
        raise UnsupportedError(f"shards that {compression} has compressed: expected zstd, gz or bz2; decompress them")
    if not all(size is None or (isinstance(size, int) and size >= 0) for size in sizes):
        raise ValueError("the size of a column is no number")
    pairs = dict(zip(names, map(str, encodings), strict=True))
    return MdsShard(doc["raw_data"]["basename"], packed, compression, pairs, dict(zip(names, sizes, strict=True)),
                    int(doc["samples"]))  # fmt: skip


def field_of(name: str, encoding: str) -> Field:
    """The field that takes the values of a column.

    Raises:
        UnsupportedError: It is of pickles, or of an encoding that is not known.
    """
    kind, _, rest = encoding.partition(":")
    if kind in _INTS or kind == "str_int":
        return Scalar("int")
    if kind in _FLOATS or kind == "str_float":
        return Scalar("float")
    if kind in ("str", "str_decimal"):
        return Scalar("str")
    if kind == "json":
        return Scalar("json", optional=True)
    if kind in ("jpeg", "png"):
        return Image()
    if kind == "bytes":
        return Bytes()
    if kind == "pil":
        return Array("uint8")
    if kind == "ndarray":
        dtype, shape = _array(rest)
        return Array(dtype, shape) if dtype is not None else _unknown_dtype(name)
    what = "pickles, which run code when they are read" if kind == "pkl" else f"the encoding {encoding!r:.60}"
    raise UnsupportedError(f"column {name!r} holds {what}: leave it out with skip=[{name!r}]")


def _unknown_dtype(name: str) -> Field:
    raise UnsupportedError(f"column {name!r}: arrays of any dtype; leave it out with skip=[{name!r}], or write it anew "
                           "as ndarray:DTYPE")  # fmt: skip


def _array(rest: str) -> tuple[str | None, tuple[int, ...] | None]:
    dtype, _, shape = rest.partition(":")
    if dtype and dtype not in _ARRAYS:
        raise UnsupportedError(f"expected an array of {', '.join(sorted(_ARRAYS))}, found {dtype!r:.40}")
    try:
        return dtype or None, tuple(int(size) for size in shape.split(",")) if shape else None
    except ValueError:
        raise CorruptBlobError(f"expected a shape such as 2,3, found {shape!r:.40}") from None


def read_shard(
    file: BinaryIO, shard: MdsShard, columns: Mapping[str, str], place: Callable[[str, int, int], Any] | None = None
) -> Iterator[dict[str, Any]]:
    """The samples of a shard that is not compressed.

    Args:
        file: The file, open to be read at any place.
        shard: What the index says of it.
        columns: The encodings of the columns to read.
        place: Called with the name, the offset in the file and the bytes of each value; what it returns is taken as the
            value. With None from it, the value is read.

    Raises:
        CorruptBlobError: It is not what the index says.
    """
    decoders = {name: _decoder(encoding) for name, encoding in columns.items()}
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(4)
    count = struct.unpack("<I", head)[0] if len(head) == 4 else -1
    if count != shard.samples or size < 8 + 4 * count:
        raise CorruptBlobError(f"{shard.name}: expected {shard.samples:,} samples, found a file that says {count:,} "
                               f"and has {size:,} bytes")  # fmt: skip
    offsets = np.frombuffer(file.read(4 * (count + 1)), "<u4").astype(np.int64)
    if np.any(np.diff(offsets) < 0) or offsets[-1] > size or offsets[0] < 8 + 4 * count:
        raise CorruptBlobError(f"{shard.name}: its samples lie outside of the file")
    for number, (low, high) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        file.seek(low)
        data = file.read(high - low)
        try:
            row: dict[str, Any] = {}
            for name, at, value in _values(data, shard):
                if name in decoders:
                    there = None if place is None else place(name, low + at, len(value))
                    row[name] = decoders[name](value) if there is None else there
            yield row
        except (ValueError, TypeError, LookupError, struct.error, RecursionError, OverflowError) as error:
            raise CorruptBlobError(f"{shard.name}, sample {number}: {error}") from None


def _values(data: bytes, shard: MdsShard) -> Iterator[tuple[str, int, bytes]]:
    varying = [name for name, size in shard.sizes.items() if size is None]
    sizes = dict(zip(varying, struct.unpack_from(f"<{len(varying)}I", data), strict=True))
    at = 4 * len(varying)
    if at + sum(sizes.get(name, size or 0) for name, size in shard.sizes.items()) != len(data):
        raise ValueError(f"the sizes of its values do not sum up to its {len(data):,} bytes")
    for name, fixed in shard.sizes.items():
        size = sizes[name] if fixed is None else fixed
        yield name, at, data[at : at + size]
        at += size


def _decoder(encoding: str) -> Callable[[bytes], Any]:
    kind, _, rest = encoding.partition(":")
    if kind in _INTS or kind in _FLOATS:
        dtype = np.dtype(_INTS.get(kind) or _FLOATS[kind])
        return lambda data: _one(data, dtype)
    if kind == "ndarray":
        element, shape = _array(rest)
        return lambda data: _ndarray(data, element, shape)
    decoders: dict[str, Callable[[bytes], Any]] = {
        "str": lambda data: data.decode(), "str_decimal": lambda data: data.decode(), "json": json.loads,
        "str_int": lambda data: int(data[:40]), "str_float": lambda data: float(data), "pil": _pil,
    }  # fmt: skip
    return decoders.get(kind, bytes)


def _one(data: bytes, dtype: np.dtype[Any]) -> Any:
    if len(data) != dtype.itemsize:
        raise ValueError(f"expected {dtype.itemsize} bytes, found {len(data)}")
    value = np.frombuffer(data, dtype)[0].item()
    if isinstance(value, int) and value >= 1 << 63:
        raise SchemaError(f"expected an integer of 64 bits with a sign, found {value}")
    return value


def _ndarray(data: bytes, dtype: str | None, shape: tuple[int, ...] | None) -> Any:
    at = 0
    if dtype is None:
        raise ValueError("an array of a dtype that its column does not say")
    if shape is None:
        ndim, code = data[0] >> 2, data[0] & 3
        width = np.dtype(_SHAPE_BITS[code])
        at = 1 + ndim * width.itemsize
        shape = tuple(int(size) for size in np.frombuffer(data[1:at], width))
        if len(shape) != ndim:
            raise ValueError("its shape is cut off")
    element = np.dtype(dtype).newbyteorder("<")
    count = 1
    for size in shape:
        count *= size
    if at + count * element.itemsize != len(data):
        raise ValueError(f"expected an array of shape {shape} and {element}, found {len(data) - at:,} bytes")
    return np.frombuffer(data, element, count, at).reshape(shape)


def _pil(data: bytes) -> Any:
    width, height, length = struct.unpack_from("<3I", data)
    mode = data[12 : 12 + length].decode()
    channels = {"L": 1, "RGB": 3, "RGBA": 4}.get(mode)
    if channels is None or len(data) != 12 + length + width * height * channels:
        raise ValueError(f"expected pixels of mode L, RGB or RGBA, found {mode!r:.20} and {len(data):,} bytes")
    pixels = np.frombuffer(data, np.uint8, offset=12 + length)
    return pixels.reshape((height, width) if channels == 1 else (height, width, channels))


def unpacked(file: BinaryIO, compression: str, limit: int) -> BinaryIO:
    """A compressed shard in memory.

    Args:
        file: The compressed file.
        compression: How.
        limit: Bytes that it may expand to.

    Raises:
        CorruptBlobError: It cannot be decompressed, or is larger.
    """
    try:
        if compression == "zstd":
            with decompressor().stream_reader(file, read_across_frames=True, closefd=False) as reader:
                data = reader.read(limit + 1)
        elif compression in ("gz", "bz2"):
            opener = gzip.GzipFile(fileobj=file) if compression == "gz" else bz2.BZ2File(file)
            data = cast(BinaryIO, opener).read(limit + 1)
        else:
            raise UnsupportedError(f"expected a shard that zstd, gz or bz2 has compressed, found {compression!r:.40}")
    except (zstandard.ZstdError, OSError, EOFError, ValueError) as error:
        if isinstance(error, UnsupportedError):
            raise
        raise CorruptBlobError(f"expected a shard that {compression} has compressed: {error}") from None
    if len(data) > limit:
        raise CorruptBlobError(f"expected a shard of at most {limit:,} bytes, found a larger one")
    return io.BytesIO(data)

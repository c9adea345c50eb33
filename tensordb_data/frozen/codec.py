"""The bytes of the pieces of a frozen set: each column of each chunk is one.

A piece is a BSON document. Its bytes are a function of the values alone, so that an equal piece of another set is
stored once. The bytes of numbers are sorted by their significance, which makes them small when they are compressed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import bson
import numpy as np
from bson import ObjectId
from bson.codec_options import CodecOptions
from numpy.typing import NDArray

from tensordb_data.blobs.segments.references import BlobRefs
from tensordb_data.frozen.columns import Mask, Values

_ID = 12
_GROUP = 64
"""Values of any kind in one BSON document: 64 of the largest are less than it may have."""
_NUMBERS = {"i": "<i8", "f": "<f8", "b": "|b1"}
_KINDS = {"i": "i", "f": "f", "b": "b"}
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, bson.errors.BSONError)
"""The errors of decoding bytes that are no piece."""

Codec = CodecOptions[dict[str, Any]]


def encode_ids(ids: NDArray[np.uint8]) -> bytes:
    """Bytes of `_id`s, uint8 [m, 12]."""
    return bson.encode({"v": _sorted(ids)})


def decode_ids(data: Any, m: int) -> NDArray[np.uint8]:
    """`_id`s, uint8 [m, 12].

    Raises:
        One of MALFORMED: These are not the bytes of m of them.
    """
    return _unsorted(_fields(data)["v"], np.dtype(np.uint8), m, _ID).reshape(m, _ID)


def encode_datasets(names: tuple[str, ...], dataset: NDArray[np.uint16]) -> bytes:
    """Bytes of the datasets of samples."""
    used = list(dict.fromkeys(names[number] for number in np.unique(dataset).tolist()))
    if len(used) <= 1:
        return bson.encode({"d": used})
    number = np.array([used.index(name) if name in used else 0 for name in names], np.uint16)
    return bson.encode({"d": used, "v": _sorted(number[dataset].astype("<u2"))})


def decode_datasets(data: Any, m: int) -> tuple[tuple[str, ...], NDArray[np.uint16]]:
    """Names, and the number of the name of each of m samples.

    Raises:
        One of MALFORMED: These are not the bytes of them.
    """
    found = _fields(data)
    names = found["d"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected names of datasets, found {names!r:.80}")
    numbers = _unsorted(found["v"], np.dtype("<u2"), m) if "v" in found else np.zeros(m, np.uint16)
    return tuple(names), _below(len(names), numbers)


def encode_values(values: Values, codec: Codec) -> bytes:
    """Bytes of an index field."""
    data, absent = values.data, values.absent
    found: dict[str, Any] = {}
    if absent is not None and absent.any():
        found["a"] = np.packbits(absent).tobytes()
        if absent.all():
            return bson.encode({"t": "n"})
    if data.dtype != object:
        if (
            len(data)
            and "a" not in found
            and (data.view(f"u{data.itemsize}") == data.view(f"u{data.itemsize}")[0]).all()
        ):
            return bson.encode({"t": "c", "v": bson.encode({"v": data[0].item()})})
        found.update(t=_KINDS[data.dtype.kind], v=_sorted(data))
        return bson.encode(found)
    items = data.tolist()
    groups = [bson.encode({"v": items[at : at + _GROUP]}, codec_options=codec) for at in range(0, len(items), _GROUP)]
    if len(groups) and "a" not in found and _is_constant(items, codec):
        return bson.encode({"t": "c", "v": bson.encode({"v": items[0]}, codec_options=codec)})
    return bson.encode({**found, "t": "o", "v": groups})


def decode_values(data: Any, m: int, codec: Codec) -> Values:
    """An index field of m samples.

    Raises:
        One of MALFORMED: These are not the bytes of one.
    """
    found = _fields(data)
    kind = found["t"]
    if kind == "n":
        return Values.nothing(m)
    absent = _mask(found["a"], m) if "a" in found else None
    if kind in _NUMBERS:
        return Values(_unsorted(found["v"], np.dtype(_NUMBERS[kind]), m), absent)
    if kind == "c":
        items = [bson.decode(found["v"], codec)["v"]] * m
        if items and isinstance(items[0], (int, float)):
            return Values.of(items[:1]).take(np.zeros(m, np.intp))
    elif kind == "o":
        items = [item for group in found["v"] for item in _group(bson.decode(group, codec)["v"])]
    else:
        raise ValueError(f"expected a known kind of values, found {kind!r:.80}")
    if len(items) != m:
        raise ValueError(f"expected {m} values, found {len(items)}")
    column = np.empty(m, object)
    column[:] = items
    return Values(column, absent)


def encode_refs(refs: BlobRefs) -> bytes:
    """Bytes of references to blobs."""
    used, segment = np.unique(refs.segment, return_inverse=True)
    # in the order of their first use, which does not depend on what other samples refer to
    first = np.full(len(used), len(segment))
    np.minimum.at(first, segment, np.arange(len(segment)))
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), np.uint32)
    rank[order] = np.arange(len(order), dtype=np.uint32)
    found: dict[str, Any] = {
        "k": b"".join(refs.segments[int(used[number])].binary for number in order),
        "s": _sorted(rank[segment].astype("<u4")),
        "o": _sorted(np.asarray(refs.offset).astype("<i8")),
        "n": _sorted(np.asarray(refs.length).astype("<i8")),
    }
    if refs.compressed is not None and refs.compressed.any():
        found["z"] = np.packbits(refs.compressed).tobytes()
    return bson.encode(found)


def decode_refs(data: Any, m: int) -> BlobRefs:
    """References to blobs of m samples.

    Raises:
        One of MALFORMED: These are not the bytes of them.
    """
    found = _fields(data)
    keys = found["k"]
    if not isinstance(keys, bytes) or len(keys) % _ID:
        raise ValueError("expected ids of segments, found other bytes")
    segments = tuple(ObjectId(keys[at : at + _ID]) for at in range(0, len(keys), _ID))
    segment = _below(len(segments), _unsorted(found["s"], np.dtype("<u4"), m))
    offset, length = (_unsorted(found[name], np.dtype("<i8"), m) for name in "on")
    if m and (int(offset.min()) < 0 or int(length.min()) < -1):
        raise ValueError(f"expected places in segments, found {int(offset.min())} and {int(length.min())}")
    return BlobRefs(segments, segment, offset, length, _mask(found["z"], m) if "z" in found else None)


def _sorted(column: NDArray[Any]) -> bytes:
    if not column.size:
        return b""
    rows = np.ascontiguousarray(column).reshape(len(column), -1).view(np.uint8)
    return np.ascontiguousarray(rows.T).tobytes()


def _unsorted(data: Any, dtype: np.dtype[Any], m: int, width: int = 1) -> NDArray[Any]:
    nbytes = dtype.itemsize * width
    if not isinstance(data, bytes) or len(data) != m * nbytes:
        raise ValueError(f"expected {m * nbytes} bytes, found {len(data) if isinstance(data, bytes) else data!r:.80}")
    found = np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(nbytes, m).T).reshape(-1)
    if dtype == np.bool_ and found.size and int(found.max()) > 1:
        raise ValueError("expected true and false, found other bytes")
    return found.view(dtype)


def _mask(data: Any, m: int) -> Mask:
    if not isinstance(data, bytes) or len(data) != -(-m // 8):
        raise ValueError(f"expected {m} bits, found {data!r:.80}")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=m).astype(np.bool_)


def _below(count: int, numbers: NDArray[Any]) -> NDArray[Any]:
    if len(numbers) and int(numbers.max()) >= count:
        raise ValueError(f"expected numbers below {count}, found {int(numbers.max())}")
    return numbers


def _fields(data: Any) -> Mapping[str, Any]:
    return bson.decode(bytes(data))


def _group(items: Any) -> list[Any]:
    if not isinstance(items, list):
        raise ValueError(f"expected a list of values, found {items!r:.80}")
    return items


def _is_constant(items: list[Any], codec: Codec) -> bool:
    first = items[0]
    if first is None or isinstance(first, str):
        return all(item == first and type(item) is type(first) for item in items)
    one = bson.encode({"v": first}, codec_options=codec)
    return all(item is first or bson.encode({"v": item}, codec_options=codec) == one for item in items)

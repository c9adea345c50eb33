"""Segments: objects of many blobs back to back, readable from the object alone.

    magic | blobs | documents | index | trailer

The documents part is zstd over BSON: one header (project, dataset, schema) and then every sample as written. The
index part holds three columns, for each blob in order: its offset, the xxh3 checksum of its stored bytes, and whether
they are zstd; each blob ends where the next one begins. The trailer has place and checksum of both parts, and a
checksum of its own.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import bson
import bson.errors
import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

from tensordb_data.blobs.stores.base import Buffer
from tensordb_data.common.zstd import MAX_EXPANDED, expand
from tensordb_data.errors import CorruptBlobError, StorageError

MAGIC = b"TDBseg\r\n"
VERSION = 1

_TRAILER = struct.Struct("<QQQQQQQI8s")
_OWN_CHECKSUM = struct.Struct("<QI8s").size  # the end of the trailer, which its checksum does not cover
ENTRY_BYTES = 17  # of the index part, for each blob
_WORTH = 0.95  # zstd is kept where it saves more than this leaves
_LARGE = 64 * 1024  # bytes of blobs that are written as they are
_DOCUMENTS_LEVEL = 3


@dataclasses.dataclass(frozen=True)
class SegmentBytes:
    """A finished segment, ready to be put into a store."""

    parts: list[Buffer]
    nbytes: int
    index: tuple[int, int]
    """Offset and bytes of the index part; the trailer follows it and ends the object."""
    index_checksum: bytes
    roots: tuple[str, ...] = ()
    """The names of the roots that its blobs are below, if they are in files of others."""


@dataclasses.dataclass(frozen=True)
class SegmentPlace:
    """Where a segment is, as its document says."""

    root: int
    key: str
    nbytes: int
    index: tuple[int, int]
    """Offset and bytes of the index part."""
    index_checksum: bytes | None
    """That of the index part, 8 bytes; None of segments that 0.1 wrote."""

    @classmethod
    def from_doc(cls, doc: Mapping[str, Any]) -> SegmentPlace:
        """The place that a document of `segments` tells.

        Raises:
            CorruptBlobError: it tells none.
        """
        found: list[Any] = [doc.get("root", 0), doc.get("key"), doc.get("bytes"), doc.get("index")]
        root, key, nbytes, index = found
        numbers = (root, nbytes, *(index if isinstance(index, list) and len(index) == 2 else (None,)))
        if not isinstance(key, str) or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise CorruptBlobError(
                f"segment {doc.get('_id')}: expected a document with a root, a key, bytes and an index, found "
                f"root={root!r}, key={key!r}, bytes={nbytes!r}, index={index!r}: edited by another tool?"
            )
        checksum = doc.get("sum")
        return cls(root, key, nbytes, (index[0], index[1]), checksum if isinstance(checksum, bytes) else None)

    def check(self, nbytes: int, index: SegmentIndex) -> None:
        """Compare the place with the object itself: its size, and its index.

        Raises:
            CorruptBlobError: they differ.
        """
        found = (nbytes, nbytes - TRAILER_BYTES - sum(self.index), self.index[1])
        if found != (self.nbytes, 0, index.nbytes):
            raise CorruptBlobError(
                f"{self.key}: its document says {self.nbytes} bytes and an index of {self.index[1]} bytes at "
                f"{self.index[0]}, and the object of {nbytes} bytes has {len(index.offsets)} blobs"
            )
        self.check_index(index.checksum, self.key)

    def check_index(self, checksum: int, name: str) -> None:
        """Compare the checksum of the object's index part with the one in the document, where there is one.

        Raises:
            CorruptBlobError: they differ.
        """
        if self.index_checksum not in (None, checksum_bytes(checksum)):
            raise CorruptBlobError(
                f"{name}: its index is another than the one that was written: the object, or its copy in the cache, was"
                " replaced"
            )


@dataclasses.dataclass(frozen=True)
class Trailer:
    """Where the two descriptive parts are, and their checksums."""

    documents: tuple[int, int]
    documents_checksum: int
    index: tuple[int, int]
    index_checksum: int


@dataclasses.dataclass(frozen=True)
class SegmentIndex:
    """What the index part says of each blob, in order."""

    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    checksums: npt.NDArray[np.uint64]
    compressed: npt.NDArray[np.bool_]
    checksum: int
    """Of the index part itself."""

    @property
    def nbytes(self) -> int:
        """Bytes of the index part."""
        return ENTRY_BYTES * len(self.offsets)

    @property
    def roots(self) -> tuple[str, ...]:
        """The names of the roots that the blobs are below; none, as they are in the segment itself."""
        return ()


@dataclasses.dataclass(frozen=True)
class SegmentDocuments:
    """What a segment says of itself: enough to write its samples into an index again."""

    project: str
    dataset: str
    schema: dict[str, Any]
    samples: list[dict[str, Any]]


class Run(NamedTuple):
    """One blob, or several of one size."""

    data: bytes
    size: int
    """Stored bytes of each."""
    checksums: int | npt.NDArray[np.uint64]
    """That of the one, or of each."""
    compressed: bool
    end: int
    """Where the segment ends with them."""
    elsewhere: tuple[int, int] | None = None
    """Of a blob that is not in the segment: the number of its file, and its offset there."""


class SegmentBuilder:
    """Collects blobs into one segment.

    Args:
        project: the project that the samples belong to.
        dataset: their dataset.
        schema_doc: its schema, as plain JSON.
    """

    def __init__(self, project: str, dataset: str, schema_doc: Mapping[str, Any]) -> None:
        self._head = {"project": project, "dataset": dataset, "schema": dict(schema_doc)}
        # Each is added by one call, so that an interrupt leaves all of it, or nothing.
        self._runs: list[Run] = []
        self._compressors: dict[int, zstandard.ZstdCompressor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes so far."""
        return self._runs[-1].end if self._runs else len(MAGIC)

    def set_schema(self, schema_doc: Mapping[str, Any]) -> None:
        """Note another schema: that of the samples that have been added and of those that follow."""
        self._head["schema"] = dict(schema_doc)

    def add(self, data: Buffer, compress: int | None = None) -> tuple[int, int, bool]:
        """Add one blob, copied.

        Args:
            data: its bytes.
            compress: a zstd level; None stores it as it is, and so does a blob that zstd hardly makes smaller.

        Returns:
            Offset, stored length, and whether the stored bytes are zstd.
        """
        stored, packed = self.pack(data, compress)
        return self.copy(stored, packed), len(stored), packed

    def pack(self, data: Buffer, compress: int | None = None) -> tuple[bytes, bool]:
        """What `add` would store of a blob, and whether that is zstd; nothing is added."""
        stored = bytes(data)
        if compress is not None and 0 < len(stored) <= MAX_EXPANDED:
            smaller = self._compressor(compress).compress(stored)
            if len(smaller) < _WORTH * len(stored):
                return smaller, True
        return stored, False

    def copy(self, stored: Buffer, compressed: bool) -> int:
        """Add the stored bytes of a blob as they are.

        Args:
            stored: its bytes, copied.
            compressed: whether they are zstd.

        Returns:
            Their offset.
        """
        offset, data = self.nbytes, bytes(stored)
        digest = xxhash.xxh3_64_intdigest(data)
        self._runs.append(Run(data, len(data), digest, compressed, offset + len(data)))
        return offset

    def add_rows(self, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Add n blobs of one size, the rows of uint8[n, size], copied and not compressed.

        Returns:
            Their offsets, int64[n].
        """
        if rows.dtype != np.uint8 or rows.ndim != 2:
            raise ValueError(f"expected uint8[n, size], found {rows.dtype} of {rows.ndim} dimensions")
        n, size = rows.shape
        data = rows.tobytes()
        view, digest = memoryview(data), xxhash.xxh3_64_intdigest
        checksums = np.fromiter((digest(view[i * size : (i + 1) * size]) for i in range(n)), np.uint64, n)
        offsets: npt.NDArray[np.int64] = self.nbytes + size * np.arange(n, dtype=np.int64)
        self._runs.append(Run(data, size, checksums, False, self.nbytes + len(data)))
        return offsets

    def finish(self, samples: Iterable[Mapping[str, Any] | bytes]) -> SegmentBytes:
        """End the segment.

        Args:
            samples: its samples' documents as written, in order; or in BSON, one or many of them together.
        """
        documents = pack_documents([self._head, *samples])
        lengths, checksums, compressed = self._columns()
        index = b"".join(
            (
                (len(MAGIC) + np.cumsum(lengths) - lengths).astype("<i8").tobytes(),
                checksums.astype("<u8").tobytes(),
                compressed.astype("<u1").tobytes(),
            )
        )
        at, checksum = self.nbytes + len(documents), _checksum(index)
        trailer = pack_trailer(Trailer((self.nbytes, len(documents)), _checksum(documents), (at, len(index)), checksum))
        parts = [MAGIC, *self._joined(), documents, index, trailer]
        return SegmentBytes(parts, at + len(index) + len(trailer), (at, len(index)), checksum_bytes(checksum))

    def _columns(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
        """Length and checksum of each blob, and whether it is compressed."""
        counts = [1 if isinstance(run.checksums, int) else len(run.checksums) for run in self._runs]
        empty = np.empty(0, np.uint64)
        checksums = np.concatenate([empty, *(np.asarray(run.checksums, np.uint64).reshape(-1) for run in self._runs)])
        lengths = np.repeat(np.array([run.size for run in self._runs], np.int64), counts)
        return lengths, checksums, np.repeat(np.array([run.compressed for run in self._runs], np.bool_), counts)

    def _joined(self) -> Iterator[Buffer]:
        """The blobs, with small ones joined: a store writes few parts faster."""
        small: list[bytes] = []
        for run in self._runs:
            if len(run.data) < _LARGE:
                small.append(run.data)
                continue
            if small:
                yield b"".join(small)
                small = []
            yield run.data
        yield b"".join(small)

    def _compressor(self, level: int) -> zstandard.ZstdCompressor:
        found = self._compressors.get(level)
        if found is None:
            found = self._compressors[level] = zstandard.ZstdCompressor(level=level)
        return found


TRAILER_BYTES = _TRAILER.size


def read_trailer(tail: Buffer, nbytes: int, name: str, kind: bytes = MAGIC) -> Trailer:
    """The trailer at the end of a segment.

    Args:
        tail: the segment's last bytes, `TRAILER_BYTES` or more.
        nbytes: bytes of the whole segment.
        name: how error messages call it.
        kind: what ends a segment of this kind.

    Raises:
        CorruptBlobError: these bytes do not end a whole segment of this version.
    """
    if len(tail) < _TRAILER.size or nbytes < len(MAGIC) + _TRAILER.size:
        raise CorruptBlobError(f"{name}: expected a segment, found {nbytes} bytes, fewer than its trailer")
    raw = bytes(tail[len(tail) - _TRAILER.size :])
    *places, own, version, magic = _TRAILER.unpack(raw)
    if magic != kind:
        raise CorruptBlobError(
            f"{name}: expected a segment that ends with {kind!r}, found {magic!r}: cut off, or no segment"
        )
    if version != VERSION:
        raise CorruptBlobError(
            f"{name}: expected segment format {VERSION}, found {version}: damaged, or written by a newer version"
        )
    if own != _checksum(raw[:-_OWN_CHECKSUM]):
        raise CorruptBlobError(f"{name}: the trailer does not match its checksum: damaged")
    trailer = Trailer((places[0], places[1]), places[2], (places[3], places[4]), places[5])
    at, length = trailer.index
    odd = length % ENTRY_BYTES if kind == MAGIC else 0
    if at + length + _TRAILER.size != nbytes or sum(trailer.documents) != at or odd:
        raise CorruptBlobError(f"{name}: expected a segment of {at + length + _TRAILER.size} bytes, found {nbytes}")
    return trailer


def read_index(part: Buffer, trailer: Trailer, name: str) -> SegmentIndex:
    """The index part of a segment. Its columns may share memory with `part`.

    Raises:
        CorruptBlobError: the part does not match its checksum, or describes other bytes than the segment has.
    """
    if len(part) != trailer.index[1] or _checksum(part) != trailer.index_checksum:
        raise CorruptBlobError(f"{name}: the index part does not match its checksum: damaged")
    n = len(part) // ENTRY_BYTES
    offsets = np.frombuffer(part, "<i8", n).astype(np.int64, copy=False)
    ends = np.append(offsets, trailer.documents[0])
    lengths = ends[1:] - ends[:-1]
    if ends[0] != len(MAGIC) or (n and int(lengths.min()) < 0):
        raise CorruptBlobError(f"{name}: expected blobs that lie back to back, found others in the index: damaged")
    checksums = np.frombuffer(part, "<u8", n, 8 * n).astype(np.uint64, copy=False)
    compressed = np.frombuffer(part, np.bool_, n, 16 * n)
    return SegmentIndex(offsets, lengths, checksums, compressed, trailer.index_checksum)


def read_documents(part: Buffer, trailer: Trailer, name: str) -> SegmentDocuments:
    """The documents part of a segment.

    Raises:
        CorruptBlobError: the part does not match its checksum or cannot be read.
    """
    if len(part) != trailer.documents[1] or _checksum(part) != trailer.documents_checksum:
        raise CorruptBlobError(f"{name}: the documents part does not match its checksum: damaged")
    try:
        head, *samples = bson.decode_all(expand(part))
        project, dataset, schema = head["project"], head["dataset"], head["schema"]
        if not (isinstance(project, str) and isinstance(dataset, str) and isinstance(schema, dict)):
            raise ValueError(f"a project, a dataset and a schema of the types {[*map(type, head.values())]}")
        return SegmentDocuments(project, dataset, schema, samples)
    except (zstandard.ZstdError, bson.errors.BSONError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise CorruptBlobError(f"{name}: expected documents, found something else: {error}") from None


def checksum_bytes(checksum: int) -> bytes:
    """A checksum as a document holds it: BSON has no unsigned integers."""
    return checksum.to_bytes(8, "little")


def check_magic(head: Buffer, name: str) -> None:
    """Refuse an object that does not begin like a segment."""
    if bytes(head[: len(MAGIC)]) != MAGIC:
        raise CorruptBlobError(f"{name}: expected a segment that begins with {MAGIC!r}, found {bytes(head[:8])!r}")


def pack_trailer(trailer: Trailer, kind: bytes = MAGIC) -> bytes:
    """The trailer of a segment of a kind."""
    places = (*trailer.documents, trailer.documents_checksum, *trailer.index, trailer.index_checksum)
    own = _checksum(_TRAILER.pack(*places, 0, VERSION, kind)[:-_OWN_CHECKSUM])
    return _TRAILER.pack(*places, own, VERSION, kind)


def pack_documents(documents: Iterable[Mapping[str, Any] | bytes]) -> bytes:
    """The documents part of a segment."""
    try:
        packed = b"".join(doc if isinstance(doc, bytes) else bson.encode(doc) for doc in documents)
    except (bson.errors.InvalidDocument, OverflowError) as error:
        raise StorageError(f"cannot write the samples into their segment: {error}") from None
    if len(packed) > MAX_EXPANDED:
        raise StorageError(
            f"expected samples whose fields take at most {MAX_EXPANDED:,} bytes in one segment, found {len(packed):,}: "
            "commit fewer at a time"
        )
    return zstandard.ZstdCompressor(level=_DOCUMENTS_LEVEL).compress(packed)


def _checksum(data: Buffer) -> int:
    return xxhash.xxh3_64_intdigest(data)

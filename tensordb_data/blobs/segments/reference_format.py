"""Reference segments: small objects of ours that say where blobs are in files of others.

    magic | copied blobs | documents | index | trailer

It is a segment in all but this: most of its blobs are not in it. References of samples count in the address space that
it would have if they were. The index part says for each blob where it really is:

    u64 bytes of the file table | u64 blobs n | file table | u32 file[n] | i64 offset[n] | i64 length[n]
    | u64 checksum[n] | u8 codec[n]

The file table is zstd over BSON: names of roots, and for each file the number of its root, its key below it, its size
and its time. The file `SELF` is this object: what could not stay where it was is copied into it. Codec 0 is the bytes
as they are, 1 is zstd. Documents and trailer are those of a segment.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from tensordb_data.blobs.segments.foreign import SELF, FileTable, ForeignBlob, pack_files, read_files
from tensordb_data.blobs.segments.format import (
    MAGIC,
    Run,
    SegmentBuilder,
    SegmentBytes,
    SegmentIndex,
    Trailer,
    checksum_bytes,
    pack_documents,
    pack_trailer,
)
from tensordb_data.blobs.stores.base import Buffer
from tensordb_data.blobs.stores.foreign import ForeignFile
from tensordb_data.errors import CorruptBlobError

REFERENCES = b"TDBref\r\n"
"""What a reference segment begins and ends with."""

_HEAD = struct.Struct("<QQ")
_ENTRY_BYTES = 29


@dataclasses.dataclass(frozen=True)
class ReferenceIndex(SegmentIndex):
    """What the index part of a reference segment says of each blob, in order. The offsets are virtual."""

    files: FileTable
    file: npt.NDArray[np.uint32]
    """uint32[n]: which file holds the blob; `SELF` for the object itself."""
    at: npt.NDArray[np.int64]
    """int64[n]: where in the file it begins."""
    part: int
    """Bytes of the index part."""

    @property
    def nbytes(self) -> int:
        return self.part

    @property
    def roots(self) -> tuple[str, ...]:
        return self.files.roots

    def blob(self, number: int) -> ForeignBlob | None:
        """What is known of a blob in a file of others; None for one in the object itself."""
        if int(self.file[number]) == SELF:
            return None
        file = self.files.file(int(self.file[number]))
        place = int(self.at[number]), int(self.lengths[number])
        return ForeignBlob(file, *place, int(self.checksums[number]), bool(self.compressed[number]))


class ReferenceBuilder(SegmentBuilder):
    """Collects blobs that stay where they are, and copies of others, into one segment.

    If all of them are copies, it makes an ordinary segment.

    Args:
        project: as for `SegmentBuilder`.
        dataset: as for `SegmentBuilder`.
        schema_doc: as for `SegmentBuilder`.
    """

    def __init__(self, project: str, dataset: str, schema_doc: Mapping[str, Any]) -> None:
        super().__init__(project, dataset, schema_doc)
        self._numbers: dict[ForeignFile, int] = {}

    @property
    def referenced(self) -> int:
        """Bytes of the blobs that stay where they are."""
        return sum(run.size for run in self._runs if run.elsewhere is not None)

    @property
    def copied(self) -> int:
        """Bytes of the blobs that were copied."""
        return sum(len(run.data) for run in self._runs)

    def add(self, data: Buffer | ForeignBlob, compress: int | None = None) -> tuple[int, int, bool]:
        """Add one blob; one in a file of others stays there.

        Returns:
            Virtual offset, stored length, and whether the stored bytes are zstd.
        """
        if not isinstance(data, ForeignBlob):
            return super().add(data, compress)
        offset = self.nbytes
        place = self._numbers.setdefault(data.file, len(self._numbers)), data.offset
        end = offset + data.length
        self._runs.append(Run(b"", data.length, data.checksum, data.compressed, end, place))
        return offset, data.length, data.compressed

    def _places(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], int]:
        """For each blob the file that holds it and where it begins there; and where the copied ones end."""
        file: list[npt.NDArray[np.uint32]] = [np.empty(0, np.uint32)]
        at: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
        own = len(MAGIC)
        for run in self._runs:
            n = 1 if isinstance(run.checksums, int) else len(run.checksums)
            number, offset = (SELF, own) if run.elsewhere is None else run.elsewhere
            file.append(np.full(n, number, np.uint32))
            at.append(offset + run.size * np.arange(n, dtype=np.int64))
            own += len(run.data)
        return np.concatenate(file), np.concatenate(at), own

    def finish(self, samples: Iterable[Mapping[str, Any] | bytes]) -> SegmentBytes:
        if not self._numbers:
            return super().finish(samples)
        documents = pack_documents([self._head, *samples])
        files = list(self._numbers)
        table = pack_files(files)
        (file, at, own), (lengths, checksums, compressed) = self._places(), self._columns()
        columns = ((file, "<u4"), (at, "<i8"), (lengths, "<i8"), (checksums, "<u8"), (compressed, "<u1"))
        packed = [column.astype(dtype).tobytes() for column, dtype in columns]
        index = b"".join((_HEAD.pack(len(table), len(file)), table, *packed))
        begin, checksum = own + len(documents), xxhash.xxh3_64_intdigest(index)
        places = Trailer((own, len(documents)), xxhash.xxh3_64_intdigest(documents), (begin, len(index)), checksum)
        trailer = pack_trailer(places, REFERENCES)
        parts = [REFERENCES, *self._joined(), documents, index, trailer]
        roots = tuple(sorted({file.root for file in files}))
        return SegmentBytes(
            parts, begin + len(index) + len(trailer), (begin, len(index)), checksum_bytes(checksum), roots
        )  # fmt: skip


def read_references(part: Buffer, trailer: Trailer, name: str) -> ReferenceIndex:
    """The index part of a reference segment.

    Args:
        part: its bytes.
        trailer: what the trailer says.
        name: how error messages call the segment.

    Raises:
        CorruptBlobError: the part does not match its checksum, or describes what cannot be.
    """
    if len(part) != trailer.index[1] or xxhash.xxh3_64_intdigest(part) != trailer.index_checksum:
        raise CorruptBlobError(f"{name}: the index part does not match its checksum: damaged")
    return parse_references(part, trailer, name)


def parse_references(part: Buffer, trailer: Trailer, name: str) -> ReferenceIndex:
    """As `read_references`, of a part whose checksum was compared."""
    view = memoryview(part)
    table, n = _HEAD.unpack_from(view) if len(view) >= _HEAD.size else (0, 0)
    if _HEAD.size + table + _ENTRY_BYTES * n != len(view):
        raise CorruptBlobError(f"{name}: expected an index of {n} blobs, found {len(view)} bytes: damaged")
    files, at = read_files(view[_HEAD.size : _HEAD.size + table], name), _HEAD.size + table
    columns: list[npt.NDArray[Any]] = []
    for dtype in ("<u4", "<i8", "<i8", "<u8", "<u1"):
        columns.append(np.frombuffer(view, dtype, n, at))
        at += n * np.dtype(dtype).itemsize
    file, place, lengths, checksums, codec = columns
    # A length or an offset that cannot be must not reach a call that reads.
    own = file == SELF
    ends = place + lengths  # int64 may wrap: then it is below its offset
    bad = (lengths < 0) | (place < 0) | (ends < place) | (codec > 1) | ~(own | (file < len(files)))
    bad |= own & (ends > trailer.documents[0])
    if bad.any() or (n and float(lengths.astype(np.float64).sum()) >= 2.0**62):
        raise CorruptBlobError(f"{name}: the index names places that cannot be: damaged, or edited by another tool")
    lengths = lengths.astype(np.int64, copy=False)
    return ReferenceIndex(
        offsets=len(MAGIC) + np.cumsum(lengths) - lengths,
        lengths=lengths,
        checksums=checksums.astype(np.uint64, copy=False),
        compressed=codec == 1,
        checksum=trailer.index_checksum,
        files=files,
        file=file.astype(np.uint32, copy=False),
        at=place.astype(np.int64, copy=False),
        part=len(view),
    )

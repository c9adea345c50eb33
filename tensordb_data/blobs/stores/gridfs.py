"""Blobs in MongoDB itself, in the layout of GridFS."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from bson import Binary, ObjectId
from pymongo import ASCENDING
from pymongo.database import Database
from pymongo.errors import AutoReconnect, PyMongoError, ServerSelectionTimeoutError
from pymongo.write_concern import WriteConcern

from tensordb_data.blobs.stores.base import Buffer, TransientError, check_key, check_range
from tensordb_data.errors import CorruptBlobError, StorageError

_CHUNK_BYTES = 255 * 1024
_CLOCKS = 24 * 3600  # seconds that the clocks of two hosts may differ by, amply
_BATCH_BYTES = 8 << 20
_MAX_KNOWN = 4096


class GridFSStore:
    """Objects as GridFS files, which other tools can read too.

    An object's file document is written last, so that it is there whole or not at all. Ranges are read with one
    query on the chunks, however many there are.

    Args:
        database: opened by the calling process; it answers for reconnecting and for forks.
        bucket: the GridFS bucket, a prefix of two collections.
    """

    def __init__(self, database: Database[Any], bucket: str = "blobs") -> None:
        self.url = f"gridfs://{bucket}"
        self._database = database
        durable = WriteConcern("majority", j=True)
        self._files = database.get_collection(f"{bucket}.files", write_concern=durable)
        self._chunks = database.get_collection(f"{bucket}.chunks", write_concern=durable)
        self._indexed = False
        # Objects never change, so where one is need be asked only once.
        self._known: dict[str, dict[str, Any]] = {}

    def __repr__(self) -> str:
        return f"GridFSStore({self.url!r})"

    def put(self, key: str, parts: Sequence[Buffer], *, cold: bool = False) -> None:
        check_key(key)
        id, n, length = ObjectId(), 0, 0
        try:
            self._make_indexes()
            try:
                for batch in _batches(parts):
                    self._chunks.insert_many(
                        [{"files_id": id, "n": n + i, "data": Binary(c)} for i, c in enumerate(batch)]
                    )
                    n += len(batch)
                    length += sum(map(len, batch))
                older = [doc["_id"] for doc in self._files.find({"filename": key}, {"_id": 1})]
                now = datetime.now(timezone.utc)
                doc = {"_id": id, "filename": key, "length": length, "chunkSize": _CHUNK_BYTES, "uploadDate": now}
                self._files.insert_one(doc)
            except BaseException:
                self._chunks.delete_many({"files_id": id})
                raise
            self._known.pop(key, None)
            self._remove(older)
        except PyMongoError as error:
            raise self._error("write", key, error) from error

    def get(self, key: str) -> memoryview:
        return self.get_ranges(key, [0], [self.size(key)])[0]

    def get_ranges(self, key: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        file = self._file(key)
        size, chunk = int(file["length"]), int(file["chunkSize"])
        wanted: set[int] = set()
        for offset, length in zip(offsets, lengths, strict=True):
            check_range(f"{self.url}/{key}", size, int(offset), int(length))
            if length:
                wanted.update(range(int(offset) // chunk, (int(offset) + int(length) - 1) // chunk + 1))
        found = self._read_chunks(file, sorted(wanted))
        if wanted - found.keys():
            # The object may have been written again since its place was noted.
            self._known.pop(key, None)
            fresh = self._file(key)
            if fresh["_id"] != file["_id"]:
                return self.get_ranges(key, offsets, lengths)
            raise StorageError(f"{self.url}/{key}: expected {len(wanted)} chunks, found {len(found)}: was it deleted?")
        for n, data in found.items():
            if len(data) != min(chunk, size - n * chunk):
                raise CorruptBlobError(f"{self.url}/{key}: expected another size of chunk {n}, found {len(data)} bytes")
        return [_slice(found, chunk, int(o), int(n)) for o, n in zip(offsets, lengths, strict=True)]

    def size(self, key: str) -> int:
        self._known.pop(key, None)
        return int(self._file(key)["length"])

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        condition = {"filename": {"$gte": prefix, "$lt": prefix + "\uffff"}} if prefix else {}
        try:
            for doc in self._files.find(condition, {"filename": 1, "length": 1}):
                yield doc["filename"], int(doc["length"])
        except PyMongoError as error:
            raise self._error("list", prefix, error) from error

    def delete(self, key: str) -> None:
        check_key(key)
        try:
            self._known.pop(key, None)
            self._remove([doc["_id"] for doc in self._files.find({"filename": key}, {"_id": 1})])
        except PyMongoError as error:
            raise self._error("delete", key, error) from error

    def sweep(self, silent: float, dry_run: bool = False) -> tuple[int, int]:
        # An id has the time of the host that made it, whose clock may be some hours away.
        before = ObjectId.from_datetime(datetime.now(timezone.utc) - timedelta(seconds=max(silent, _CLOCKS)))
        stages: list[dict[str, Any]] = [
            {"$match": {"files_id": {"$lt": before}, "n": 0}},
            {"$project": {"_id": 0, "files_id": 1}},
            {"$lookup": {"from": self._files.name, "localField": "files_id", "foreignField": "_id", "as": "files"}},
            {"$match": {"files": []}},
        ]
        count = nbytes = 0
        try:
            for doc in self._chunks.aggregate(stages):
                chunks = {"files_id": doc["files_id"]}
                nbytes += _CHUNK_BYTES * self._chunks.count_documents(chunks)
                if not dry_run:
                    self._chunks.delete_many(chunks)
                count += 1
        except PyMongoError as error:
            raise self._error("sweep", "chunks", error) from error
        return count, nbytes

    def local_path(self, key: str) -> Path | None:
        return None

    def close(self) -> None:
        """This does nothing: the caller has opened the database, and closes it."""
        self._known.clear()

    def _make_indexes(self) -> None:
        if not self._indexed:
            self._files.create_index([("filename", ASCENDING), ("uploadDate", ASCENDING)])
            self._chunks.create_index([("files_id", ASCENDING), ("n", ASCENDING)], unique=True)
            self._indexed = True

    def _file(self, key: str) -> dict[str, Any]:
        found = self._known.get(check_key(key))
        if found is not None:
            return found
        try:
            doc = self._files.find_one({"filename": key}, sort=[("uploadDate", -1)])
        except PyMongoError as error:
            raise self._error("read", key, error) from error
        if doc is None:
            raise StorageError(f"expected a blob {key!r} in {self.url}, found none: was it deleted?")
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[key] = doc
        return dict(doc)

    def _read_chunks(self, file: dict[str, Any], numbers: Sequence[int]) -> dict[int, bytes]:
        if not numbers:
            return {}
        condition: dict[str, Any] = {"files_id": file["_id"], "n": {"$in": list(numbers)}}
        if numbers[-1] - numbers[0] + 1 == len(numbers):
            condition["n"] = {"$gte": numbers[0], "$lte": numbers[-1]}
        try:
            return {doc["n"]: doc["data"] for doc in self._chunks.find(condition, {"_id": 0, "n": 1, "data": 1})}
        except PyMongoError as error:
            raise self._error("read", file["filename"], error) from error

    def _remove(self, ids: Sequence[ObjectId]) -> None:
        if ids:
            self._files.delete_many({"_id": {"$in": list(ids)}})
            self._chunks.delete_many({"files_id": {"$in": list(ids)}})

    def _error(self, action: str, key: str, error: PyMongoError) -> StorageError:
        reason = str(error).split(", full error")[0].split(", Timeout:")[0]
        # The driver has tried twice already; where it found no server at all, it has waited long enough.
        passes = isinstance(error, AutoReconnect) and not isinstance(error, ServerSelectionTimeoutError)
        kind = TransientError if passes and action == "read" else StorageError
        return kind(f"cannot {action} {self.url}/{key}: {reason}")


def _batches(parts: Sequence[Buffer]) -> Iterator[list[bytes]]:
    """The parts as chunks of one size, some megabytes at a time."""
    views = [memoryview(part).cast("B") for part in parts]
    ends: list[int] = []
    for view in views:
        ends.append((ends[-1] if ends else 0) + len(view))
    total = ends[-1] if ends else 0
    batch: list[bytes] = []
    for start in range(0, total, _CHUNK_BYTES):
        stop = min(start + _CHUNK_BYTES, total)
        pieces = []
        i = bisect.bisect_right(ends, start)
        while start < stop:
            within = start - (ends[i] - len(views[i]))
            piece = views[i][within : within + stop - start]
            pieces.append(piece)
            start += len(piece)
            i += 1
        batch.append(b"".join(pieces))
        if len(batch) * _CHUNK_BYTES >= _BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _slice(chunks: dict[int, bytes], chunk: int, offset: int, length: int) -> memoryview:
    first, last = offset // chunk, (offset + max(length, 1) - 1) // chunk
    if length == 0:
        return memoryview(b"")
    if first == last:
        return memoryview(chunks[first])[offset % chunk : offset % chunk + length]
    data = b"".join(chunks[n] for n in range(first, last + 1))
    return memoryview(data)[offset % chunk : offset % chunk + length]

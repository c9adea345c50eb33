"""Keep segments open, and make tables of the segments that some references use."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
from bson import ObjectId

from tensordb_data.blobs.reader.disk_cache import SegmentCache
from tensordb_data.blobs.reader.download_pool import REQUEST_COST, Fetcher
from tensordb_data.blobs.reader.foreign_segment import ForeignSegment
from tensordb_data.blobs.reader.open_segment import OpenSegment
from tensordb_data.blobs.reader.segment_table import Table
from tensordb_data.blobs.segments.format import ENTRY_BYTES, SegmentPlace
from tensordb_data.blobs.segments.references import BlobRefs, at_row
from tensordb_data.blobs.stores.base import Store
from tensordb_data.blobs.stores.foreign import FindRoot
from tensordb_data.blobs.stores.memory import MemoryStore
from tensordb_data.errors import StorageError

_MAX_TABLES = 64
_INDEX_BYTES = ENTRY_BYTES + 8  # of a remote segment's index in memory, for each blob

FindSegments = Callable[[Sequence[ObjectId]], Sequence[Mapping[str, Any]]]


class Tables:
    """Opens segments when they are first referred to, and keeps them; see `BlobReader` for the arguments."""

    def __init__(
        self,
        find_segments: FindSegments,
        store: Callable[[int], Store],
        root: FindRoot,
        cache: SegmentCache | None,
        fetcher: Fetcher,
        max_open: int,
        max_index_bytes: int,
    ) -> None:
        self.generation = object()
        """A check holds as long as this object stays the same."""
        self._find_segments, self._store, self._root = find_segments, store, root
        self._cache, self._fetcher = cache, fetcher
        self._max_open, self._max_index_bytes = max_open, max_index_bytes
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        """Held while segments are looked up: many threads at once would all ask for the same ones."""
        self._opened: dict[ObjectId, OpenSegment] = {}
        self._opening: dict[ObjectId, Future[OpenSegment]] = {}
        self._tables: dict[int, Table] = {}
        self._closed = False
        if cache is not None:
            cache.dropped = self._drop

    def table(self, refs: BlobRefs) -> Table:
        """A table in which every segment that the references use is open."""
        table = self._tables.get(id(refs.segments))
        if table is None or table.ids is not refs.segments:
            table = self._new_table(refs.segments, {})
        verified = None if refs.checksum_cache is None else refs.checksum_cache.verified
        if table.complete and verified is not None and verified.complete:
            return table
        if int(refs.segment.max()) >= len(refs.segments):
            found = int(refs.segment.max())
            raise StorageError(f"expected references into {len(refs.segments)} segments, found one into number {found}")
        if table.complete:
            return table
        missing = np.unique(refs.segment[~table.is_open[refs.segment]])
        if not len(missing):
            return table
        # Another thread may make room at any time: what this batch needs is held here until its table is made.
        used = [table.opened[number] for number in np.unique(refs.segment).tolist()]
        held = {segment.id: segment for segment in (*used, *self._open(refs, missing.tolist())) if segment is not None}
        return self._new_table(refs.segments, held)

    def known(self, refs: BlobRefs) -> Table | None:
        """The table in which every segment of the references is open, if there is one and it still holds."""
        table = self._tables.get(id(refs.segments))
        good = table is not None and table.ids is refs.segments and table.complete
        return table if good and table is not None and table.generation is self.generation else None

    def forget(self, segment: OpenSegment) -> bool:
        """Let go of a cached segment whose file was cut short; returns whether it is one."""
        if segment.file is None:
            return False
        with contextlib.suppress(OSError):
            if segment.file.is_current():
                segment.file.path.unlink()
        self._drop({segment.file.path.name})
        return True

    def close(self) -> None:
        """Let all mappings go."""
        with self._lock:
            self._closed = True
            self._opened.clear()
            self._tables.clear()

    def _drop(self, names: set[str]) -> None:
        """Let go of cached segments whose files were removed or replaced."""
        with self._lock:
            gone = [
                id
                for id, segment in self._opened.items()
                if segment.file is not None and segment.file.path.name in names and not segment.file.is_current()
            ]
            for id in gone:
                del self._opened[id]
            if gone:
                self._tables.clear()
                self.generation = object()

    def _new_table(self, ids: tuple[ObjectId, ...], held: Mapping[ObjectId, OpenSegment]) -> Table:
        with self._lock:
            if self._closed:
                raise StorageError("the blob reader is closed: connect again")
            for id_, segment in held.items():
                self._opened.setdefault(id_, segment)
            table = Table(ids, self._opened, self.generation)
            self._make_room(held.keys())
            self._tables.pop(id(ids), None)
            self._tables[id(ids)] = table
            while len(self._tables) > _MAX_TABLES:
                del self._tables[next(iter(self._tables))]
            return table

    def _open(self, refs: BlobRefs, numbers: Sequence[int]) -> list[OpenSegment]:
        ids = {number: refs.segments[number] for number in numbers}
        opened: dict[int, OpenSegment | Future[OpenSegment]] = {}
        number = 0
        try:
            with self._turn:
                with self._lock:
                    known = {number: self._opened.get(id) or self._opening.get(id) for number, id in ids.items()}
                unknown = [ids[number] for number, found in known.items() if found is None]
                docs = {doc["_id"]: doc for doc in self._find_segments(unknown)} if unknown else {}
                for number, found in known.items():
                    opened[number] = found or self._open_one(ids[number], docs)
            for number, found in opened.items():
                opened[number] = found.result() if isinstance(found, Future) else found
        except StorageError as error:
            raise at_row(type(error)(str(error)), int(np.argmax(refs.segment == number))) from error
        return [found for found in opened.values() if isinstance(found, OpenSegment)]

    def _open_one(self, id: ObjectId, docs: Mapping[ObjectId, Mapping[str, Any]]) -> OpenSegment | Future[OpenSegment]:
        """A local segment at once; mapping a file takes less time than handing it to a thread."""
        if id not in docs:
            raise StorageError(f"expected the segment {id} in the index, found none: was its data deleted?")
        place = SegmentPlace.from_doc(docs[id])
        store = self._store(place.root)
        local, refers = store.local_path(place.key) is not None, "roots" in docs[id]
        if local:
            return ForeignSegment(docs[id], store, self._root) if refers else OpenSegment(docs[id], store)
        cache = None if isinstance(store, MemoryStore) else self._cache
        opens = partial(ForeignSegment, docs[id], store, self._root)
        work = partial(self._fetcher.retried, opens if refers else partial(OpenSegment, docs[id], store, cache))
        future = self._fetcher.submit(work, lambda: REQUEST_COST, urgent=True)
        self._opening[id] = future
        future.add_done_callback(partial(self._keep, id))
        return future

    def _keep(self, id: ObjectId, future: Future[OpenSegment]) -> None:
        with self._lock:
            del self._opening[id]
            if not (self._closed or future.cancelled() or future.exception()):
                self._opened.setdefault(id, future.result())

    def _make_room(self, keep: Container[ObjectId]) -> None:
        """Drop the segments that were opened longest ago. Tables and views keep the mappings that they use."""
        mapped = sum(segment.mapped is not None for segment in self._opened.values())
        indexes = sum(_INDEX_BYTES * segment.blobs for segment in self._opened.values() if segment.mapped is None)
        for id, segment in list(self._opened.items()):
            local = segment.mapped is not None
            if id not in keep and (mapped > self._max_open if local else indexes > self._max_index_bytes):
                del self._opened[id]
                self._tables.clear()
                if segment.file is not None:
                    self.generation = object()
                mapped -= local
                indexes -= 0 if local else _INDEX_BYTES * segment.blobs

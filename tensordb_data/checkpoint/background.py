"""Save in the background: the caller takes snapshots, one thread stores them, and errors wait for the next call."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pymongo.errors import PyMongoError

from tensordb_data.checkpoint.staging import StagingBuffer
from tensordb_data.common.background import BackgroundWorker
from tensordb_data.common.sizes import parse_size
from tensordb_data.errors import CheckpointError, QueryError, TensorDBError
from tensordb_data.params.prune import prune
from tensordb_data.params.retention import Keep
from tensordb_data.params.save import SaveReport, save_parameters
from tensordb_data.params.shared import Share
from tensordb_data.tensors.compression import TensorCompressor
from tensordb_data.tensors.snapshot import Snapshot
from tensordb_data.tensors.tree import Flat, flatten

if TYPE_CHECKING:
    from bson import ObjectId

    from tensordb_data.runs.lease import RunLease
    from tensordb_data.warehouse.context import Warehouse

log = logging.getLogger("tensordb_data.checkpoint")

_KEPT = 10_000  # stalls remembered for the median
_SHARE = 0.05  # of the time between two saves that compressing may take of one processor
_READY = 2  # copies made ready in advance: one is stored while the next is taken


class Saver(BackgroundWorker):
    """Saves states in the background. Each accepted save becomes durable, or its error is raised.

    Snapshots are stored one after the other, while the next ones are taken.

    Args:
        warehouse: The warehouse.
        memory: Bytes of host memory that copies of the state may take, a number or a size such as `"4GB"`; as many
            saves as fit may be under way. By default two copies, whatever their size.
        parent: The set from which the first one is made.
        keep: Which training states of the run stay when a save is durable; None for all.
    """

    _thread_name = "tensordb-save"

    def __init__(
        self,
        warehouse: Warehouse,
        memory: int | str | None = None,
        parent: ObjectId | None = None,
        keep: Keep | None = None,
    ) -> None:
        super().__init__()
        self._warehouse = warehouse
        self._keep = keep
        self._memory = _size(memory)
        self.parent = parent  # of the next set to be written
        self.lease: RunLease | None = None  # of the run
        self._free: deque[StagingBuffer] = deque()
        self._buffers = 0
        self._jobs: deque[tuple[StagingBuffer, Snapshot | None, Any, Share | None]] = deque()
        self._taking: dict[int, StagingBuffer] = {}  # by thread, the buffer that it fills
        self._stored: StagingBuffer | None = None  # what the background thread works with
        self._busy = False
        self._storing = False  # busy with a save, not with making memory ready
        self._error: BaseException | None = None
        self._preparing = 0  # buffers that are being made ready
        self._stalls: deque[float] = deque(maxlen=_KEPT)
        self._done: deque[SaveReport] = deque(maxlen=_KEPT)
        self._counts = {"saves": 0, "durable": 0, "failed": 0, "waited": 0, "skipped": 0}
        self._bytes = {"bytes": 0, "bytes_stored": 0}
        self._waited = 0.0
        self._stored_at = time.monotonic()  # when the last save began to be stored

    def prepare(self, state: Any, share: Share | None = None) -> None:
        """Allocate the buffers for a state like this one in the background, so that the first save is as fast as
        others.
        """
        flat = _flat(state, share)
        with self._changed:
            while self._buffers < min(_READY, self._capacity(flat)):
                self._free.append(StagingBuffer())
                self._buffers += 1
            self._wake()
            self._preparing += len(self._free)
            self._jobs.extend((buffer, None, flat, None) for buffer in self._free)
            self._free.clear()

    def has_room(self, state: Any, share: Share | None = None) -> bool:
        """Whether a save of this state would not have to wait. Only its own saves take room away."""
        flat = _flat(state, share)
        with self._changed:
            return bool(self._free) or self._buffers < self._capacity(flat) or self._preparing > 0

    def skip(self) -> None:
        """Count a save that was left out."""
        with self._changed:
            self._counts["skipped"] += 1

    def save(self, state: Any, fields: Mapping[str, Any], *, wait: bool = True, share: Share | None = None) -> bool:
        """Copy the state. The background thread stores it.

        Args:
            state: What to save.
            fields: The user's fields of its document, checked already.
            wait: Whether to wait if all memory holds earlier saves. Otherwise this save is skipped.
            share: What of it this process stores, if several save it together; None for all.

        Returns:
            Whether it was taken.

        Raises:
            CheckpointError: An earlier save failed: it is lost, and this one was not taken. Or the state holds a value
                that cannot be saved.
        """
        self.check()
        self._changed.recover()
        began = time.perf_counter()
        flat = _flat(state, share)
        with self._changed:
            if self._closed:
                raise CheckpointError("The checkpointer is closed. Make a new one to go on saving.")
            self._give_back()
            if not self._free and self._buffers < self._capacity(flat):
                self._free.append(StagingBuffer())
                self._buffers += 1
            if not self._free and not wait and not self._preparing:
                self._counts["skipped"] += 1
                return False
            if not self._free:
                self._counts["waited"] += not self._preparing
                self._changed.wait_for(lambda: bool(self._free) or self._error is not None)
                self._waited += time.perf_counter() - began
            self.check()
            buffer = self._taking[threading.get_ident()] = self._free[0]
            self._free.popleft()
        try:
            snapshot = buffer.take(flat)
        except BaseException:
            with self._changed:
                self._give_back()
            raise
        with self._changed:
            self._wake()
            self._counts["saves"] += 1
            self._jobs.append((buffer, snapshot, dict(fields), share))
            del self._taking[threading.get_ident()]
        self._stalls.append(time.perf_counter() - began)
        return True

    def _give_back(self) -> None:
        """Free the buffer that an error or interrupt has left with this thread. The caller holds the lock."""
        left = self._taking.get(threading.get_ident())
        elsewhere = [*self._free, *(buffer for buffer, _, _, _ in self._jobs), self._stored]
        if left is not None and all(left is not other for other in elsewhere):
            self._free.append(left)
            self._changed.notify_all()
        self._taking.pop(threading.get_ident(), None)

    @property
    def busy(self) -> bool:
        """Whether a save is being stored, or waits for that."""
        with self._changed:
            return self._storing or any(snapshot is not None for _, snapshot, _, _ in self._jobs)

    def _capacity(self, flat: Flat) -> int:
        """How many copies of such a state may exist at once."""
        if self._memory is None:
            return _READY
        nbytes = sum(leaf.nbytes for leaf in flat.leaves)
        if nbytes > self._memory:
            raise CheckpointError(
                f"memory= allows {self._memory:,} bytes, and one copy of the state takes {nbytes:,}: allow more."
            )
        return self._memory // max(1, nbytes)

    def check(self) -> None:
        """Raise the error of a save that failed since the last call. Each error is raised once."""
        if self._is_forked:
            raise CheckpointError("A checkpointer cannot be used in a forked child: save in the process that made it.")
        if self._error is None:
            return
        with self._changed:
            error, self._error = self._error, None
        if error is not None:
            raise CheckpointError(f"A save in the background failed: {type(error).__name__}: {error}") from error

    def wait(self) -> None:
        """Wait until every accepted save is durable, then raise the error if one failed."""
        if not self._is_forked:
            self._changed.recover()
            with self._changed:
                self._changed.wait_for(lambda: not self._jobs and not self._busy)
        self.check()

    def close(self) -> None:
        """Wait until every accepted save is durable, end the thread and release the memory.

        A second call does nothing.
        """
        if self._is_forked:
            return
        self._end()
        self._free.clear()
        self._buffers = 0
        self.check()

    def leave(self) -> None:
        """Accept no more saves, and give the lease of the run back when those so far are durable. Does not wait."""
        self.retire()
        if self.lease is not None:
            self.lease.retire(self._done_within)

    def _done_within(self, seconds: float) -> bool:
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    def stats(self) -> dict[str, Any]:
        """Counts and times since the start; see `Checkpointer.stats`."""
        with self._changed:
            stalls, done = list(self._stalls), list(self._done)
            return {
                **self._counts,
                "waited_seconds": self._waited,
                "stall_seconds": statistics.median(stalls) if stalls else 0.0,
                "stall_seconds_max": max(stalls, default=0.0),
                "persist_seconds": statistics.median(w.seconds for w in done) if done else 0.0,
                **self._bytes,
            }

    def _prune(self, run: str) -> None:
        if self._keep is None:
            return
        try:
            prune(self._warehouse, run, self._keep, training=True)
        except (PyMongoError, TensorDBError) as error:  # the save is durable, and the next one prunes again
            log.warning("run %s: what its policy does not keep could not be deleted yet: %s", run, error)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._jobs) or self._closed)
                if not self._jobs:
                    return
                buffer, snapshot, about, share = self._jobs.popleft()
                self._stored = buffer
                self._busy, self._storing = True, snapshot is not None
            error: BaseException | None = None
            report: SaveReport | None = None
            preparing = snapshot is None
            try:
                if snapshot is None:
                    buffer.reserve(about)
                else:
                    compressor = TensorCompressor(_SHARE * (time.monotonic() - self._stored_at))
                    self._stored_at = time.monotonic()
                    buffer.wait()
                    report = save_parameters(
                        self._warehouse, snapshot, about, self.parent, compressor, self.lease, share
                    )
                    self.parent = report.id
                    if share is None or share.rank == 0:
                        self._prune(about["run"])
            except BaseException as caught:  # whatever it is, the training loop must hear of it
                error = caught
            del snapshot, about
            with self._changed:
                self._busy = self._storing = False
                self._free.append(buffer)
                self._stored = None
                self._preparing -= preparing
                if error is not None:
                    self._counts["failed"] += 1
                    self._error = self._error or error
                if report is not None:
                    self._counts["durable"] += 1
                    self._bytes["bytes"] += report.nbytes
                    self._bytes["bytes_stored"] += report.stored
                    self._done.append(report)
                self._changed.notify_all()
            error = None


def _flat(state: Any, share: Share | None) -> Flat:
    """What this process stores of a state."""
    flat = flatten(state)
    return flat if share is None or share.rank == 0 else flat.pieces_only()


def _size(memory: int | str | None) -> int | None:
    try:
        return None if memory is None else parse_size(memory, "memory")
    except QueryError as error:
        raise CheckpointError(str(error)) from None
